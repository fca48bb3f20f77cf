"""The contract of a backbone, and the embedded ones with their weights and cards."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.backbones.glyph import WEIGHTS, card_digest, glyph_resnet, glyph_vit
from cl_bench.data.digits import digits
from cl_bench.data.glyphs import HELD_OUT_FONTS, LETTERS, glyphs
from cl_bench.data.tensor import TensorData, batches

EMBEDDED = {"glyph_vit": glyph_vit, "glyph_resnet": glyph_resnet}
embedded = pytest.mark.parametrize("name", sorted(EMBEDDED))


def images(n: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ncm_accuracy(backbone: Backbone) -> float:
    def features(data: TensorData) -> torch.Tensor:
        return torch.cat([backbone.forward_features(x) for x, _ in batches(data, 256)])

    train, test = digits("train"), digits("test")
    known = features(train)
    means = torch.stack([known[train.y == c].mean(0) for c in range(10)])
    predicted = (F.normalize(features(test), dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    return 100 * float((predicted == test.y).double().mean())


# --- the embedded ones


@embedded
def test_a_card_states_the_digest_of_its_weights(name):
    file = WEIGHTS / f"{name}.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert card_digest(name) == digest == EMBEDDED[name]().info["sha256"]


def test_the_embedded_weights_are_small():
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 2_000_000


@embedded
def test_prototypes_on_frozen_features_tell_handwritten_digits(name):
    """Pretrained on letters, the features tell digits; the card's number is the measured one, and random weights are
    far below.
    """
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| handwritten digits"))
    stated = [float(cell) for cell in row.split("|")[2:4]]
    measured = ncm_accuracy(EMBEDDED[name]())
    assert measured == pytest.approx(stated[0], abs=0.4), "other kernels may turn one image of 359"
    assert measured > 85 > 60 > ncm_accuracy(EMBEDDED[name](pretrained=False, seed=1))


@embedded
def test_the_head_tells_letters_of_fonts_never_seen(name):
    backbone = EMBEDDED[name]()
    data = glyphs(512, size=16 if name == "glyph_vit" else 32, seed=5, fonts=HELD_OUT_FONTS[:2])
    with torch.no_grad():
        predicted = backbone(data.x / 255).argmax(1)
    assert backbone.classes == LETTERS
    assert (predicted % 26 == data.y % 26).double().mean() > 0.8


def test_the_resnet_has_batchnorm_and_the_vit_has_none():
    assert sum(isinstance(m, nn.BatchNorm2d) for m in glyph_resnet().modules()) >= 7
    assert not any(isinstance(m, nn.BatchNorm2d) for m in glyph_vit().modules())


def test_pretraining_sees_letters_of_the_training_fonts_only(monkeypatch):
    """Every character that is drawn during pretraining is recorded, and the handwritten digits must not be touched."""
    import importlib.util

    from cl_bench.data import glyphs as module

    path = Path(__file__).resolve().parents[1] / "tools" / "pretrain_backbones.py"
    spec = importlib.util.spec_from_file_location("pretrain_backbones", path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, tool)
    spec.loader.exec_module(tool)

    drawn: set[tuple[str, str]] = set()
    draw = module._draw

    def recording(character: str, font: str):
        drawn.add((character, font))
        return draw(character, font)

    def forbidden(*_: object):
        raise AssertionError("pretraining reads the handwritten digits")

    fonts = ("DejaVuSans", "STIXGeneral:script")
    monkeypatch.setattr(module, "_draw", recording)
    monkeypatch.setattr(tool, "TRAIN_FONTS", fonts)  # two of them: drawing all takes seconds
    monkeypatch.setattr(tool, "digits", forbidden)
    module.atlas.cache_clear()
    trained = tool.pretrain("glyph_resnet", seed=0, steps=2)
    assert {c for c, _ in drawn} == set(LETTERS) and {f for _, f in drawn} == set(fonts)
    assert not {c for c, _ in drawn} & set("0123456789")

    again = tool.pretrain("glyph_resnet", seed=0, steps=2)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True)
    )


# --- the contract


@embedded
def test_features_have_their_length_and_the_head_reads_them(name):
    backbone = EMBEDDED[name]()
    with torch.no_grad():
        features = backbone.forward_features(images())
        assert features.shape == (4, backbone.num_features)
        assert torch.equal(backbone(images()), backbone.head(features))
        assert backbone.forward_features(images(1)).shape == (1, backbone.num_features)


@embedded
def test_double_and_deepcopy_take_everything_along(name):
    backbone = EMBEDDED[name]()
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        before = backbone(images())
        next(twin.model.parameters()).add_(1.0)
        assert torch.equal(backbone(images()), before) and not torch.equal(twin(images()), before)
        double = copy.deepcopy(backbone).double()
        after = double(images().double())
    assert double.mean.dtype == torch.float64 and after.dtype == torch.float64
    assert torch.allclose(after.float(), before, atol=1e-4)
    assert not {"mean", "std"} & set(backbone.state_dict())


@embedded
def test_building_leaves_the_global_generator_alone_and_the_seed_decides_random_weights(name):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    a, b, c = (EMBEDDED[name](pretrained=False, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert a.info["sha256"] == b.info["sha256"] != c.info["sha256"] != EMBEDDED[name]().info["sha256"]


def test_preprocess_skips_what_changes_nothing():
    plain = Backbone(nn.Flatten(), num_features=3, preprocess=Preprocess(None))
    x = images()
    assert plain.preprocess(x) is x and plain.preprocess(images(2, 50)).shape == (2, 3, 50, 50)
    scaled = Backbone(nn.Flatten(), num_features=3, preprocess=Preprocess(32, (0.5,) * 3, (0.25,) * 3))
    assert torch.allclose(scaled.preprocess(x), (x - 0.5) / 0.25)
    with pytest.raises(RuntimeError, match="no classifier"):
        plain(x)


def test_preprocess_resizes_as_torchvision_does():
    from torchvision.transforms.v2.functional import center_crop, resize

    x = images(2, 40)[:, :, :, :30]
    cropped = Backbone(nn.Flatten(), num_features=1, preprocess=Preprocess(16, interpolation="bilinear")).preprocess(x)
    expected = center_crop(resize(x, [16], antialias=True), [16, 16])
    assert torch.allclose(cropped, expected, atol=1e-6)
    squashed = Backbone(nn.Flatten(), num_features=1, preprocess=Preprocess(16, interpolation="bilinear", squash=True))
    assert torch.allclose(squashed.preprocess(x), resize(x, [16, 16], antialias=True), atol=1e-6)
    bicubic = Backbone(nn.Flatten(), num_features=1, preprocess=Preprocess(64)).preprocess((x > 0.5).float())
    assert bicubic.min() >= 0 and bicubic.max() <= 1


def test_gradients_pass_through_preprocessing():
    x = images(2, 40).requires_grad_()
    glyph_vit().forward_features(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
