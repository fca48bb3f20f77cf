"""Mixed precision changes next to nothing: no part of a method takes float32 for granted, no weight is used stale."""

from __future__ import annotations

import sys

import pytest
import torch
from tta_toy import CLASSES, SPACE, deployed, images
from tta_toy_trained import SPACE as OTHER
from tta_toy_trained import deployed as trained

from cl_bench.adaptation import augment
from cl_bench.registry import find
from cl_bench.rng import Rng


def answers(name: str, mixed: bool, batches: int, size: int) -> torch.Tensor:
    method = deployed(name)
    out = []
    for k in range(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out.append(method.predict(images(size, k), SPACE).float())
    return torch.cat(out)


@pytest.mark.parametrize("name", ["tent", "rotta"])
def test_errors_agree_to_a_third_of_a_point(name: str) -> None:
    """Conformance 17. The truth is what the source model says, with every tenth label another one."""
    truth = answers("source", False, 20, 50).argmax(1)
    truth[::10] = (truth[::10] + 1) % CLASSES
    plain, mixed = (answers(name, on, 20, 50).argmax(1) for on in (False, True))
    errors = [100 * float((a != truth).float().mean()) for a in (plain, mixed)]
    assert abs(errors[0] - errors[1]) <= 0.3 + 1e-9, f"float32 {errors[0]:.1f} %, bfloat16 {errors[1]:.1f} %"
    assert 5 < errors[0] < 95, "the toy's error says nothing"


@pytest.mark.parametrize("name", ["bn_alpha", "bn_ema", "eata", "sar", "deyo", "cotta", "psmt", "rmt", "santa", "roid", "cmf"])
def test_answers_hardly_differ(name: str) -> None:
    plain, mixed = (answers(name, on, 6, 50).argmax(1) for on in (False, True))
    assert (plain == mixed).float().mean() > 0.97


@pytest.mark.parametrize("name", ["memo", "note", "shot"])
def test_weights_that_move_within_a_batch_are_not_stale(name: str) -> None:
    """Autocast caches its copies of the weights until the outermost context ends; MEMO steps and forgets inside it."""
    settings = {"memo": {"views": 4, "lr": 0.05}, "note": {"frequency": 8}, "shot": {}}[name]
    for norm in ("bn", "ln"):
        plain, mixed = trained(name, norm, **settings), trained(name, norm, **settings)
        x = images(24, 3)
        expected = plain.predict(x, OTHER).softmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            got = mixed.predict(x, OTHER).float().softmax(1)
        assert (expected - got).abs().mean() < 0.02, f"{norm}: {(expected - got).abs().mean():.3f}"


def test_augmented_views_do_not_move_under_mixed_precision() -> None:
    module = sys.modules[find("cl_bench.methods", "memo").__module__.rpartition(".")[0] + "._augmix"]
    x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, cotta = module.augmix(x, 8, Rng(0)), augment(x[None], Rng(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.augmix(x, 8, Rng(0)), plain) and torch.equal(augment(x[None], Rng(0)), cotta)
