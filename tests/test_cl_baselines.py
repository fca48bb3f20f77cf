"""Baselines: each formula against its definition, and the bookkeeping that comparisons rely on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cl_toys import accuracy, images, learn, method, tiny_backbone, toy
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench import Batch
from cl_bench.registry import find

A, B, C = toy((0, 1)), toy((2, 3)), toy((4, 5))


def module_of(name: str):
    import sys

    return sys.modules[find("cl_bench.methods", name).__module__]


# ------------------------------------------------------------------------------------------------ bounds
def test_joint_starts_again_from_the_initial_weights_and_counts_what_it_stores() -> None:
    m = learn(method("joint", lr=1e-2, epochs=20), A, B)
    assert m.stored_samples() == 80 and m.training_data(B).y.unique().tolist() == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert accuracy(m, A) > 0.9 and accuracy(m, B) > 0.9, "joint training keeps the first classes"
    before = copy.deepcopy(m.backbone.state_dict())
    m.begin(C)
    start = tiny_backbone().state_dict()
    assert all(torch.equal(v, start[k]) for k, v in m.backbone.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in m.backbone.state_dict().items())


def test_finetune_forgets_what_joint_keeps() -> None:
    m = learn(method("finetune", lr=1e-2, epochs=20), A, B)
    assert accuracy(m, B) > 0.9 and accuracy(m, A) < 0.3


@pytest.mark.parametrize("name", ["finetune", "linear_probe", "ewc", "agem"])
def test_rows_that_a_masked_loss_does_not_reach_stay(name: str) -> None:
    kw = {"strength": 0.0} if name == "ewc" else {"patterns": 1, "sample_size": 1} if name == "agem" else {}
    m = learn(method(name, masked=True, epochs=2, **kw), A)
    if name == "agem":
        m.memories, m.spaces = torch.nn.ModuleList(), []  # its memory's loss reaches them
    weight, bias = m.head.weight.detach().clone(), m.head.bias.detach().clone()
    learn(m, B)
    assert torch.equal(m.head.weight[:2], weight) and torch.equal(m.head.bias[:2], bias), "decay moved them"


@pytest.mark.parametrize("rate, moves", [(None, True), (1e-5, True), (0.0, False)])
def test_a_backbone_rate_of_zero_means_zero(rate: float | None, moves: bool) -> None:
    m = method("finetune", backbone_lr=rate, epochs=1)
    assert m.configure_optimizers().param_groups[0]["lr"] == (m.lr if rate is None else rate)
    learn(m, A)
    start = tiny_backbone().state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in m.backbone.state_dict().items()) == moves


def test_linear_probe_leaves_the_backbone_alone() -> None:
    m = learn(method("linear_probe", tiny_backbone(norm=True), epochs=3), A)
    assert all(torch.equal(v, tiny_backbone(norm=True).state_dict()[k]) for k, v in m.backbone.state_dict().items())


# ------------------------------------------------------------------------------------------------ regularisation
def test_lwf_distils_the_old_answers() -> None:
    m = learn(method("lwf", epochs=2), A)
    m.begin(B)
    x, y = images(B)
    old = m.teacher[1](m.teacher[0].forward_features(x))  # type: ignore[index]
    # To the last bit but one: the grown head is a wider product, whose sums a processor may take in another order.
    torch.testing.assert_close(m(x)[:, :2], old, rtol=1e-6, atol=1e-7, msg="the teacher answers as the network did before")
    m._trainer = None
    q, p = (old / 2).softmax(1), (m(x)[:, :2] / 2).log_softmax(1)
    expected = F.cross_entropy(m(x)[:, 2:], y - 2) - (q * p).sum(1).mean()
    m.warmup = 0
    assert torch.allclose(m.training_step(Batch(x, y), 0), expected, atol=1e-6)
    target = torch.randn(5, 3)
    distillation = module_of("lwf").distillation
    grad = torch.autograd.functional.jacobian(lambda z: distillation(z, target, 2.0), target)
    assert grad.abs().max() < 1e-7, "equal answers are the minimum"


def test_lwf_warms_up_the_new_rows_alone() -> None:
    m = learn(method("lwf", epochs=1), A)
    m.begin(B)
    assert m.epochs_for(B) == 2
    m.zero_grad()
    m._trainer = None  # of the fit before; a fit to come starts at epoch 0
    m.training_step(Batch(*images(B)), 0).backward()  # epoch 0 is the warm-up
    assert all(p.grad is None for p in m.backbone.parameters())
    assert m.head.weight.grad[:2].abs().max() == 0 < m.head.weight.grad[2:].abs().max()  # type: ignore[union-attr, index]


def test_lwf_in_mammoths_setting_asks_the_network_after_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """aimagelab/mammoth, models/lwf.py: cross-entropy over all classes seen; the old answers are those after the warm-up."""
    m = learn(method("lwf", variant="mammoth", strength=0.5, epochs=1), A)
    m.begin(B)
    x, y = images(B)
    with torch.no_grad():
        m.head.bias[:2] += torch.tensor([1.0, -1.0])  # type: ignore[union-attr, index] # what a warm-up may have moved
    monkeypatch.setattr(type(m), "current_epoch", m.warmup)
    m.on_train_epoch_start()
    before = m(x).detach()
    with torch.no_grad():
        m.head.weight += 0.1  # type: ignore[union-attr, operator]
    now = m(x)
    kept = -((before[:, :2] / 2).softmax(1) * (now[:, :2] / 2).log_softmax(1)).sum(1).mean()
    assert torch.allclose(m.training_step(Batch(x, y), 0), F.cross_entropy(now, y) + 0.5 * kept, atol=1e-6)


def test_lwf_warm_up_leaves_old_rows_and_the_trunks_norms_alone() -> None:
    m = learn(method("lwf", tiny_backbone(norm=True), epochs=1), A)
    before = {k: v.clone() for k, v in m.state_dict().items() if k.startswith(("backbone", "head"))}
    m.epochs, m.warmup = 0, 3
    learn(m, B)
    for k, v in before.items():
        now = m.state_dict()[k]
        assert torch.equal(now[: len(v)] if k.startswith("head") else now, v), k


def test_ewc_looks_at_the_classes_that_it_trains() -> None:
    m = learn(method("ewc", masked=True, epochs=1), A)
    m.begin(B)
    assert m.trains_among.ids == (2, 3)
    found = m.diagonal(B)
    assert float(found["head.weight"][:2].abs().max()) == 0 < float(found["head.weight"][2:].max()), "softmax among all seen"


def test_ewc_in_facils_setting() -> None:
    m = learn(method("ewc", variant="facil", epochs=1, batch_size=8), A)
    first = [getattr(m.anchors[0], f"fisher{k}").clone() for k in range(len(m.anchors[0].names))]
    assert not any(n.startswith("head") for n in m.anchors[0].names), "heads are left out"
    m.begin(B)
    twin = copy.deepcopy(m)
    alone = twin.diagonal(B)
    m.end(B)
    assert len(m.anchors) == 1
    for k, n in enumerate(m.anchors[0].names):
        assert torch.allclose(getattr(m.anchors[0], f"fisher{k}"), 0.5 * first[k] + 0.5 * alone[n], atol=1e-9)
    theta = m.learned()
    with torch.no_grad():
        for p in theta.values():
            p += 0.1
    sums = sum((getattr(m.anchors[0], f"fisher{k}") * 0.01).sum() for k in range(len(theta)))
    assert torch.allclose(m.penalty(), 0.5 * sums, rtol=1e-4)  # type: ignore[arg-type]
    mammoth = copy.deepcopy(m)
    mammoth.variant, mammoth.anchors = "mammoth", m.anchors
    assert torch.allclose(mammoth.anchors[0].penalty(theta), sums, rtol=1e-4), "Mammoth has no 1/2"  # type: ignore[operator, arg-type]


def slow_fisher(m, x, y, flavour: str) -> dict[str, torch.Tensor]:
    """The diagonal Fisher, one image and one backward pass at a time."""
    params = {n: p for n, p in m.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for image, label in zip(x, y, strict=True):
        log_p = F.log_softmax(m(image[None]), 1)[0]
        for c in range(len(log_p)) if flavour == "exact" else [int(label)]:
            weight = float(log_p[c].detach().exp()) if flavour == "exact" else 1.0
            grads = torch.autograd.grad(log_p[c], params.values(), retain_graph=True)
            for n, g in zip(params, grads, strict=True):
                total[n] += weight * g**2
    return {n: t / len(x) for n, t in total.items()}


@pytest.mark.parametrize("flavour", ["empirical", "exact"])
def test_fisher_equals_one_backward_pass_per_image(flavour: str) -> None:
    m = method("ewc", tiny_backbone().double(), fisher=flavour).double()
    exp = toy((0, 1, 2), n=4)
    m.begin(exp)
    m.double()
    x, y = images(exp)
    exp.data.x, plain = x.double(), exp.data  # type: ignore[attr-defined]
    fast, slow = m.diagonal(exp), slow_fisher(m.eval(), plain.x, y, flavour)  # type: ignore[attr-defined]
    assert fast.keys() == slow.keys()
    for n in slow:
        assert torch.allclose(fast[n], slow[n], rtol=1e-8, atol=1e-14), n


def test_ewc_penalty_is_the_quadratic_form_over_the_weights_that_existed() -> None:
    m = learn(method("ewc", epochs=1), A)
    assert m.penalty() == 0, "at the anchor there is no pull"
    theta = {n: p.detach().clone() for n, p in m.learned().items()}
    fisher = {n: getattr(m.anchors[0], f"fisher{k}") for k, n in enumerate(m.anchors[0].names)}
    m.begin(B)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn_like(p))
    then = {n: m.learned()[n][tuple(slice(0, s) for s in t.shape)] for n, t in theta.items()}
    expected = sum((0.5 * fisher[n] * (then[n] - t) ** 2).sum() for n, t in theta.items())
    assert torch.allclose(m.penalty(), torch.as_tensor(expected), rtol=1e-5)
    assert expected > 0


def test_offline_ewc_keeps_every_anchor_and_online_one() -> None:
    offline, online = learn(method("ewc", epochs=1), A, B), learn(method("ewc", epochs=1, mode="online", gamma=0.5), A)
    assert len(offline.anchors) == 2
    first = [getattr(online.anchors[0], f"fisher{k}").clone() for k in range(2)]
    twin = copy.deepcopy(online)
    learn(online, B)
    assert len(online.anchors) == 1
    twin.gamma = 0.0
    learn(twin, B)
    for k, f in enumerate(first):
        grown, alone = (getattr(m.anchors[0], f"fisher{k}") for m in (online, twin))
        assert torch.allclose(grown - alone, 0.5 * f, atol=1e-6), "F <- gamma F + F_t"


# ------------------------------------------------------------------------------------------------ replay
@pytest.mark.parametrize("name", ["er", "derpp"])
def test_replay_keeps_the_first_classes(name: str) -> None:
    m = learn(method(name, lr=0.1, epochs=25, buffer_size=40, batch_size=16), A, B)
    lost = learn(method("finetune", lr=1e-2, epochs=20), A, B)
    assert accuracy(m, A) > accuracy(lost, A) + 0.3, "replay must forget less than fine-tuning"
    assert m.stored_samples() == 40 and set(m.memory.y.tolist()) == {0, 1, 2, 3}


def test_derpp_loss_is_the_published_sum() -> None:
    m = learn(method("derpp", epochs=1), A)
    m.begin(B)
    x, y = images(B)
    rng = copy.deepcopy(m.rng).on("cpu")
    dark = m.memory.draw_rows(32, rng)
    labels = m.memory.draw(32, rng)
    z, now = m.memory.extra_logits[dark], m(m.memory.read(dark).x)
    expected = F.cross_entropy(m(x), y) + 0.3 * F.mse_loss(now[:, :2], z[:, :2]) + 0.5 * F.cross_entropy(m(labels.x), labels.y)
    assert torch.allclose(m.training_step(Batch(x, y), 0), expected, atol=1e-5)
    assert m.memory.extra_logits.shape[1] == 4, "what is stored now has the units of now"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_agem_projection_is_the_nearest_gradient_that_does_not_hurt(n: int, seed: int) -> None:
    g, r = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = module_of("agem").project(g, r) if find("cl_bench.methods", "agem") else None
    assert p @ r >= -1e-12, "the memory's loss may not rise"
    if g @ r >= 0:
        assert torch.equal(p, g)
    else:
        assert torch.allclose(p, g - (g @ r) / (r @ r) * r)
        assert abs(float(p @ r)) < 1e-10
        away = g - p  # Karush-Kuhn-Tucker: the change is along the memory's gradient, against it
        assert torch.allclose(away, (away @ r) / (r @ r) * r) and away @ r <= 0


def test_agem_masks_each_stored_image_to_its_own_experience() -> None:
    m = learn(method("agem", masked=True, patterns=10, sample_size=100), A, B)
    x = torch.cat([k.x for k in m.memories]).float() / 255
    y = torch.cat([k.y for k in m.memories])
    logits = m(x)
    parts = [F.cross_entropy(logits[y < 2][:, :2], y[y < 2], reduction="sum"),
             F.cross_entropy(logits[y >= 2][:, 2:], y[y >= 2] - 2, reduction="sum")]
    assert torch.allclose(m.memory_loss(), sum(parts) / len(y), atol=1e-5)  # type: ignore[arg-type]


def test_agem_projects_every_step_and_stores_what_it_says() -> None:
    m = learn(method("agem", patterns=15, batch_size=8), A)
    assert m.stored_samples() == 15
    m.begin(B)
    m.loss(m(images(B)[0]), B.data.y).backward()  # type: ignore[attr-defined]
    rng = copy.deepcopy(m.rng)
    m.on_before_optimizer_step(None)
    m.rng = rng
    params = [p for p in m.parameters() if p.requires_grad]
    r = torch.autograd.grad(m.memory_loss(), params)
    dot = sum((p.grad * q).sum() for p, q in zip(params, r, strict=True))  # type: ignore[operator]
    assert dot >= -1e-5 * sum((q * q).sum() for q in r)
    learn(m, B)
    assert m.stored_samples() == 30
