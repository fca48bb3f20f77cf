"""What tests of vision-language methods share: the embedded CLIP, images of three digits, an experience of some of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_bench import Experience, LabelSpace
from cl_bench.data.digits import digits
from cl_bench.registry import find

SPACE = LabelSpace((0, 1, 2), ("digit zero", "digit one", "digit two"))


@pytest.fixture(scope="module")
def clip() -> Any:
    return find("cl_bench.backbones", "glyph_clip")()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = digits("test")
    return torch.stack([data.x[data.y == c][k] for k in range(2) for c in range(3)]).float() / 255


def experience(labels: tuple[int, ...], each: int = 6) -> Experience:
    data = digits("train")
    rows = torch.cat([(data.y == c).nonzero().flatten()[:each] for c in labels])
    return Experience("e", LabelSpace(labels, tuple(SPACE.names[c] for c in labels)), data.subset(rows))
