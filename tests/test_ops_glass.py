"""The shuffle of glass blur: the walk as it was published, kernels bit for bit, refusals, torch's own checks."""

from __future__ import annotations

import cl_bench_ops
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_toys import device, on_cpu
from torch import Tensor

__all__ = ["device", "on_cpu"]  # pytest finds the fixtures here
definition = cl_bench_ops.glass_origin.definition


def steps(images: int, passes: int, height: int, width: int, delta: int, seed: int) -> tuple[Tensor, Tensor]:
    shape = (images, passes, max(height - 2 * delta, 0), max(width - 2 * delta, 0))
    draw = torch.Generator().manual_seed(seed)
    right, down = (torch.randint(-delta, delta, shape, generator=draw).float() for _ in range(2))
    return right, down


def walked(right: Tensor, down: Tensor, height: int, width: int, delta: int) -> np.ndarray:
    """The authors' loop (ImageNet-C, make_cifar_c.py: glass_blur) on pixel numbers instead of colours."""
    images = np.tile(np.arange(height * width).reshape(height, width), (len(right), 1, 1))
    for n in range(len(right)):
        for k in range(right.shape[1]):
            for i, h in enumerate(range(height - delta, delta, -1)):
                for j, w in enumerate(range(width - delta, delta, -1)):
                    images[n, h, w] = images[n, h + int(down[n, k, i, j]), w + int(right[n, k, i, j])]
    return images.reshape(len(right), height * width)


CASES = {"images": st.integers(0, 3), "passes": st.integers(0, 3), "height": st.integers(1, 12), "width": st.integers(1, 12),
         "delta": st.integers(1, 4), "seed": st.integers(0, 2**32)}


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_the_definition_is_the_published_walk(images: int, passes: int, height: int, width: int, delta: int, seed: int) -> None:
    given_ = steps(images, passes, height, width, delta, seed)
    assert np.array_equal(definition(*given_, height, width, delta).numpy(), walked(*given_, height, width, delta))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), gaps=st.booleans(), **CASES)
def test_kernels_walk_the_same_way(device: torch.device, images: int, passes: int, height: int, width: int, delta: int,
                                   seed: int, dtype: torch.dtype, gaps: bool) -> None:
    right, down = (s.to(device, dtype) for s in steps(images, passes, height, width, delta, seed))
    if gaps:
        right, down = (s.repeat_interleave(2, -1)[..., ::2] for s in (right, down))
    mine = cl_bench_ops.glass_origin(right, down, height, width, delta)
    assert torch.equal(mine, definition(right, down, height, width, delta)) and mine.is_contiguous()


def test_torch_opcheck() -> None:
    torch.library.opcheck(cl_bench_ops.glass_origin.overload.default, (*steps(2, 2, 9, 7, 2, 0), 9, 7, 2),
                          test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_refusals_are_the_same_with_and_without_kernels(compiled: bool, request: pytest.FixtureRequest) -> None:
    if compiled:
        request.getfixturevalue("on_cpu")
    call = cl_bench_ops.glass_origin if compiled else definition
    right, down = steps(2, 1, 8, 9, 1, 0)
    with pytest.raises(ValueError, match=r"give \(images, passes, 6, 7\) for 8 x 9 pixels"):
        call(right[..., 1:], down[..., 1:], 8, 9, 1)
    with pytest.raises(ValueError, match=r"give \(images, passes, 4, 5\) for 8 x 9 pixels"):
        call(right, down, 8, 9, 2)
    with pytest.raises(ValueError, match="two floating tensors of one dtype"):
        call(right, down.double(), 8, 9, 1)
