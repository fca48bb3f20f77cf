"""What the tests of the native operators share: devices that compiled kernels answer for, tensors in odd layouts, bits."""

from __future__ import annotations

import warnings
from pathlib import Path

import cl_bench_ops
import pytest
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "gaps", "offset")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=[pytest.mark.slow, pytest.mark.gpu])]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> torch.device:
    """A device that compiled kernels answer for."""
    return built(torch.device(request.param), pytestconfig)


def built(device: torch.device, config: pytest.Config) -> torch.device:
    """``device``, once its kernels are in this process; built into pytest's cache: the user's own cache stays as it is."""
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert config.cache is not None
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setenv("XDG_CACHE_HOME", str(Path(config.cache.mkdir("cl_bench_ops"))))
        if cl_bench_ops.build(cuda=device.type == "cuda") == "reference":
            pytest.skip(str(caught[-1].message))
    assert cl_bench_ops.backend(device) == device.type
    return device


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, otherwise placed in memory."""
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "gaps" and values.dim() > 0:
        return values.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "offset":
        return torch.cat([values.flatten()[:0], values.new_zeros(1), values.flatten()])[1:].view(values.shape)
    return values.clone()


def draw(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, layouts: list[str], seed: int, device: torch.device | str = "cpu"
) -> list[list[Tensor]]:
    """Lists (target, source, mask, fill), with values over many magnitudes, subnormal and infinite ones too."""
    generator = torch.Generator().manual_seed(seed)
    lists: list[list[Tensor]] = []
    for role in range(4):
        tensors = []
        for i, shape in enumerate(shapes):
            wide = torch.randn(shape, generator=generator, dtype=torch.float64)
            wide = wide * 10.0 ** torch.randint(-9, 6, shape, generator=generator).double()
            values = wide < 0 if role == 2 else wide.to(dtype)
            tensors.append(laid_out(values, layouts[(i + role) % len(layouts)]).to(device))
        lists.append(tensors)
    return lists


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as numbers and in the sign of zero; any NaN equals any NaN."""
    both = torch.stack([a, b])
    return bool(torch.equal(both.isnan()[0], both.isnan()[1])) and bool(
        ((a == b) & (a.signbit() == b.signbit()) | a.isnan()).all()
    )


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that keep the memory layout, gaps included."""
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t) for t in tensors]


@pytest.fixture(scope="module")
def on_cpu(pytestconfig: pytest.Config) -> None:
    """Compiled kernels for the CPU in this process."""
    built(torch.device("cpu"), pytestconfig)
