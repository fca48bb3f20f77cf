"""GPM, CUBER and ExSSNeT: what they protect stays as it was."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from cl_toys import accuracy, images, learn, method, tiny_backbone, toy

from cl_bench import LabelSpace
from cl_bench.adapters import rows_of
from cl_bench.registry import find

A, B, C = toy((0, 1)), toy((2, 3)), toy((4, 5))


def part(name: str):
    return sys.modules[f"{find('cl_bench.methods', 'gpm').__module__.rpartition('.')[0]}.{name}"]


find("cl_bench.methods", "gpm")
find("cl_bench.methods", "exssnet")


# ------------------------------------------------------------------------------------------------ subspaces
def test_input_rows_are_what_the_flat_weight_is_multiplied_with() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    rows = rows_of(conv, x)
    assert torch.allclose(rows @ conv.weight.flatten(1).T, conv(x).flatten(2).transpose(1, 2).reshape(-1, 5), atol=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_new_directions_are_the_fewest_singular_vectors(threshold: float) -> None:
    g = torch.Generator().manual_seed(0)
    old, x = (torch.randn(12, 30, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 12)[:, None] for _ in range(2))
    basis = torch.linalg.svd(old, full_matrices=False).U[:, :4]
    new = part("_subspace").new_directions(x @ x.T, basis, threshold)
    # the paper's criterion, spelled out with a singular value decomposition of the residual
    residual = x - basis @ basis.T @ x
    u, s, _ = torch.linalg.svd(residual, full_matrices=False)
    total, kept = (x**2).sum(), ((basis.T @ x) ** 2).sum()
    k = next((i for i in range(12) if kept + (s[:i] ** 2).sum() >= threshold * total), 12)
    assert new.shape[1] == k
    assert torch.allclose(new @ new.T, u[:, :k] @ u[:, :k].T, atol=1e-8)
    grown = part("_subspace").orthonormal(basis, new)
    assert torch.allclose(grown.T @ grown, torch.eye(grown.shape[1], dtype=torch.float64), atol=1e-10)


def test_a_tasks_own_directions_may_be_old_ones() -> None:
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.1], dtype=torch.float64))
    basis = torch.eye(4, dtype=torch.float64)[:, [0, 3]]
    old, new = part("_subspace").own_directions(x @ x.T, basis, 0.9)
    assert old.tolist() == [0] and torch.allclose(new.abs(), torch.eye(4, dtype=torch.float64)[:, [1]])


# ------------------------------------------------------------------------------------------------ GPM and CUBER
@pytest.mark.parametrize("name", ["gpm", "cuber"])
def test_updates_stay_out_of_the_old_inputs_span(name: str) -> None:
    m = learn(method(name, epochs=5, lr=0.05, images=40, **({"epsilon2": 1.0} if name == "cuber" else {})), A)
    before = {n: m.backbone.get_submodule(n).weight.detach().double().clone() for n in m.layers}
    bases = [b.detach().clone() for b in m.bases]
    learn(m, B)  # cuber with epsilon2 = 1: no gradients agree, so every related subspace is closed
    moved = 0.0
    for n, basis in zip(m.layers, bases, strict=True):
        change = (m.backbone.get_submodule(n).weight.detach().double() - before[n]).flatten(1)
        moved = max(moved, float(change.norm()))
        assert float((change @ basis).norm()) <= 1e-5 * max(1.0, float(change.norm())), f"{n} moved inside the old span"
    assert moved > 1e-3, "the new task must still learn"


def test_gpm_keeps_what_everything_else_would_change() -> None:
    m = learn(method("gpm", tiny_backbone(norm=True), epochs=5, lr=0.05, threshold=1.0, images=40), A)
    held = LabelSpace((0, 1))
    x, _ = images(A)
    before = m.eval().predict(x, held)
    others = {n: v.clone() for n, v in m.backbone.state_dict().items() if n.rpartition(".")[0] not in m.layers or "bias" in n}
    learn(m, B, C)
    assert torch.allclose(m.eval().predict(x, held), before, atol=1e-3), "with all energy kept, old answers stay"
    assert all(torch.equal(v, m.backbone.state_dict()[n]) for n, v in others.items()), "biases and BatchNorm are frozen"


def test_cuber_regimes() -> None:
    m = learn(method("cuber", epochs=1, images=40), A)
    basis = m.subspace(0, 0).float()
    inside, old = basis[:, :1].T.expand(8, -1), m.gradients[0]
    along = old if float((old @ basis).norm()) > 0.5 * float(old.norm()) else None
    weak = torch.zeros(8, basis.shape[0])
    free = torch.eye(basis.shape[0]) - basis @ basis.T
    weak[0] = free[:, int(free.norm(dim=0).argmax())]
    assert m.regime(weak, 0, 0)[0] == 1, "orthogonal to the old inputs: weakly related"
    sign = 1.0 if float((inside * old).sum()) > 0 else -1.0
    assert m.regime(sign * inside, 0, 0)[0] == 3 and m.regime(-sign * inside, 0, 0)[0] == 2
    if along is not None:
        assert m.regime(along, 0, 0)[0] == 3, "a gradient agrees with itself"


def test_cuber_scales_are_the_identity_at_first_and_forward_transfer_later() -> None:
    m = learn(method("cuber", epochs=1, epsilon1=0.0, images=40), A)
    x, _ = images(B)
    m.begin(B)
    assert m.scales, "with epsilon1 = 0 everything is related"
    assert torch.allclose(m(x), m.head(m.backbone.forward_features(x)), atol=1e-6)
    key = next(iter(m.scales))
    _, layer, old = (int(p) for p in key.split("_"))
    with torch.no_grad():
        m.scales[key].add_(torch.randn_like(m.scales[key]))
    w, b, q = m.weight(layer).flatten(1), m.subspace(layer, old).float(), m.scales[key]
    expected = w + w @ b @ q @ b.T - w @ b @ b.T
    assert torch.allclose(m.scaled(1)[f"backbone.{m.layers[layer]}.weight"].flatten(1), expected, atol=1e-5)
    assert not m.scaled(0), "the first task has no scales"


def test_cuber_asks_the_tasks_gradient_alone_and_averages_it() -> None:
    m = learn(method("cuber", epochs=1, images=40, strength=1e3), A)
    m.begin(B)
    m.window = 50
    for layer in range(len(m.layers)):
        m.regimes[layer, 0] = 3
        old = m.gradients[layer].view_as(m.weight(layer))
        m.means[layer] = old.flatten(1).clone()
        with torch.no_grad():  # drift along the old gradient: the cost's slope points against it, a thousand times as strong
            m.weight(layer).add_(old)
        m.weight(layer).grad = old.clone()
    m.on_before_optimizer_step(None)
    assert set(m.regimes.values()) == {3}, "the cost of drift is no disagreement of the task"
    pulled = [m.weight(k).grad for k in range(len(m.layers))]
    for k, g in enumerate(pulled):
        drift = (m.weight(k).detach() - m.before[k]).flatten(1).double()
        inside = drift @ m.subspace(k, 0)
        unit = (inside / inside.norm()) @ m.subspace(k, 0).T
        added = g.flatten(1).double() - m.gradients[k].double()
        assert torch.allclose(added, 1e3 * unit, rtol=1e-3, atol=1e-2), "and yet it is paid"
    for layer in range(len(m.layers)):
        m.weight(layer).grad = -m.gradients[layer].view_as(m.weight(layer)).clone()
    m.on_before_optimizer_step(None)
    assert set(m.regimes.values()) == {3}, "one batch of noise demotes nothing"


def test_cuber_transfers_backward_where_there_is_something_to_transfer() -> None:
    """The same classes twice, few images first: what the second task learns inside the first one's subspace helps it.

    With other classes there is little to show: their head is new and random, and its gradient seldom agrees.
    """
    four = (0, 1, 2, 3)
    few, many, test = (toy(four, n=n, seed=k, clear=0.25) for k, n in ((3, 10), (4, 150), (5, 300)))
    gain = {}
    for name in ("cuber", "gpm"):
        m = learn(method(name, lr=0.03, epochs=20, batch_size=16, images=40), few)
        before = accuracy(m, test)
        learn(m, many)
        gain[name] = accuracy(m, test) - before
        assert name == "gpm" or m.let_go[-1] > 0, "no layer let go to the end"
    assert gain["cuber"] > 0.2 > gain["gpm"] > 0, gain  # 0.29 and 0.12


def test_cuber_lets_go_only_where_gradients_agree() -> None:
    m = learn(method("cuber", epochs=1, images=40), A)
    m.begin(B)
    for layer in range(len(m.layers)):
        m.regimes[layer, 0] = 3
        m.weight(layer).grad = m.gradients[layer].view_as(m.weight(layer)).clone()
    kept = [m.weight(k).grad.clone() for k in range(len(m.layers))]
    m.on_before_optimizer_step(None)
    assert all(torch.allclose(m.weight(k).grad, g, atol=1e-6) for k, g in enumerate(kept))
    for k, g in enumerate(kept):
        m.weight(k).grad = -g
    m.on_before_optimizer_step(None)
    for k in range(len(m.layers)):
        inside = m.weight(k).grad.flatten(1).double() @ m.subspace(k, 0)
        assert m.regimes[k, 0] == 2 and float(inside.norm()) < 1e-5, "disagreement demotes to regime 2 and projects"


# ------------------------------------------------------------------------------------------------ ExSSNeT
@pytest.mark.parametrize("base", ["signed_constant", "pretrained"])
def test_exssnet_trained_weights_never_overlap_and_nothing_is_forgotten(base: str) -> None:
    m = method("exssnet", tiny_backbone(norm=True), base=base, mask_epochs=2, weight_epochs=3, knn=3)
    weights, answers, changed = [], [], []
    for exp in (A, B, C):
        before = [m.weight(n).detach().clone() for n in m.layers]
        learn(m, exp)
        weights.append(before)
        changed.append([m.weight(n).detach() != w for n, w in zip(m.layers, before, strict=True)])
        answers.append(m.eval().predict(images(exp)[0], exp.space).clone())
    masks = [packed.read() for packed in m.masks]
    for k in range(len(m.layers)):
        share = [float(mask[k].float().mean()) for mask in masks]
        assert share == pytest.approx([0.1] * 3, abs=0.05)
        touched = torch.stack([c[k] for c in changed]).int().sum(0)
        assert int(touched.max()) <= 1, "a weight was trained by two tasks"
        for t in range(3):
            earlier = torch.stack([masks[j][k] for j in range(t)]).any(0) if t else torch.zeros_like(masks[0][k])
            assert not (changed[t][k] & (~masks[t][k] | earlier)).any(), "a weight outside the free part of the mask moved"
    assert any(bool(c.any()) for c in changed[0])
    for exp, then in zip((A, B, C), answers, strict=True):
        # To the last bit but one: the grown head is a wider product, whose sums a processor may take in another order.
        torch.testing.assert_close(m.eval().predict(images(exp)[0], exp.space), then, rtol=1e-6, atol=1e-7)


def test_supermask_pieces() -> None:
    pieces = part("_supermask")
    scores = torch.randn(7, 9, requires_grad=True)
    mask = pieces.top(scores, 0.25)
    assert int(mask.sum()) == round(0.25 * 63)
    assert scores.detach().abs()[mask.bool()].min() >= scores.detach().abs()[~mask.bool()].max()
    (3 * mask).sum().backward()
    assert torch.equal(scores.grad, 3 * scores.detach().sign()), "straight-through, by way of |score|"  # type: ignore[arg-type]
    bits = pieces.pack(mask.bool())
    assert bits.dtype == torch.uint8 and bits.numel() == 8 and torch.equal(pieces.unpack(bits, (7, 9)), mask.bool())


def test_exssnet_transfers_the_scores_of_the_mask_that_helps() -> None:
    m = learn(method("exssnet", base="pretrained", mask_epochs=2, weight_epochs=0, kkt="best", knn=3), A)
    again = toy((0, 1), seed=5)
    assert m.donors(again) == [0], "features of the same classes classify above chance"
    m.masks.append(copy.deepcopy(m.masks[0]))
    m.kept.append(copy.deepcopy(m.kept[0]))
    for k in range(len(m.layers)):
        getattr(m.masks[1], f"bits{k}").zero_()
    assert m.donors(again) == [0], "an empty mask gives features that say nothing"
    m.begin(again)
    for k in range(len(m.layers)):
        assert torch.equal(m.scores[str(k)], m.kept[0][k]), "scores are copied as they are"
    assert not len(learn(method("exssnet", mask_epochs=1, weight_epochs=0), A).kept), "without KKT only masks are kept"


def test_exssnet_has_the_rates_of_the_run_scripts() -> None:
    m = method("exssnet", mask_epochs=4, weight_epochs=2)
    m.begin(A)
    made = m.configure_optimizers()
    assert [g["initial_lr"] for g in made["optimizer"].param_groups] == [0.001, 0.001], "both phases: --train-weight-lr"
    factors = [made["lr_scheduler"]["scheduler"].lr_lambdas[0](e) for e in range(6)]
    assert factors == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 1, 0.5], abs=1e-6)
    assert (m.kkt, m.knn) == ("none", 200)
