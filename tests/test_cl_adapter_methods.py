"""What the papers claim of their adapter and prototype methods, held exactly on tiny networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cl_bench import Experience, LabelSpace, TensorData, UserError
from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.engine import Compute, fit
from cl_bench.method import Method
from cl_bench.registry import find

CPU = Compute(device="cpu")
SMALL: dict[str, dict[str, Any]] = {
    "codyra": {"epochs": 3},
    "coda_prompt": {"tasks": 5, "pool": 10, "epochs": 2},
    "ranpac": {"m": 60, "epochs": 1},
    "inflora": {"epochs": 1, "r": 4, "tasks": 3},
    "mos": {"epochs": 2, "align_epochs": 2, "r": 4},
    "ease": {"epochs": 1, "r": 4},
    "aper": {"epochs": 1},
    "sema": {"epochs": 1, "descriptor_epochs": 2, "r": 4},
    "slca": {"epochs": 1, "align_epochs": 1, "samples": 16},
    "l2p": {"epochs": 1, "length": 2},
    "dualprompt": {"epochs": 1, "g_at": r"blocks\.0\.attn", "e_at": r"blocks\.1\.attn"},
    "lae": {"epochs": 1},
    "sdlora": {"epochs": 1},
    "olora": {"epochs": 1, "r": 3},
    "osft": {"epochs": 1, "lr": 1e-2},
    "lora": {"epochs": 1},
    "ncm": {},
}


def backbone(depth: int = 2, width: int = 24) -> Backbone:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=width,
        depth=depth,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=0,
        global_pool="token",
    )
    return Backbone(model, num_features=width, preprocess=Preprocess(8)).eval()


def experience(k: int, n: int = 24) -> Experience:
    """Two classes (2k, 2k + 1): noise around class patterns that differ between experiences."""
    g = torch.Generator().manual_seed(k)
    y = torch.arange(n) % 2 + 2 * k
    pattern = torch.rand(2, 3, 8, 8, generator=g)
    x = (pattern[y - 2 * k] + 0.1 * torch.randn(n, 3, 8, 8, generator=g)).clamp(0, 1)
    return Experience(f"e{k}", LabelSpace((2 * k, 2 * k + 1)), TensorData((x * 255).to(torch.uint8), y))


def build(name: str, **settings: Any) -> Method:
    torch.manual_seed(1)
    return find("cl_bench.methods", name)(backbone(), **{**SMALL[name], **settings})


def learned(name: str, count: int = 2, **settings: Any) -> Method:
    method = build(name, **settings)
    for k in range(count):
        fit(method, experience(k), CPU, seed=k)
    return method


def images(k: int = 0) -> torch.Tensor:
    return experience(k).data.x.float() / 255  # type: ignore[attr-defined]


def features(method: Method, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return method.backbone.forward_features(x)


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", sorted(SMALL))
def test_two_experiences_then_predicting_changes_nothing(name: str) -> None:
    method = learned(name)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    trainable = [p.requires_grad for p in method.parameters()]
    random = torch.get_rng_state()
    first = method.predict(images(), method.seen)
    assert first.shape == (24, 4) and first.isfinite().all()
    assert torch.equal(first, method.predict(images(), method.seen)), "a second question is answered differently"
    one = torch.cat([method.predict(x[None], method.seen) for x in images()])
    assert torch.allclose(one, first, atol=1e-4), "the answer depends on the rest of the batch"
    assert torch.equal(copy.deepcopy(method).predict(images(), method.seen), first)
    assert all(torch.equal(state[k], v) for k, v in method.state_dict().items())
    assert trainable == [p.requires_grad for p in method.parameters()]
    assert torch.equal(random, torch.get_rng_state())
    task = method.predict(images(), LabelSpace((2, 0)))
    assert torch.allclose(task, first[:, [2, 0]], atol=1e-6), "columns do not follow the space"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_same_classes_may_come_again(name: str) -> None:
    method = build(name)
    again = Experience("again", LabelSpace((0, 1)), TensorData(experience(7).data.x, experience(0).data.y))  # type: ignore[attr-defined]
    for k, exp in enumerate((experience(0), again)):
        fit(method, exp, CPU, seed=k)
    answer = method.predict(images(), LabelSpace((0, 1)))
    assert answer.shape == (24, 2) and answer.isfinite().all()


def test_a_checkpoint_holds_everything() -> None:
    from cl_bench.checkpoint import restore, snapshot

    for name in SMALL:
        method = learned(name)
        tree, tensors = snapshot(method)
        twin = restore(tree, tensors, build(name))
        assert torch.equal(twin.eval().predict(images(1), method.seen), method.predict(images(1), method.seen)), name
        for m in (method, twin):
            fit(m, experience(2), CPU, seed=9)
        assert torch.equal(twin.predict(images(2), method.seen), method.predict(images(2), method.seen)), name


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"ncm", "slca", "ranpac"}))
def test_a_backbone_without_the_layers_is_refused_with_layer_names(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UserError, match="matches no layer"):
        find("cl_bench.methods", name)(Backbone(model, num_features=4, preprocess=Preprocess(8)))


# ---------------------------------------------------------------------- prototypes and regression
def test_ncm_is_cosine_to_raw_class_means() -> None:
    method, x = learned("ncm"), images(1)
    means = []
    for k in range(2):
        f, y = features(method, images(k)), experience(k).data.y  # type: ignore[attr-defined]
        means += [f[y == c].mean(0) for c in (2 * k, 2 * k + 1)]
    expected = F.cosine_similarity(features(method, x)[:, None], torch.stack(means)[None], dim=2)
    assert torch.allclose(method.predict(x, method.seen), expected, atol=1e-6)


def test_ranpac_is_the_ridge_regression_of_all_data_at_once() -> None:
    method = learned("ranpac", count=3)
    x = torch.cat([images(k) for k in range(3)])
    y = torch.cat([experience(k).data.y for k in range(3)])  # type: ignore[attr-defined]
    h = torch.relu(features(method, x) @ method.project).double()
    at_once = torch.linalg.solve(h.T @ h + method.ridge * torch.eye(60).double(), h.T @ F.one_hot(y, 6).double())
    assert torch.allclose(h @ method.weight, h @ at_once, atol=1e-5)
    assert torch.allclose(method.root.T @ method.root, h.T @ h, atol=1e-6 * float(h.square().sum()))
    assert method.ridge in [10.0**p for p in range(-8, 9)]


def test_ranpac_and_aper_train_in_the_first_experience_only() -> None:
    for name in ("ranpac", "aper"):
        method = learned(name, count=1)
        before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
        assert not torch.equal(features(method, images()), backbone().forward_features(images()))
        fit(method, experience(1), CPU, seed=1)
        assert all(torch.equal(before[k], v) for k, v in method.backbone.state_dict().items()), name


@pytest.mark.parametrize("pet", ["adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune"])
def test_aper_joins_frozen_and_tuned_features(pet: str) -> None:
    method = learned("aper", pet=pet, lr=0.1)
    both = method.features(images())
    assert torch.allclose(both[:, :24], backbone().forward_features(images()), atol=1e-5), (
        "the first half is not frozen"
    )
    assert (both[:, 24:] - both[:, :24]).abs().max() > 1e-4, "the second half was not tuned"


# ---------------------------------------------------------------------- subspaces
def test_osft_updates_are_orthogonal_to_the_protected_directions() -> None:
    method = learned("osft", count=1)
    adapters = method.adapters
    method.begin(experience(1))
    before = {at: adapters.weight(at).clone() for at in adapters.sites}
    protected = {at: (a.U_high.clone(), a.V_high.clone()) for at, a in adapters.each()}
    method.learned -= 1  # begin() was called by hand: fit calls it again
    fit(method, experience(1), CPU, seed=5)
    for at, (u, v) in protected.items():
        delta = adapters.weight(at) - before[at]
        assert delta.norm() > 1e-3, "nothing was learned"
        assert (u.T @ delta).abs().max() < 1e-6 * max(1.0, float(delta.norm())) and u.shape[1] > 0, at
        assert (delta @ v.T).abs().max() < 1e-6 * max(1.0, float(delta.norm())), at


def test_inflora_moves_only_within_the_new_inputs_and_outside_the_old() -> None:
    method = learned("inflora", count=1, r=3, lamda=0.5)
    assert method.bases and not any(method.complement.values())
    fresh = method.covariances(experience(1))
    basis = {k: v.clone() for k, v in method.bases.items()}
    before = {at: method.adapters.weight(at).clone() for at in method.adapters.sites}
    fit(method, experience(1), CPU, seed=1)
    for at, m in basis.items():
        delta = (method.adapters.weight(at) - before[at]).double()
        assert delta[:24].abs().max() == 0, "queries are not adapted"
        assert delta[24:].norm() > 1e-6
        assert (delta @ m).abs().max() < 1e-6, "the update meets the old inputs' space"
        span = fresh[at] - m @ (m.T @ fresh[at])
        left = torch.linalg.svd(span)[0][:, :3]
        assert (delta - delta @ left @ left.T).abs().max() < 1e-6, "the update leaves the new inputs' span"
        keys, values = delta[24:48], delta[48:]
        assert torch.linalg.matrix_rank(torch.cat([keys, values]), atol=1e-7) <= 3, "keys and values share A"


def test_inflora_keeps_the_complement_once_the_space_is_large() -> None:
    method = learned("inflora", count=2, lamda=0.9999999)
    assert any(method.complement.values())
    for at, basis in method.bases.items():
        eye = torch.eye(basis.shape[1], dtype=basis.dtype)
        assert torch.allclose(basis.T @ basis, eye, atol=1e-8)
        assert basis.shape[1] <= 12, at


def test_olora_penalty_is_zero_at_orthogonality_and_counts_overlap() -> None:
    method = learned("olora", count=1)
    method.begin(experience(1))
    groups = [[a for _, a in method.adapters.each(n)] for n in method.adapters.names]
    with torch.no_grad():
        for old, new in zip(*groups, strict=True):
            rows = torch.linalg.qr(torch.randn(24, 6))[0].T
            old.A.copy_(rows[:3])
            new.A.copy_(rows[3:])
        assert method.overlap() < 1e-4
        for old, new in zip(*groups, strict=True):
            new.A.copy_(old.A)
        by_hand = sum((o.A @ n.A.T).abs().sum() for o, n in zip(*groups, strict=True))
    assert torch.allclose(method.overlap(), by_hand) and by_hand > 1
    assert [p.requires_grad for p in (groups[0][0].A, groups[1][0].A)] == [False, True]


def test_codyra_closed_ranks_can_be_removed_and_merged_without_change() -> None:
    method = build("codyra").double()
    method.begin(experience(0))
    g = torch.Generator().manual_seed(0)
    for _, adapter in method.adapters.each():
        with torch.no_grad():
            adapter.B += torch.randn(adapter.B.shape, generator=g).double()
            adapter.gate[torch.rand(adapter.r, generator=g) < 0.5] = 0
    x = images().double()
    expected = method(x)
    assert any(a.open_ranks < a.r for _, a in method.adapters.each())
    for _, adapter in method.adapters.each():
        keep = adapter.gate != 0
        adapter.A = torch.nn.Parameter(adapter.A.detach()[keep])
        adapter.B = torch.nn.Parameter(adapter.B.detach()[:, keep])
        adapter.gate = torch.nn.Parameter(adapter.gate.detach()[keep])
    assert (method(x) - expected).abs().max() < 1e-10, "removing closed ranks changed the output"
    method.adapters.merge_()
    assert (method(x) - expected).abs().max() < 1e-10, "merging changed the output"


def test_codyra_threshold_is_dense_first_and_then_climbs_in_fifty_levels() -> None:
    method = build("codyra")
    method.total_steps = 500
    walk = [method.threshold(s) for s in range(1, 501)]
    assert walk[:250] == [0.0] * 250 and walk[-1] == pytest.approx(5e-3)
    assert walk == sorted(walk) and len(set(walk)) == 50
    gate = torch.tensor([-0.5, 0.004, 0.006, 1.0])
    from cl_bench.adapters._prox import shrink

    shrink(gate, 0.005)
    assert torch.allclose(gate, torch.tensor([-0.495, 0.0, 0.001, 0.995]))
    released = torch.tensor([0.006, 0.011])
    shrink(released, 0.005, released=True)
    assert torch.allclose(released, torch.tensor([0.0, 0.006])), "the authors' statements close everything below 2k"


def test_codyra_closes_ranks_and_does_not_grow() -> None:
    method = build("codyra", kappa_max=0.05, epochs=40)
    count = sum(p.numel() for p in method.backbone.parameters())
    for k in range(2):
        fit(method, experience(k), CPU, seed=k)
    sites = len(method.adapters.sites)
    full = 16 * (2 * (3 + 3))  # two blocks: q, k, v and three more linears of rank 16
    assert sites == 8 and 0 < sum(method.open_ranks[0].values()) < full
    assert sum(p.numel() for p in method.backbone.parameters()) == count


def test_sdlora_has_one_magnitude_per_task_and_freezes_old_directions() -> None:
    method = learned("sdlora", count=1)
    old = [(a.A.clone(), a.B.clone()) for _, a in method.adapters.each("default")]
    fit(method, experience(1), CPU, seed=1)
    magnitudes = {id(a.magnitude) for n in method.adapters.names for _, a in method.adapters.each(n)}
    assert len(magnitudes) == 2, "one magnitude per task, shared by all layers"
    for (a, b), (at, adapter) in zip(old, method.adapters.each("default"), strict=True):
        assert torch.equal(a, adapter.A) and torch.equal(b, adapter.B)
        weight = method.adapters.weight(at)[:24]
        unit = (b @ a) / (b.norm() * a.norm())
        assert torch.allclose(adapter(weight) - weight, adapter.magnitude * unit, atol=1e-6), (
            "not magnitude x direction"
        )
    assert float(adapter.magnitude.detach()) != pytest.approx(0.8, abs=1e-9), "old magnitudes go on learning"


# ---------------------------------------------------------------------- adapters per task
def test_lae_offline_adapter_is_the_moving_average_and_the_surer_answer_wins() -> None:
    method = learned("lae", count=1, decay=0.9, epochs=2, freeze_epochs=1, lr=0.05)
    assert "offline" not in method.adapters.names
    start = [p.detach().clone() for _, a in method.adapters.each("default") for p in a.parameters()]
    trace: list[list[torch.Tensor]] = []
    after = method.on_train_batch_end

    def record(*args: Any) -> None:
        after(*args)
        trace.append([q.detach().clone() for _, q in method.pairs()])

    method.__dict__["on_train_batch_end"] = record
    fit(method, experience(1, n=48), CPU, seed=1)
    del method.__dict__["on_train_batch_end"]
    assert len(trace) == 4, "two batches of 24 in each of two epochs"
    for now in trace[:2]:
        assert all(torch.equal(a, b) for a, b in zip(now, start, strict=True)), "the first epoch trains the head alone"
    assert any(not torch.equal(a, b) for a, b in zip(trace[-1], start, strict=True))
    slow = start
    for now in trace:
        slow = [0.9 * s + 0.1 * n for s, n in zip(slow, now, strict=True)]
    for (off, _), expected in zip(method.pairs(), slow, strict=True):
        assert torch.allclose(off, expected, atol=1e-6), "not the moving average of the online adapter"
    online = method(images()).softmax(1)
    method.adapters.use("offline")
    offline = method(images()).softmax(1)
    method.adapters.use("default")
    assert torch.allclose(method.predict(images(), method.seen).exp(), torch.maximum(online, offline), atol=1e-6)


@pytest.mark.parametrize("pet", ["adapter", "lora", "prefix"])
def test_lae_has_its_three_forms(pet: str) -> None:
    method = learned("lae", pet=pet)
    width, blocks = 24, 2
    per_block = {
        "adapter": 2 * width * 5 + 5 + width + 1,
        "lora": 2 * (5 * 2 * width + 1),
        "prefix": 2 * 10 * width + 1,
    }
    for name in ("default", "offline"):
        assert sum(p.numel() for _, a in method.adapters.each(name) for p in a.parameters()) == blocks * per_block[pet]


def test_ease_grows_one_adapter_per_task_and_fills_missing_prototypes() -> None:
    method = learned("ease", count=3)
    assert len(method.adapters.names) == 3 and method.prototypes.shape == (3, 6, 24)
    p, task = method.prototypes, method.task
    assert task.tolist() == [0, 0, 1, 1, 2, 2]
    for name, j in zip(method.adapters.names, range(3), strict=True):
        method.adapters.use(name)
        f, y = features(method, images(2)), experience(2).data.y  # type: ignore[attr-defined]
        assert torch.allclose(p[j, 4], f[y == 4].mean(0), atol=1e-5), "a new class has its mean in every subspace"
    share = F.cosine_similarity(p[0, 0][None], p[0, 2:], dim=1).softmax(0)
    assert torch.allclose(p[1, 0], share @ p[1, 2:], atol=1e-5), "donors are all classes of task 1 and later"
    x, scores = images(), []
    for name, protos in zip(method.adapters.names, p, strict=True):
        method.adapters.use(name)
        scores.append(F.cosine_similarity(features(method, x)[:, None], protos[None], dim=2))
    by_hand = scores[1][:, 2] + 0.1 / 2 * (scores[0][:, 2] + scores[2][:, 2])
    assert torch.allclose(method.predict(x, method.seen)[:, 2], by_hand, atol=1e-5)


def test_mos_grows_an_adapter_per_task_and_draws_it_to_the_earlier_ones() -> None:
    method = learned("mos", count=2)
    assert method.adapters.names == ["default", "task1"] and method.task == [0, 0, 1, 1]
    first, second = (
        [p.detach().clone() for _, a in method.adapters.each(n) for p in a.parameters()] for n in method.adapters.names
    )
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        for _, a in method.adapters.each("task1"):
            for p in a.parameters():
                p += 1.0
    moved = [p.detach().clone() for _, a in method.adapters.each("task1") for p in a.parameters()]
    method.on_train_batch_end(None, None, 0)
    now = [p for _, a in method.adapters.each("task1") for p in a.parameters()]
    for a, m, n in zip(first, moved, now, strict=True):
        assert torch.allclose(n, 0.9 * m + 0.1 * a, atol=1e-6)
    again = [p for _, a in method.adapters.each("default") for p in a.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "stored adapters stay"
    method.begin(experience(2))
    copied = [p for _, a in method.adapters.each("task2") for p in a.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(copied, now, strict=True)), (
        "a new adapter starts as a copy of the last"
    )


def test_mos_looks_up_the_adapter_of_the_predicted_class() -> None:
    method, x = learned("mos", count=3), images(1)
    feats = []
    for name in method.adapters.names:
        method.adapters.use(name)
        feats.append(features(method, x))
    near = method.nearest(feats[0])
    for row in range(len(x)):
        chosen = method.task[int(near[row].argmax())]
        for _ in range(4):
            chosen = method.task[int(method.head(feats[chosen][row : row + 1]).argmax())]
        score = method.head(feats[chosen][row : row + 1]).softmax(1)[0] + (3 * near[row]).softmax(0)
        assert torch.allclose(method.predict(x, method.seen)[row].exp(), score, atol=1e-5)


def test_sema_grows_only_where_the_input_is_new_and_at_most_once_per_block() -> None:
    known = learned("sema", count=1, threshold=1e9)
    fit(known, experience(1), CPU, seed=1)
    assert [len(m.experts) for m in known.mixtures] == [1, 1], "nothing is new below the threshold"
    method = learned("sema", count=1, threshold=0.0, expandable=1)
    first = copy.deepcopy(method.mixtures[1].experts[0].state_dict())
    fit(method, experience(1), CPU, seed=1)
    assert [len(m.experts) for m in method.mixtures] == [1, 2], "only the last block may grow, and once"
    now = method.mixtures[1].experts[0].state_dict()
    assert all(torch.equal(first[k], now[k]) for k in first), "old experts are frozen"
    assert method.epochs_for(experience(1)) == 0, "the expansion's own training replaces fit"
    fit(method, experience(2), CPU, seed=2)
    assert len(method.mixtures[1].experts) == 3
    assert not any(p.requires_grad for m in method.mixtures for p in m.parameters())


def test_sema_expert_has_the_published_size() -> None:
    import sys

    experts = sys.modules[find("cl_bench.methods", "sema").__module__.rpartition(".")[0] + "._experts"]
    layer = torch.nn.Module()
    layer.norm2 = torch.nn.LayerNorm(768)
    assert sum(p.numel() for p in experts.Expert(layer, 16, 128, 500).parameters()) == 223_633


# ---------------------------------------------------------------------- fine-tuning with alignment
def test_slca_freezes_old_rows_and_answers_with_an_aligned_copy() -> None:
    method = learned("slca", count=1)
    rows = method.head.weight.detach().clone(), method.head.bias.detach().clone()
    fit(method, experience(1), CPU, seed=1)
    assert torch.equal(method.head.weight[:2], rows[0]) and torch.equal(method.head.bias[:2], rows[1])
    assert not torch.equal(method.aligned.weight, method.head.weight)
    f = features(method, images())
    assert torch.allclose(method.predict(images(), method.seen), method.aligned(f))
    groups = method.configure_optimizers()[0][0].param_groups
    assert [g["lr"] for g in groups] == [1e-4, 0.01]
    drawn, labels = method.gaussians.sample(4000, torch.Generator().manual_seed(0))
    own = drawn[labels == 3]
    assert torch.allclose(own.mean(0), method.gaussians.means[3], atol=0.1)
    root = method.gaussians.roots[3]
    assert torch.allclose(torch.cov(own.T), root @ root.T, atol=0.15 * float((root @ root.T).abs().max()))


# ---------------------------------------------------------------------- prompts
def test_l2p_puts_prompts_before_the_class_token_and_reads_their_mean() -> None:
    method = learned("l2p")
    x, model = images(), method.backbone.model
    with torch.no_grad():
        cosine = F.normalize(method.query(x), dim=1) @ F.normalize(method.keys, dim=1).T
        ids = cosine.topk(4, 1).indices
        tokens = model._pos_embed(model.patch_embed(x))
        tokens = torch.cat([method.prompts[ids].flatten(1, 2), tokens], 1)
        for block in model.blocks:
            tokens = block.layer(tokens)
        by_hand = method.head(model.norm(tokens)[:, :8].mean(1))
    assert torch.allclose(method.predict(x, method.seen), by_hand, atol=1e-5)
    votes = method.choose(
        torch.tensor(
            [[9.0, 8, 7, 6, 0, 0, 0, 0, 0, 1], [9, 8, 7, 0, 6, 0, 0, 0, 0, 1], [9, 8, 0, 7, 6, 0, 0, 0, 0, 1]]
        ),
        together=True,
    )
    assert (votes == votes[0]).all() and {0, 1} <= set(votes[0].tolist())


def test_dualprompt_prefixes_are_extra_keys_and_values() -> None:
    from cl_bench.adapters._attention import attend

    layer, x = backbone().model.blocks[0].attn, torch.randn(2, 5, 24)
    far = torch.full((3, 24), -1e4) * torch.ones(3, 24)
    layer.eval()
    plain = layer(x)
    q = layer.qkv(x).chunk(3, -1)[0]
    silent = -1e4 * q.sign()[:, :1]  # the first query's keys of score minus infinity
    got = attend(layer, x, silent, torch.zeros(2, 1, 24))
    assert torch.allclose(got[:, 0], plain[:, 0], atol=1e-5), "a key that nothing attends to changes nothing"
    assert not torch.allclose(attend(layer, x, far, torch.ones(3, 24)), plain, atol=1e-3)
    doubled = attend(layer, x, *layer.qkv(x).chunk(3, -1)[1:])
    assert torch.allclose(doubled, plain, atol=1e-5), "each key twice leaves attention as it was"
    from cl_bench.adapters import attach

    method = learned("dualprompt")
    assert len(method.e) == len(method.keys) == 2
    assert [p.requires_grad for p in method.e] == [False, True]
    with torch.no_grad():  # the nearest key says which E-prompt is used
        method.keys[0].copy_(method.query(images()).mean(0))
        method.keys[1].copy_(-method.keys[0])
        assert torch.allclose(method(images()), method.prompted(images(), method.e[0]), atol=1e-5)
    with pytest.raises(UserError, match="no attention"):
        bad = attach(backbone(), type(next(iter(method.general.each()))[1]), r"blocks\.0\.mlp")
        slot = next(iter(bad.each()))[1]
        slot.lent = torch.zeros(2, 1, 24)
        next(iter(bad.sites.values()))(torch.zeros(1, 5, 24))


def test_coda_components_start_orthonormal_and_old_ones_are_frozen() -> None:
    method = learned("coda_prompt", count=1)
    method.begin(experience(1))
    for parts in (method.P, method.K, method.A):
        new = parts[1].detach().flatten(2)
        old = parts[0].detach().flatten(2)
        for layer in range(2):
            assert torch.allclose(new[layer] @ new[layer].T, torch.eye(2), atol=1e-5)
            assert (new[layer] @ old[layer].T).abs().max() < 2e-2, "new rows start orthogonal to the old ones"
        assert [p.requires_grad for p in parts] == [False, True]
    q = torch.randn(3, 24)
    k, a, p = (torch.cat(list(z), 1)[0] for z in (method.K, method.A, method.P))
    weight = F.cosine_similarity(q[:, None] * a[None], k[None], dim=2)
    expected = (weight[:, :, None, None] * p[None]).sum(1)
    keys, values = method.prefixes(q)[0]
    assert torch.allclose(torch.cat([keys, values], 1), expected, atol=1e-5) and keys.shape == (3, 4, 24)
    with pytest.raises(UserError, match="multiple of tasks"):
        build("coda_prompt", tasks=3)
    for k in range(2, 5):
        method.begin(experience(k))
    with pytest.raises(UserError, match="are used"):
        method.begin(experience(5))
