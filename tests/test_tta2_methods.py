"""LAME, T3A, SHOT, MEMO, NOTE, ViDA and the label shift adapter against what their papers and codes say."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.adaptation import InstanceAwareNorm, MixedNorm, TestTimeMethod
from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.data.tensor import TensorData
from cl_bench.errors import UserError
from cl_bench.heads import FixedHead
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.types import Experience, LabelSpace

CLASSES = 4
SPACE = LabelSpace(tuple(range(CLASSES)))


class Attention(nn.Module):
    """One head over the pixels' rows, with the names of timm's layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.attn, self.norm = nn.Linear(24, 12), nn.LayerNorm(12), Attention(12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2).flatten(2))
        x = x + self.attn(self.norm1(x))
        return self.norm(x.mean(1))


def trunk(norm: str) -> nn.Module:
    if norm == "ln":
        return Transformer()
    make = {"bn": nn.BatchNorm2d, "gn": lambda c: nn.GroupNorm(2, c)}[norm]
    return nn.Sequential(nn.Conv2d(3, 8, 3), make(8), nn.ReLU(), nn.Conv2d(8, 12, 3), make(12), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


def backbone(norm: str = "bn") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = trunk(norm)
        head = nn.Linear(12, CLASSES)
        head.weight.data.mul_(6)
        if norm == "bn":  # running statistics that are the images' own, so that the source model is a sensible one
            net.train()
            for _ in range(40):
                net(images(64, 5))
    made = Backbone(net.eval(), num_features=12, preprocess=Preprocess(None), head=head)
    return made


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def source(n: int = 200, counts: tuple[int, ...] | None = None) -> Experience:
    """Images whose label is where they are bright."""
    counts = counts or (n // CLASSES,) * CLASSES
    y = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    x = images(len(y), 3) * 0.5
    for c in range(CLASSES):
        x[y == c, :, (c // 2) * 4 : (c // 2) * 4 + 4, (c % 2) * 4 : (c % 2) * 4 + 4] += 0.06
    return Experience("source", SPACE, TensorData((x.clamp(0, 1) * 255).to(torch.uint8), y))


def deployed(name: str, norm: str = "bn", seed: int = 1, **kwargs: Any) -> TestTimeMethod:
    method = find("cl_bench.methods", name)(backbone(norm), **kwargs)
    method.head = FixedHead(method.backbone.head, SPACE, 12)
    if hasattr(method, "host"):
        method.host.head = method.head
    method.rng = Rng(seed)
    method.eval()
    method.deploy(source(counts=(100, 50, 20, 10)) if "source" in method.needs else None)
    return method


def plain(norm: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone(norm)(x)


ALL = [(n, norm) for n in ("lame", "t3a", "shot", "memo", "note", "label_shift_adapter") for norm in ("bn", "gn", "ln")]
ALL += [("vida", "ln")]
QUICK = {"memo": {"views": 4}, "vida": {"views": 3}}


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_reset_after_many_batches_equals_a_fresh_method(name: str, norm: str) -> None:
    """Conformance 2: bit for bit, after 70 batches and more images than any memory holds."""
    kwargs = QUICK.get(name, {})
    method, fresh = deployed(name, norm, **kwargs), deployed(name, norm, **kwargs)
    method.mark()
    fixed = images(6, 99)
    for k in range(70 if name != "memo" else 4):
        method.predict(images(3, k), SPACE)
    used = method.predict(fixed, SPACE)
    method.reset()
    again, expected = method.predict(fixed, SPACE), fresh.predict(fixed, SPACE)
    assert torch.equal(again, expected), "reset forgot something"
    assert torch.isfinite(used).all()


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_the_learned_model_and_global_generators_are_left_alone(name: str, norm: str) -> None:
    method = deployed(name, norm, **QUICK.get(name, {}))
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    state = torch.get_rng_state()
    for k in range(3):
        method.predict(images(5, k), SPACE)
    assert torch.equal(state, torch.get_rng_state()), "drew from the process's generator"
    changed = [k for k, v in method.backbone.state_dict().items() if not torch.equal(v, before[k])]
    assert not changed, f"adaptation reached the learned model: {changed}"


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_answer_adapts_nothing(name: str, norm: str) -> None:
    method = deployed(name, norm, **QUICK.get(name, {}))
    method.predict(images(8, 1), SPACE)
    first = method.answer(images(8, 2), SPACE)
    assert torch.equal(first, method.answer(images(8, 2), SPACE))
    assert first.shape == (8, CLASSES)


# ---------------------------------------------------------------------------------------------- LAME
def test_lame_without_pairwise_term_is_the_softmax_and_rows_sum_to_one() -> None:
    x = images(20)
    expected = plain("bn", x).softmax(1)
    out = deployed("lame", weight=0.0).predict(x, SPACE).exp()
    assert torch.allclose(out, expected, atol=1e-6)
    for affinity in ("rbf", "knn", "linear"):
        p = deployed("lame", affinity=affinity).predict(x, SPACE).exp()
        assert torch.allclose(p.sum(1), torch.ones(20), atol=1e-5)


def test_lame_kernels_follow_their_definition() -> None:
    method = deployed("lame", neighbours=3)
    f = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    d = (f[:, None] - f[None]).norm(dim=-1)
    sigma = d.sort(1).values[:, 2].mean()  # the third nearest, the image itself being the first
    assert torch.allclose(method.kernel(f), torch.exp(-(d**2) / (2 * sigma**2)), atol=1e-5)
    method.affinity = "knn"
    k = method.kernel(f)
    assert k.sum(1).tolist() == [3.0] * 7 and not k.diagonal().any()
    for row in range(7):
        assert set(k[row].nonzero().flatten().tolist()) == set(d[row].argsort()[1:4].tolist())


def test_lame_pulls_a_batch_of_neighbours_together() -> None:
    x = images(1).repeat(16, 1, 1, 1) + 0.02 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    out = deployed("lame").predict(x.clamp(0, 1), SPACE).argmax(1)
    assert len(out.unique()) == 1
    with pytest.raises(UserError, match="rbf, knn or linear"):
        deployed("lame", affinity="cosine")


# ---------------------------------------------------------------------------------------------- T3A
def test_t3a_starts_from_the_classifiers_rows() -> None:
    """Conformance 13: all supports and no test data gives h W with unit columns."""
    method = deployed("t3a", supports=0)
    h = method.model.features(images(9))
    weight = backbone().head.weight
    assert torch.equal(method.labels, backbone().head(weight).argmax(1))
    if method.labels.tolist() == [0, 1, 2, 3]:
        assert torch.allclose(method.templates(h), h @ F.normalize(weight, dim=1).T, atol=1e-5)


def test_t3a_keeps_the_surest_of_each_class() -> None:
    method = deployed("t3a", supports=3)
    bank: list[tuple[int, float]] = list(zip(method.labels.tolist(), method.doubt.tolist(), strict=True))
    for k in range(6):
        x = images(10, k)
        z = plain("bn", x)
        p = z.softmax(1)
        bank += list(zip(z.argmax(1).tolist(), (-(p * p.log()).sum(1)).tolist(), strict=True))
        method.predict(x, SPACE)
        bank = [pair for c in range(CLASSES) for pair in sorted(b for b in bank if b[0] == c)[:3]]
        assert np.allclose(sorted(zip(method.labels.tolist(), method.doubt.tolist(), strict=True)), sorted(bank), atol=1e-5)
    assert len(method.features) <= 3 * CLASSES


def test_t3a_answers_after_its_update_and_narrows() -> None:
    method = deployed("t3a")
    x = images(12)
    first = method.predict(x, SPACE)
    assert torch.equal(first, method.answer(x, SPACE)), "the answer is that of the updated templates"
    some = method.predict(x, LabelSpace((2, 0)))
    assert some.shape == (12, 2) and torch.isfinite(some).all()
    assert set(method.labels.tolist()) <= {0, 1}


# ---------------------------------------------------------------------------------------------- SHOT
def test_shot_takes_the_published_step_and_answers_before_it() -> None:
    method = deployed("shot", lr=0.1, threshold=0.3)
    x = images(16)
    twin = copy.deepcopy(method)
    head = [p.clone() for p in method.model.head.parameters()]
    z = twin.model(x)
    p = z.softmax(1)
    sure = p.amax(1) > 0.3
    loss = -(p * p.log()).sum(1).mean() + (p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    loss = loss + 0.3 * F.cross_entropy(z[sure], z.argmax(1)[sure])
    loss.backward()
    twin.opt.step()
    out = method.predict(x, SPACE)
    assert torch.allclose(out, z.detach(), atol=1e-6), "scored from the forward pass before the step"
    for a, b in zip(method.trained(), twin.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(head, method.model.head.parameters(), strict=True)), "the head is frozen"


def test_shot_without_a_confident_image_is_shot_im() -> None:
    x = images(16)
    a, b = deployed("shot", threshold=1.1), deployed("shot", pseudo=0.0)
    for k in range(3):
        a.predict(images(16, k), SPACE)
        b.predict(images(16, k), SPACE)
    assert torch.allclose(a.predict(x, SPACE), b.predict(x, SPACE), atol=1e-6)
    assert torch.isfinite(a.predict(x, SPACE)).all() and a.counts["selected"] == 0


# ---------------------------------------------------------------------------------------------- MEMO
@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_memo_is_episodic_and_answers_after_its_step(norm: str) -> None:
    method = deployed("memo", norm, views=6, lr=0.05)
    start = [p.clone() for p in method.trained()]
    x = images(3)
    together = method.predict(x, SPACE)
    assert all(torch.equal(a, b) for a, b in zip(start, method.trained(), strict=True)), "weights were carried over"
    other = deployed("memo", norm, views=6, lr=0.05)
    one_by_one = torch.cat([other.predict(x[k : k + 1], SPACE) for k in range(3)])
    assert torch.allclose(together, one_by_one, atol=1e-6), "an image's answer depends on its neighbours"
    assert not torch.allclose(together, method.answer(x, SPACE), atol=1e-4), "the answer does not show the step"
    still = deployed("memo", norm, views=6, lr=0.0)
    assert torch.allclose(still.predict(x, SPACE), still.answer(x, SPACE), atol=1e-6)
    if norm != "bn":
        assert torch.allclose(still.predict(x, SPACE), plain(norm, x), atol=1e-5), "lr 0 is the source model"


def test_memo_loss_and_norm_mode() -> None:
    method = deployed("memo", views=8)
    method.rng = Rng(5)
    loss = method.marginal_entropy(images(1)[0])
    alphas = {m.alpha for m in method.model.modules() if isinstance(m, MixedNorm)}
    assert alphas == {8 / 24}, "views against a prior of 16"
    module = sys.modules[type(method).__module__]
    views = module.augmix(images(1)[0], 8, Rng(5))
    mean = method.model(views).softmax(1).mean(0)
    assert torch.allclose(loss, -(mean * mean.log()).sum(), atol=1e-5)
    method.outputs(images(2))
    assert {m.alpha for m in method.model.modules() if isinstance(m, MixedNorm)} == {1 / 17}


@pytest.mark.parametrize("size", [32, 96])
def test_augmix_operations_are_pillows(size: int) -> None:
    from PIL import Image, ImageOps

    module = sys.modules[find("cl_bench.methods", "memo").__module__.rpartition(".")[0] + "._augmix"]
    x = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 200 + 20).round() / 255
    x[:, :, : size // 2] *= 0.5
    x = (x * 255).round() / 255
    pillow = [Image.fromarray((v.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()) for v in x]
    strength, sign = torch.tensor([0.5, 1.0]), torch.tensor([1.0, -1.0])

    def far(name: str, expected: list[Image.Image]) -> float:
        if name in module.PIXELS:
            got = module._pixels(x, name, strength) * 255
        else:
            kind = torch.full((2,), module.MOVES.index(name))
            got = module._move(x, kind, strength, sign) * 255
        want = torch.stack([torch.from_numpy(np.array(e)).permute(2, 0, 1).float() for e in expected])
        return float((got - want)[:, :, 6:-6, 6:-6].abs().max())  # away from what the borders fill in

    fill = {"resample": Image.Resampling.BILINEAR, "fillcolor": 128}
    affine = Image.Transform.AFFINE
    assert far("autocontrast", [ImageOps.autocontrast(p) for p in pillow]) < 1.01
    assert far("equalize", [ImageOps.equalize(p) for p in pillow]) < 0.01
    assert far("posterize", [ImageOps.posterize(p, 4) for p in pillow]) < 0.01
    solar = [ImageOps.solarize(p, 256 - int(s * 25.6)) for p, s in zip(pillow, (0.5, 1.0), strict=True)]
    assert far("solarize", solar) < 0.01
    moves = [int(s * size / 3 / 10) * g for s, g in ((0.5, 1), (1.0, -1))]
    assert far("translate_x", [p.transform(p.size, affine, (1, 0, m, 0, 1, 0), **fill)
                               for p, m in zip(pillow, moves, strict=True)]) < 1.01
    assert far("translate_y", [p.transform(p.size, affine, (1, 0, 0, 0, 1, m), **fill)
                               for p, m in zip(pillow, moves, strict=True)]) < 1.01
    turns = [int(30 * s / 10) * g for s, g in ((0.5, 1), (1.0, -1))]
    assert far("rotate", [p.rotate(t, **fill) for p, t in zip(pillow, turns, strict=True)]) < 1.01
    views = module.augmix(x[0], 16, Rng(0))
    assert views.shape == (16, 3, size, size) and views.min() >= 0 and views.max() <= 1
    assert len({v.sum().item() for v in views}) > 8, "views do not vary"
    assert torch.equal(views, module.augmix(x[0], 16, Rng(0)))


# ---------------------------------------------------------------------------------------------- NOTE
def test_note_memory_is_bounded_and_balanced_over_predictions() -> None:
    method = deployed("note", memory=8, frequency=4)
    for k in range(40):
        method.predict(images(5, k), SPACE)
        assert len(method.owners) <= 8 and len(method.bank) == 8
    assert sum(method.met) == 200 and method.counts["steps"] == 50
    sizes = np.bincount(method.owners, minlength=CLASSES)
    assert len(method.owners) == 8
    method.met, method.owners = [50, 2, 0, 0], [0] * 7 + [1]
    taken = sum(method.slot(0) is not None for _ in range(300)) / 300
    assert 0.07 < taken < 0.22, f"a crowded class is taken with probability 7 / 50, not {taken}"
    assert all(method.owners[method.slot(2)] == 0 for _ in range(20)), "a rare class takes the place of the largest"
    assert sizes.sum() == 8


def test_note_answers_image_by_image_before_learning() -> None:
    a, b = deployed("note", frequency=16, lr=0.01), deployed("note", frequency=16, lr=0.01)
    x = images(40)
    whole = a.predict(x, SPACE)
    parts = torch.cat([b.predict(x[k : k + 1], SPACE) for k in range(40)])
    assert torch.allclose(whole, parts, atol=1e-5), "an answer depends on how images are batched"
    assert a.counts["steps"] == b.counts["steps"] == 2
    assert torch.allclose(whole[:16], deployed("note", lr=0.0).answer(x[:16], SPACE), atol=1e-6)
    assert not torch.allclose(whole[16:], deployed("note", lr=0.0).answer(x[16:], SPACE), atol=1e-4)


def test_note_norm_layers_move_their_statistics_in_updates_only() -> None:
    method = deployed("note", memory=8, frequency=8)
    layer = next(m for m in method.model.modules() if isinstance(m, InstanceAwareNorm))
    before = layer.mean.clone()
    method.predict(images(7), SPACE)
    assert torch.equal(layer.mean, before) and not layer.training
    method.predict(images(1, 8), SPACE)
    assert not torch.equal(layer.mean, before) and not layer.training


# ---------------------------------------------------------------------------------------------- ViDA
def test_vida_fresh_adapters_change_nothing_and_code_keeps_the_second_scale() -> None:
    method = deployed("vida", "ln", views=3)
    x = images(6)
    assert torch.allclose(method.answer(x, SPACE), plain("ln", x), atol=1e-6)
    for k in range(4):
        method.predict(images(6, k), SPACE)
    layers = [m for m in method.modules() if type(m).__name__ == "VidaLinear"]
    assert len(layers) == 4, "qkv and proj of student and teacher"
    assert all(m.scale2 == 1.0 and m.scale1 != 1.0 for m in layers)
    assert layers[0].vida_down2.shape == (128, 12) and layers[0].vida_down1.shape == (1, 12)
    paper = deployed("vida", "ln", views=3, variant="paper")
    paper.predict(x, SPACE)
    assert all(m.scale1 + m.scale2 == pytest.approx(2.0) and m.scale2 != 1.0
               for m in paper.modules() if type(m).__name__ == "VidaLinear")


def test_vida_groups_ema_and_restore() -> None:
    method = deployed("vida", "ln", views=2, restore=1.0, momentum=0.9, adapter_momentum=0.5, symmetric=True)
    model_group, adapter_group = method.opt.param_groups
    assert (model_group["lr"], adapter_group["lr"]) == (1e-4, 1e-5) and len(adapter_group["params"]) == 8
    start = [p.clone() for p in method.trained()]
    teacher = {n: p.clone() for n, p in method.teacher.named_parameters()}
    out = method.predict(images(8), SPACE)
    assert torch.allclose(out, plain("ln", images(8)), atol=1e-6), "answered by the teacher before the step"
    assert all(torch.equal(a, b) for a, b in zip(start, method.trained(), strict=True)), "restore = 1 is the start"
    moved = {n: (p - teacher[n]).abs().max().item() for n, p in method.teacher.named_parameters()}
    head = next(v for n, v in moved.items() if n.endswith("head.weight"))
    assert head == pytest.approx(0.1 * 1e-4, rel=0.05), "Adam's first step times 1 - momentum"
    ups = [v for n, v in moved.items() if "vida_up1" in n]
    assert max(ups) == pytest.approx(0.5 * 1e-5, rel=0.05)
    with pytest.raises(UserError, match="timm transformer"):
        deployed("vida", "bn")


# ---------------------------------------------------------------------------------------------- label shift adapter
def test_adapter_is_the_identity_until_trained_and_for_a_balanced_source() -> None:
    """Conformance 14: its host's own answers."""
    x = images(16)
    untrained = deployed("label_shift_adapter", adapter_epochs=0)
    host = deployed("tent")
    for k in range(3):
        assert torch.allclose(untrained.predict(images(16, k), SPACE), host.predict(images(16, k), SPACE), atol=1e-5)
    balanced = find("cl_bench.methods", "label_shift_adapter")(backbone())
    balanced.head = FixedHead(balanced.backbone.head, SPACE, 12)
    balanced.deploy(source())
    assert balanced.degree(balanced.estimate) is None
    assert torch.allclose(balanced.answer(x, SPACE), deployed("tent").answer(x, SPACE), atol=1e-5)


def test_adapter_bends_towards_the_labels_that_it_is_told() -> None:
    """Conformance 14: matching pi helps, the opposite one harms; pi stays a distribution."""
    base, long_tailed = backbone(), source(counts=(100, 50, 20, 10))
    with torch.no_grad():
        features = base.forward_features(long_tailed.data.x.float() / 255)
    opt = torch.optim.LBFGS(base.head.parameters(), max_iter=60)

    def fit() -> Tensor:  # a source classifier that knows its label distribution
        opt.zero_grad()
        loss = F.cross_entropy(base.head(features), long_tailed.data.y) + 1e-3 * base.head.weight.square().sum()
        loss.backward()
        return loss

    opt.step(fit)
    method = find("cl_bench.methods", "label_shift_adapter")(
        base, host=find("cl_bench.methods", "source"), adapter_epochs=150, adapter_lr=1e-2
    )
    method.head = FixedHead(base.head, SPACE, 12)
    method.deploy(long_tailed)
    data = source(counts=(100, 50, 20, 10)).data
    x, y = data.x.float() / 255, data.y
    rare, common = y >= 2, y < 2

    def accuracy(pi: list[float], rows: Tensor) -> float:
        method.estimate = torch.tensor(pi)
        method.bend()
        return (method.answer(x[rows], SPACE).argmax(1) == y[rows]).float().mean().item()

    at_source, uniform, reversed_ = method.known().tolist(), [0.25] * 4, method.known().flip(0).tolist()
    assert accuracy(reversed_, rare) > accuracy(at_source, rare) + 0.2
    assert accuracy(at_source, common) > accuracy(reversed_, common) + 0.2
    assert accuracy(reversed_, rare) >= accuracy(uniform, rare) >= accuracy(at_source, rare)
    assert float(method.degree(torch.tensor(uniform))) == pytest.approx(0.0, abs=1e-5)
    assert float(method.degree(torch.tensor(at_source))) == pytest.approx(1.0, abs=1e-5)
    assert float(method.degree(torch.tensor(reversed_))) < 0
    for k in range(20):
        method.predict(images(9, k), SPACE)
        assert float(method.estimate.sum()) == pytest.approx(1.0, abs=1e-5) and (method.estimate >= 0).all()


@pytest.mark.parametrize("host", ["cotta", "rotta", "lame", "eata"])
def test_adapter_wraps_any_method_and_trains_nothing_of_itself(host: str) -> None:
    method = deployed("label_shift_adapter", host=find("cl_bench.methods", host), adapter_epochs=3)
    phi = [p.clone() for p in method.generator.parameters()]
    for k in range(4):
        out = method.predict(images(20, k), SPACE)
        assert out.shape == (20, CLASSES) and torch.isfinite(out).all()
    assert all(torch.equal(a, b) for a, b in zip(phi, method.generator.parameters(), strict=True))
    heads = [m for m in method.host.modules() if type(m).__name__ == "AdaptedHead" and m is not method.host.head]
    assert heads and all(torch.equal(h.bias_shift, heads[0].bias_shift) for h in heads), "a teacher is bent differently"
    some = method.predict(images(5), LabelSpace((1, 3)))
    assert some.shape == (5, 2) and method.estimate.shape == (2,)
    method.withdraw()
    assert method.host.head is method.head
