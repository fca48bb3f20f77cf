"""MEMO and its AugMix views against the paper, the official code and Pillow."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from tta_toy_trained import SPACE, deployed, images, plain

from cl_bench.adaptation import MixedNorm
from cl_bench.errors import UserError
from cl_bench.registry import find
from cl_bench.rng import Rng


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
    module = sys.modules[type(method).__module__]
    views = module.augmix(images(1)[0], 8, Rng(5))
    mean = method.model(views).softmax(1).mean(0)
    assert torch.allclose(loss, -(mean * mean.log()).sum(), atol=1e-5)
    alphas = {m.alpha for m in method.model.modules() if isinstance(m, MixedNorm)}
    assert alphas == {1 / 17}, "the prior is 16 images against one, for the views and for the answer"


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
    for name, rows in (("shear_x", lambda s: (1, s, 0, 0, 1, 0)), ("shear_y", lambda s: (1, 0, 0, s, 1, 0))):
        sheared = [p.transform(p.size, affine, rows(0.03 * s * g), **fill)
                   for p, s, g in zip(pillow, (0.5, 1.0), (1, -1), strict=True)]
        assert far(name, sheared) < 1.01
    views = module.augmix(x[0], 16, Rng(0))
    assert views.shape == (16, 3, size, size) and views.min() >= 0 and views.max() <= 1
    assert len({v.sum().item() for v in views}) > 8, "views do not vary"
    assert torch.equal(views, module.augmix(x[0], 16, Rng(0)))


def test_memo_takes_the_step_of_the_official_code() -> None:
    """zhangmarvin/memo: moments come from the buffers of a throw-away batch_norm call, so no gradient passes them."""
    method = deployed("memo", views=6, lr=0.05)
    twin = copy.deepcopy(method)
    x = images(1)[0]

    def official(self: MixedNorm, x: torch.Tensor) -> torch.Tensor:
        mean, var = torch.zeros_like(self.mean), torch.ones_like(self.var)
        torch.nn.functional.batch_norm(x, mean, var, None, None, True, 1.0, self.eps)
        prior = 16 / 17
        return torch.nn.functional.batch_norm(x, prior * self.mean + (1 - prior) * mean, prior * self.var + (1 - prior) * var,
                                              self.weight, self.bias, False, 0, self.eps)

    for layer in twin.model.modules():
        if isinstance(layer, MixedNorm):
            layer.normalised = official.__get__(layer)
    for m in (method, twin):
        m.rng = Rng(5)
        assert m.step(m.marginal_entropy(x))
    for a, b in zip(method.trained(), twin.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_memo_knows_its_own_optimizers_alone() -> None:
    with pytest.raises(UserError, match="sgd or adamw"):
        deployed("memo", optimizer="adam")
