"""Cores of continual-learning methods against vectors that the authors' own code made (float64, 1e-9)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import core, draws, same
from torch import nn

from cl_bench.heads import LinearHead
from cl_bench.types import LabelSpace

D = torch.float64


def test_inflora_keeps_the_spaces_of_the_released_dual_gpm(shared: Path) -> None:
    m = core("inflora", "_dualgpm")
    for v in draws(shared, "inflora_dualgpm"):
        tasks, total = len(v.in_cur), int(v.number("hp_total"))
        for layer in range(v.in_cur.shape[1]):
            basis, complement = None, False
            for t in range(tasks):
                share = m.share_of(v.number("hp_lamb"), t, total)
                assert share == pytest.approx(v.number("hp_lamb") + (v.number("hp_lame") - v.number("hp_lamb")) * t / total)
                same(share, v.out_threshold[t])
                c, rank = v.in_cur[t, layer], int(v.out_A_rank[t, layer])
                rows = m.start(c, basis, complement, int(v.number("hp_rank")))[:rank]
                same(3 * rows.T @ rows, v.out_A_span[t, layer])
                same(rows.abs(), v.out_A[t, layer, :rank].abs(), 1e-8)
                basis, complement = m.remember(c, basis, complement, share)
                assert (basis.shape[1], complement) == (v.out_dims[t, layer], bool(v.out_retain[t, layer]))
                same(basis @ basis.T, v.out_projector[t, layer])


def test_cosine_factors_of_every_epoch(shared: Path) -> None:
    m = core("inflora", "_frozen_trunk")
    for v in draws(shared, "cosine_lists"):
        for k in v.hp_K.tolist():
            same(torch.tensor(m.truncated_factors(k), dtype=D), v[f"out_inflora_{k}"], 1e-12)
            same(torch.tensor(m.truncated_factors(k), dtype=D), v[f"out_coda_{k}"], 1e-12)
            same(torch.tensor(m.truncated_factors(k, released=False), dtype=D), v[f"out_formula_{k}"], 1e-12)
            for made, want in ((m.truncated_cosine, "out_inflora_"), (lambda o, n: m.cosine(o, n, "epoch"), "out_aper_")):
                optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
                schedule = made(optimizer, k)["lr_scheduler"]
                assert schedule["interval"] == "epoch"
                used = []
                for _ in range(k):
                    used.append(optimizer.param_groups[0]["lr"])
                    optimizer.step()
                    schedule["scheduler"].step()
                same(torch.tensor(used, dtype=D), v[f"{want}{k}"], 1e-12)


def test_codyra_walks_the_released_thresholds(shared: Path) -> None:
    from cl_bench.adapters._prox import shrink
    from cl_bench.adapters.codyra import walk

    for v in draws(shared, "codyra_kappa"):
        for total in (int(k.rpartition("_")[2]) for k in v.arrays if k.startswith("in_steps_")):
            released, exact = v.in_gate0.clone(), v.in_gate0.clone()
            for i in range(total):
                kappa = walk(i, total, v.number("hp_dense"), v.number(f"hp_max_{total}"), released=True)
                same(kappa, v[f"out_threshold_{total}"][i] * v[f"out_applied_{total}"][i], 1e-15)
                released += v[f"in_steps_{total}"][i]
                exact += v[f"in_steps_{total}"][i]
                shrink(released, kappa, released=True)
                shrink(exact, kappa)
                same(released, v[f"out_gates_{total}"][i], 1e-12)
            same(exact, v[f"out_exact_{total}"], 1e-12)
            assert (released != 0).sum(1).tolist() == v[f"out_open_{total}"].tolist()


def test_mos_merges_as_released(shared: Path) -> None:
    m = core("mos", "_surgery")
    for v in draws(shared, "mos_merge"):
        momentum, blocks = v.number("hp_momentum"), int(v.number("hp_blocks"))
        stored, cur = v.in_stored, v.in_cur
        mean = m.mean_of([[s] for s in stored])[0]
        same(mean * len(stored), v.out_prefix[-1], 1e-12)
        same(m.merged(cur, mean, momentum), v.out_once, 1e-12)
        same(m.merged(cur, mean, momentum, blocks), v.out_train_forward, 1e-12)
        same(m.merged(cur, mean, momentum, blocks + 1), v.out_step, 1e-12)
        same(m.merged(cur, mean, momentum, blocks), v.out_eval_third, 1e-12)
        same(m.merged(stored[1], stored[0], momentum, blocks), v.out_eval_second, 1e-12)
        one, none = torch.ones((), dtype=D), torch.zeros((), dtype=D)
        same(m.merged(one, none, momentum, blocks + 1), v.out_factor, 1e-12)


def test_mos_looks_up_four_adapters_at_most(shared: Path) -> None:
    m = core("mos", "_surgery")
    for v in draws(shared, "mos_lookup"):
        tasks, limit = v.in_features.shape[1], int(v.number("hp_max_lookups"))
        heads = torch.einsum("ntd,cd->tnc", v.in_features, v.in_head_w) + v.in_head_b
        chosen, tried = m.look_up(v.in_orig_logits, heads, v.in_cls2task, limit)
        assert torch.equal(chosen, v.out_adapter) and torch.equal(tried, v.out_path)
        answer = heads[chosen, torch.arange(len(chosen))]
        same(answer, v.out_head_logits, 1e-12)
        scores = m.score(v.in_orig_logits, answer, tasks)
        same(scores, v.out_scores, 1e-12)
        same(m.score(v.in_orig_logits, answer, tasks, ensemble=False), v.out_scores_noens, 1e-12)
        assert torch.equal(scores.argmax(1), v.out_top1)


def test_ease_completes_prototypes_and_reweights(shared: Path) -> None:
    m = core("ease")
    for v in draws(shared, "ease_complement"):
        d, init, inc = (int(v.number(f"hp_{k}")) for k in ("dim", "init", "inc"))
        classes, tasks = len(v.in_fc), v.in_fc.shape[1] // d
        task = torch.tensor([0 if c < init else 1 + (c - init) // inc for c in range(classes)])
        blocks = v.in_fc.view(classes, tasks, d).transpose(0, 1)
        done = m.synthesised(blocks, task)
        same(done.transpose(0, 1).reshape(classes, -1), v.out_fc_reset)
        features = v.in_x.view(len(v.in_x), tasks, d).transpose(0, 1)
        same(m.reweighted(features, done, task, v.number("hp_alpha")), v.out_logits)


def test_lae_prefix_has_two_scales_and_a_mass_of_its_own(shared: Path) -> None:
    from timm.models.vision_transformer import Attention

    from cl_bench.adapters.prefix import Prefix

    for v in draws(shared, "lae_prefix"):
        n, d = v.in_key.shape
        layer = Attention(d, num_heads=int(v.number("hp_heads")), qkv_bias=True).to(D)
        layer.load_state_dict({"qkv.weight": v.in_qkv_w, "qkv.bias": v.in_qkv_b, "proj.weight": v.in_proj_w,
                               "proj.bias": v.in_proj_b})
        same(layer(v.in_x).detach(), v.out_y_plain, 1e-12)
        for compensate, want in ((True, v.out_y), (False, v.out_y_nocomp)):
            prefix = Prefix(layer, 0, 1, n=n, compensate=compensate, learn_scale=True).to(D)
            assert sum(p.numel() for p in prefix.parameters()) == Prefix.count(d, d, n=n, learn_scale=True) == 2 * n * d + 2
            with torch.no_grad():
                prefix.keys.copy_(v.in_key)
                prefix.values.copy_(v.in_val)
                prefix.key_scale.fill_(v.number("in_key_scale"))  # type: ignore[union-attr]
                prefix.value_scale.fill_(v.number("in_val_scale"))  # type: ignore[union-attr]
            y = prefix(layer, v.in_x)
            same(y.detach(), want, 1e-12)
            if compensate:
                y.square().sum().backward()
                got = (prefix.keys, prefix.values, prefix.key_scale, prefix.value_scale)
                for p, grad in zip(got, ("key", "val", "key_scale", "val_scale"), strict=True):
                    same(p.grad, v[f"out_grad_{grad}"], 1e-10)  # type: ignore[union-attr]


def test_lae_freezes_follows_and_takes_the_surer(shared: Path) -> None:
    m = core("lae")
    for v in draws(shared, "lae_schedule"):
        tasks, epochs, steps, _ = v.in_delta.shape
        online, offline = v.in_start.clone(), None
        for t in range(tasks):
            if t == 1:
                offline = online.clone()
            assert (offline is not None) == bool(v.out_offline_exists[t])
            for e in range(epochs):
                still = m.frozen(t, e, int(v.number("hp_freeze")))
                assert still != bool(v.out_trainable[t, e])
                for s in range(steps):
                    online = online if still else online + v.in_delta[t, e, s]
                    if offline is not None:
                        offline = m.follow(offline, online, v.number("hp_decay"))
                    same(online, v.out_online[t, e, s], 1e-12)
                    same(online if offline is None else offline, v.out_offline[t, e, s], 1e-12)
        same(m.surer(v.in_logits_on.softmax(1), v.in_logits_off.softmax(1)), v.out_ensemble, 1e-12)


def head_of(weight: torch.Tensor, bias: torch.Tensor) -> LinearHead:
    head = LinearHead(weight.shape[1]).to(D)
    head.grow(LabelSpace(tuple(range(len(weight)))))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)  # type: ignore[union-attr]
    return head


def test_slca_aligns_its_classifier(shared: Path) -> None:
    m = core("slca", "_gaussians")
    for v in draws(shared, "slca_alignment"):
        classes, size, n = len(v.in_means), int(v.number("hp_task_size")), v.in_noise.shape[2]
        sizes, column = [size] * (classes // size), torch.arange(classes)
        scale = m.mean_scale(column, sizes).to(D)
        same(scale, v.out_scale, 1e-12)
        roots = torch.linalg.cholesky(v.in_covs)
        epoch = iter(range(len(v.in_noise)))

        def draw() -> tuple[torch.Tensor, torch.Tensor]:
            e = next(epoch)  # noqa: B023
            x = (v.in_means * scale[:, None])[:, None] + v.in_noise[e] @ roots.transpose(1, 2)  # noqa: B023
            return x.flatten(0, 1)[v.in_perm[e]], column.repeat_interleave(n)[v.in_perm[e]]  # noqa: B023

        head = head_of(v.in_w, v.in_b)
        e0 = ((v.in_means * scale[:, None])[:, None] + v.in_noise[0] @ roots.transpose(1, 2)).flatten(0, 1)[v.in_perm[0]]
        logits = head(e0[:n]).detach()
        same(logits, v.out_first_logits, 1e-10)
        normed = m.normalised(logits, sizes, v.number("hp_logit_norm"))
        given = min((normed - v.out_first_normalised).abs().max(),
                    (normed * v.number("hp_logit_norm") - v.out_first_normalised).abs().max())
        assert given < 1e-10
        epochs = int(v.number("hp_epochs"))
        losses = m.rehearse(head, draw, sizes, n, epochs, v.number("hp_lr"), v.number("hp_wd"), v.number("hp_logit_norm"))
        same(torch.tensor(losses, dtype=D).view(epochs, classes), v.out_losses, 1e-10)
        same(head.weight.detach(), v.out_w, 1e-10)
        same(head.bias.detach(), v.out_b, 1e-10)  # type: ignore[union-attr]


def test_ranpac_chooses_its_ridge_in_the_released_precision(shared: Path) -> None:
    m = core("ranpac")
    for v in draws(shared, "ranpac_ridge"):
        root, target = torch.zeros(0, v.in_w_rand.shape[1], dtype=D), None
        for tag in ("", "2", "3"):
            h = torch.relu(v[f"in_features{tag}"] @ v.in_w_rand)
            y = F.one_hot(v[f"in_labels{tag}"], len(v.out_Wo_f64)).to(D)
            cut = int(0.8 * len(h))
            parts = h[:cut], y[:cut], h[cut:], y[cut:]
            want = v[f"out_losses{tag}_f64"]
            for losses in (m.losses_as_released(*parts), m.losses_exact(*parts)):
                same(torch.tensor(losses, dtype=D)[4:], want[4:], 0.0, rtol=1e-6 if tag == "3" else 1e-8)
            assert m.best(m.losses_exact(*parts)) == v.number(f"out_ridge{tag}_f64")
            assert m.best(m.losses_exact(*parts, single=True)) == v.number(f"out_ridge{tag}_f32")
            if tag != "3":
                old = target if target is not None else y.new_zeros(0, y.shape[1])
                q, root = torch.linalg.qr(torch.cat([root, h]))
                target = q.T @ torch.cat([old, y])
                chosen = v.number(f"out_ridge{tag}_f64")
                same(m.ridge(root, target, chosen).T, v[f"out_Wo{tag}_f64"], 1e-6)
