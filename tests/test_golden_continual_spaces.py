"""Cores of methods of subspaces, penalties and masks beside golden vectors of their authors' code (optional data)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from golden_vectors import Vectors, core, draws, same
from torch import nn

from cl_bench.adapters import rows_of

D = torch.float64


def test_gpm_keeps_the_released_bases(shared: Path) -> None:
    m, gpm = core("gpm", "_subspace"), core("gpm")
    for v in draws(shared, "gpm_bases"):
        last = {}
        for kind in ("conv", "lin"):
            basis = None
            for t, share in enumerate(v.out_threshold.tolist()):
                if kind == "conv":
                    channels, want = v.in_act_conv.shape[2], v[f"out_mat_conv_{t}"]
                    side = math.isqrt(len(want) // channels)
                    rows = rows_of(nn.Conv2d(channels, 1, side).to(D), v.in_act_conv[t])
                    same(rows.T, want, 1e-12)
                else:
                    rows = v.in_act_lin[t]
                gram = rows.T @ rows
                if basis is None:
                    basis = m.first_directions(gram, share)
                else:
                    basis = m.orthonormal(basis, m.new_directions(gram, basis, share))
                want = v[f"out_basis_{kind}_t{t}"]
                assert basis.shape == want.shape
                same(basis @ basis.T, want @ want.T)
            last[kind] = basis
        for kind, basis in last.items():
            same(gpm.outside(v[f"in_grad_{kind}"], basis), v[f"out_proj_grad_{kind}"])


def test_cuber_measures_trust_regions_as_trgp_does(shared: Path) -> None:
    m, trust = core("cuber", "_subspace"), core("cuber", "_trust")
    for v in draws(shared, "trgp_trust_region"):
        tasks, layers = v.in_mats.shape[:2]
        spaces: list[list[torch.Tensor]] = [[] for _ in range(layers)]
        for layer in range(layers):
            joint = None
            for t in range(tasks):
                gram = v.in_mats[t, layer] @ v.in_mats[t, layer].T
                if joint is None:
                    own = joint = m.first_directions(gram, v.hp_threshold[t])
                else:
                    old, new = m.own_directions(gram, joint, float(v.hp_threshold[t]))
                    own = torch.cat([joint[:, old], new], 1)
                    joint = torch.cat([joint, new[:, 1:]], 1)  # TRGP's code leaves the first new direction out of it
                assert joint.shape[1] == v.out_all_dims[t, layer]
                want = v[f"out_space_t{t}_l{layer}"]
                same(own @ own.T, want @ want.T)
                spaces[layer].append(own)
            g = v.in_grads[layer]
            same(g.norm(), v.out_grad_norms[layer])
            norms = [trust.projected_norm(g, s) for s in spaces[layer]]
            same(torch.stack(norms), v.out_norms[:, layer])
            regimes = [trust.regime_of(float(n), float(g.norm()), v.number("hp_epsilon"), False) for n in norms]
            assert regimes == v.out_regime[:, layer].tolist()
        parts = [(s, q[: s.shape[1], : s.shape[1]]) for s, q in
                 ((v.in_space1, v.in_scale1), (v.in_space2, v.in_scale2))]
        same(F.linear(v.in_x, trust.scaled_weight(v.in_weight, parts[:1]), v.in_bias), v.out_y1)
        same(F.linear(v.in_x, trust.scaled_weight(v.in_weight, parts), v.in_bias), v.out_y12)


def test_sema_expands_where_its_record_says_so(shared: Path) -> None:
    m = core("sema", "_experts")
    for v in draws(shared, "sema_expand"):
        experts = [expert(m, v, k) for k in (0, 1)]
        first, second = experts
        size = int(v.number("hp_fifo"))
        batch = 40
        for x in v.in_train.mean(1).split(batch):
            first.errors = m.recorded(first.errors, first.error(x).detach(), size)
        same(first.errors.mean(), v.out_record_mean, 1e-10)
        same(first.errors.std(), v.out_record_std, 1e-10)
        seen, new = v.in_seen.mean(1), v.in_new.mean(1)
        same(first.error(seen).detach(), v.out_rd_loss_seen, 1e-10)
        for x, tag in ((seen, "seen"), (new, "new")):
            z = m.deviation(first.error(x), first.errors).detach()
            same(z, v[f"out_z_{tag}"], 1e-8)
            assert m.expands([z], v.number("hp_threshold")) == bool(v[f"out_expand_{tag}"])
        for _ in range(3):  # the vectors' second adapter saw the batch in three passes
            second.errors = m.recorded(second.errors, second.error(new).detach(), size)
        both = [m.deviation(e.error(new), e.errors).detach() for e in experts]
        same(torch.stack(both), v.out_z2_new, 1e-8)
        assert m.expands(both, v.number("hp_threshold")) == bool(v.out_expand2)
        mix = m.Mixture.__new__(m.Mixture)
        nn.Module.__init__(mix)
        mix.experts, mix.watching, mix.seen = nn.ModuleList(experts), False, []
        same(mix.branch(v.in_seen).detach(), v.out_func, 1e-10)
        same(v.out_func_router_merged, v.out_func, 1e-10)


def expert(m, v: Vectors, k: int) -> nn.Module:
    d = v.in_train.shape[-1]
    layer = nn.Module()
    layer.norm = nn.LayerNorm(d)
    made = m.Expert(layer, len(v[f"in_adown_b{k}"]), 10**6, int(v.number("hp_fifo"))).to(D)
    made.descriptor = nn.Sequential(nn.Linear(d, len(v[f"in_enc_b{k}"])), nn.Linear(len(v[f"in_enc_b{k}"]), d)).to(D)
    with torch.no_grad():
        for part, name in ((made.descriptor[0], "enc"), (made.descriptor[1], "dec"), (made.adapter.down, "adown"),
                           (made.adapter.up, "aup")):
            part.weight.copy_(v[f"in_{name}_w{k}"])
            part.bias.copy_(v[f"in_{name}_b{k}"])
        made.router.weight.copy_(v.in_router_w[k : k + 1])
        made.router.bias.copy_(v.in_router_b[k : k + 1])
    return made


def test_sdlora_normalises_old_directions_alone(shared: Path) -> None:
    m = core("sdlora")
    for v in draws(shared, "sdlora_magnitude"):
        d = v.in_x.shape[-1]
        weight = v.in_qkv_w.clone()
        for k, rows in enumerate((slice(0, d), slice(2 * d, 3 * d))):  # queries and values
            for t in range(len(v.in_alpha_prev)):
                weight[rows] += m.directed(v.in_A_prev[t, k], v.in_B_prev[t, k], v.in_alpha_prev[t], old=True)
            weight[rows] += m.directed(v.in_A[k], v.in_B[k], v.in_alpha, old=False)
        same(F.linear(v.in_x, weight, v.in_qkv_b), v.out_train, 1e-12)
        # The released class for evaluation overwrites the sum: what is left is the newest direction at full length.
        newest = v.in_qkv_w.clone()
        for k, rows in enumerate((slice(0, d), slice(2 * d, 3 * d))):
            newest[rows] += m.directed(v.in_A[k], v.in_B[k], v.in_alpha, old=False)
        same(F.linear(v.in_x, newest, v.in_qkv_b), v.out_eval, 1e-12)


def test_olora_penalises_overlap_entry_by_entry(shared: Path) -> None:
    m = core("olora")
    for v in draws(shared, "olora_penalty"):
        a, b = v.in_A_new.clone().requires_grad_(), v.in_B_new.clone().requires_grad_()
        overlap, length = m.overlap(list(v.in_A_old), list(a)), m.length([*a, *b])
        same(overlap.detach(), v.out_orthogonal, 1e-12)
        same(length.detach(), v.out_l2, 1e-12)
        loss = v.number("hp_task_loss") + v.number("hp_lambda1") * overlap + v.number("hp_lambda2") * length
        same(loss.detach(), v.out_loss, 1e-12)
        loss.backward()
        same(a.grad, v.out_grad_A_new, 1e-12)
        same(b.grad, v.out_grad_B_new, 1e-12)


def test_agem_projects_where_gradients_conflict(shared: Path) -> None:
    m = core("agem")
    for v in draws(shared, "agem_projection"):
        w, b = v.in_w.clone().requires_grad_(), v.in_b.clone().requires_grad_()

        def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(F.linear(x, w, b), y), (w, b))])  # noqa: B023

        g = gradient(v.in_x, v.in_y)
        same(g, v.out_g, 1e-12)
        for tag in ("agree", "conflict"):
            ref = gradient(v[f"in_mx_{tag}"], v[f"in_my_{tag}"])
            same(ref, v[f"out_ref_{tag}"], 1e-12)
            same(g @ ref, v[f"out_dot_{tag}"], 1e-12)
            used = m.project(g, ref)
            same(used, v[f"out_used_{tag}"], 1e-12)
            start = torch.cat([v.in_w.flatten(), v.in_b])
            same(start - v.number("hp_lr") * used, v[f"out_after_{tag}"], 1e-12)


def test_ewc_has_the_fishers_and_penalties_of_mammoth_and_facil(shared: Path) -> None:
    m = core("ewc", "_fisher")
    for v in draws(shared, "ewc_fisher"):
        names = ("w1", "b1", "w2", "b2")
        weights = {n: v[f"in_{n}"] for n in names}
        size = int(v.number("hp_batch"))

        def logits(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return F.linear(torch.tanh(F.linear(x, w["w1"], w["b1"])), w["w2"], w["b2"])

        def flat(parts: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.cat([parts[n].flatten() for n in names])  # noqa: B023

        def split(whole: torch.Tensor) -> dict[str, torch.Tensor]:
            parts = whole.split([weights[n].numel() for n in names])  # noqa: B023
            return {n: p.view_as(weights[n]) for n, p in zip(names, parts, strict=True)}  # noqa: B023

        pairs = list(zip(v.in_x.split(size), v.in_y.split(size), strict=True))
        whole = [p for p in pairs if len(p[0]) == size]
        mammoth = m.diagonal(logits, weights, pairs, "weighted", count=len(pairs) * size)
        same(flat(mammoth), v.out_mammoth_fisher, 1e-12)
        for flavour, want in (("batch", v.out_facil_true), ("batch_argmax", v.out_facil_max_pred)):
            same(flat(m.diagonal(logits, weights, whole, flavour)), want, 1e-12)
        later = split(v.in_theta)
        anchor, before = m.Anchor(weights, mammoth), m.Anchor(weights, mammoth)
        anchor.blend(before, v.number("hp_gamma"))
        same(flat({n: getattr(anchor, f"fisher{k}") for k, n in enumerate(names)}), v.out_mammoth_fisher2, 1e-12)
        same(v.number("hp_e_lambda") * anchor.penalty(later), v.out_mammoth_penalty, 1e-10)
        theta = {n: p.clone().requires_grad_() for n, p in later.items()}
        (v.number("hp_e_lambda") * anchor.penalty(theta)).backward()
        same(flat({n: p.grad for n, p in theta.items()}), v.out_mammoth_grad, 1e-10)  # type: ignore[misc]
        facil = m.Anchor(weights, split(v.out_facil_true))
        alpha = v.number("hp_facil_alpha")
        facil.blend(m.Anchor(weights, split(v.in_facil_old_fisher)), alpha, 1 - alpha)
        merged = flat({n: getattr(facil, f"fisher{k}") for k, n in enumerate(names)})
        same(merged, v.out_facil_merged, 1e-12)
        same(v.number("hp_facil_lamb") * 0.5 * facil.penalty(later), v.out_facil_penalty, 1e-9, rtol=1e-12)


def test_exssnet_masks_transfer_and_neighbours(shared: Path) -> None:
    m = core("exssnet", "_supermask")
    for v in draws(shared, "exssnet_masks"):
        for tag, density in (("01", 0.1), ("03", 0.3), ("05", 0.5)):
            assert torch.equal(m.subnet(v.in_scores, density), v[f"out_mask_{tag}"])
            assert torch.equal(m.top(v.in_scores, density), v[f"out_absmask_{tag}"])
            same(m.top(v.in_scores, density) * v.in_scores.sign(), v[f"out_signed_{tag}"], 0.0)
        scores = v.in_scores.clone().requires_grad_()
        (m.subnet(scores, 0.3) * v.in_coef).sum().backward()
        same(scores.grad, v.out_grad, 1e-12)
        batches = math.ceil(len(v.in_labels) / v.number("hp_batch"))
        rows = (math.ceil(0.2 * batches) + 1) * int(v.number("hp_batch"))
        found = [m.knn_accuracy(f[:rows], v.in_labels[:rows], int(v.number("hp_neighbours"))) for f in v.in_reps]
        same(torch.tensor(found, dtype=D), v.out_knn_acc, 1e-6)
        classes = int(v.in_labels.max()) + 1
        for kkt, want in (("best", v.out_transfer_best), ("always", v.out_transfer_always), ("all", v.out_transfer_all)):
            chosen = m.donors(found, 1 / classes, kkt)
            start = torch.stack([v.in_task_scores[k] for k in chosen]).mean(0) if chosen else v.in_new_scores
            same(start, want, 1e-12)
        chosen = m.donors(found, 1 / classes, "all")
        assert chosen == v.out_selected_all.tolist()
        same(torch.stack([v.in_task_scores[k] for k in chosen]).mean(0), v.out_first_after_all, 1e-12)
        assert m.donors([1 / classes] * len(found), 1 / classes, "best") == []
        same(v.in_new_scores, v.out_transfer_best_low, 0.0)


def test_osft_projects_the_gradients_of_its_factors(shared: Path) -> None:
    from cl_bench.adapters.osft import OSFT

    for v in draws(shared, "osft_projection"):
        w, k = v.in_W, int(v.number("hp_k"))
        adapter = OSFT(w, keep=(k + 0.5) / min(w.shape))
        assert adapter.k == k
        same(adapter.S.detach(), v.out_S[k:])
        same((adapter.U_high * v.out_S[:k]) @ adapter.V_high, v.out_high)
        whole = w.clone().requires_grad_()
        (v.in_x @ whole.T - v.in_target).square().sum().backward()
        same(whole.grad, v.out_grad_W, 1e-8)
        (v.in_x @ adapter(w).T - v.in_target).square().sum().backward()
        adapter.after_backward()
        u, s, vh = adapter.U.grad, adapter.S.grad, adapter.V.grad
        assert u is not None and s is not None and vh is not None
        same(u @ u.T, v.out_U_grad_outer, 1e-8, rtol=1e-10)
        same(vh.T @ vh, v.out_V_grad_outer, 1e-8, rtol=1e-10)
        same(s, v.out_S_grad, 1e-8)
        lr = v.number("hp_lr")
        moved = ((adapter.U - lr * u) * (adapter.S - lr * s)) @ (adapter.V - lr * vh) - (adapter.U * adapter.S) @ adapter.V
        same(moved.detach(), v.out_proj_dW_first)
        same(moved.detach(), v.out_research_dW)
