"""Under mixed precision answers that differ in the third digit stay apart: they are computed in float32."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from cl_toys import tiny_backbone
from torch import Tensor

from cl_bench import CosineHead, LabelSpace, PrototypeHead, TextHead
from cl_bench.heads import cosines
from cl_bench.registry import find

CLASSES, WIDTH = 40, 384
SPACE = LabelSpace(tuple(range(CLASSES)), tuple(f"class {k}" for k in range(CLASSES)))


def rows() -> Tensor:
    """Means of classes (CLASSES, WIDTH) as pretrained networks have them: one direction in common, cosines above 0.99."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(WIDTH, generator=draw) + 0.05 * torch.randn(CLASSES, WIDTH, generator=draw)


def prototypes() -> Callable[[Tensor], Tensor]:
    head = PrototypeHead(WIDTH)
    head.grow(SPACE)
    head.add(rows(), torch.arange(CLASSES))
    return head


def learned() -> Callable[[Tensor], Tensor]:
    head = CosineHead(WIDTH)
    head.grow(SPACE)
    with torch.no_grad():
        head.weight.copy_(rows())
    return head


def named() -> Callable[[Tensor], Tensor]:
    head = TextHead(WIDTH, lambda names, templates: rows())
    head.grow(SPACE)
    return head


def subspaces() -> Callable[[Tensor], Tensor]:
    module = sys.modules[find("cl_bench.methods", "ease").__module__]
    tasks = torch.arange(2).repeat_interleave(CLASSES // 2)
    return lambda x: module.reweighted(x.expand(2, -1, -1), rows().expand(2, -1, -1), tasks, 0.1)


@pytest.mark.parametrize("head", [prototypes, learned, named, subspaces])
def test_near_classes_do_not_tie(head: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    """Images halfway between their class and the one in common, which is nearest to none of the others."""
    answer, x = head(), rows().bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = answer(x)
    assert got.dtype == torch.float32
    assert (got.argmax(1) == torch.arange(CLASSES)).all()


def test_cosines_are_those_of_float32() -> None:
    x, y = rows(), rows().flip(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cosines(x, y)
    assert torch.equal(mixed, cosines(x, y))
    assert (mixed - torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)).abs().max() < 1e-6
    assert cosines(x.double(), y.double()).dtype == torch.float64


def test_a_regression_on_random_features_answers_as_in_float32() -> None:
    """RanPAC's weights are large and of either sign: ones that were rounded to three digits give other sums."""
    torch.manual_seed(0)
    method = find("cl_bench.methods", "ranpac")(tiny_backbone(), pet="none", m=200)
    features = torch.randn(300, method.backbone.num_features).bfloat16().float()
    h = method.expand(features).double()
    target = torch.randn(300, CLASSES, dtype=torch.float64)
    method.weight = torch.linalg.solve(h.T @ h + 1e-6 * torch.eye(200, dtype=torch.float64), h.T @ target)
    method.backbone.forward_features = lambda x: features.bfloat16()
    plain = (h @ method.weight).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = method(torch.zeros(300, 3, 8, 8))
    assert (mixed - plain).abs().max() < 1e-3 * plain.abs().max()
