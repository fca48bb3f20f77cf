"""Entropy of predictions: the formula, its gradient, kernels within rounding of the definition, what cannot be answered."""

from __future__ import annotations

import math

import cl_bench_ops
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_toys import DTYPES, device, on_cpu
from torch import Tensor

__all__ = ["device", "on_cpu"]  # pytest finds the fixtures here
definition = cl_bench_ops.entropy_filter.definition
# Kernels sum in another order and take another exponential: relative to the size of the values summed.
NEAR = {torch.float32: 3e-6, torch.float64: 1e-12, torch.float16: 3e-6, torch.bfloat16: 3e-6}


def logits(rows: int, classes: int, dtype: torch.dtype, seed: int, layout: str = "contiguous", scale: float = 5.0) -> Tensor:
    z = scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z.to(dtype)
    if layout == "transposed":
        return z.t().contiguous().t()
    if layout == "rows apart":
        return torch.cat([z, z], 1)[:, :classes]
    return z


def test_the_formula() -> None:
    z = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -math.inf, -math.inf]])
    entropy, confidence, reliable, logsumexp = cl_bench_ops.entropy_filter(z, 1.0)
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), math.log(4) - 0.75 * math.log(3)]))
    torch.testing.assert_close(confidence, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(logsumexp, torch.tensor([math.log(4), math.log(4)]))
    assert reliable.tolist() == [False, True]


def test_it_is_the_entropy_of_the_softmax_and_so_is_its_gradient() -> None:
    z, other = (logits(16, 10, torch.float64, 3).requires_grad_() for _ in range(2))
    weight = torch.linspace(-1, 2, 16, dtype=torch.float64)
    entropy, confidence, *_ = cl_bench_ops.entropy_filter(z, 1.0)
    p = other.softmax(1)
    torch.testing.assert_close(entropy, -(p * other.log_softmax(1)).sum(1))
    torch.testing.assert_close(confidence, p.amax(1).detach())
    (entropy * weight).sum().backward()
    (-(p * other.log_softmax(1)).sum(1) * weight).sum().backward()
    assert z.grad is not None and other.grad is not None
    torch.testing.assert_close(z.grad, other.grad)


def test_gradcheck() -> None:
    z = logits(3, 5, torch.float64, 1, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cl_bench_ops.entropy_filter(x, 1.0)[0], (z,))


def compare(device: torch.device, z: Tensor) -> None:
    """Kernel against definition, forward and backward; NaN where the definition has one."""
    z = torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device=device).copy_(z)
    near = NEAR[z.dtype] * max(1.0, math.log(max(2, z.shape[1])))
    mine, theirs = cl_bench_ops.entropy_filter(z, 1.5), definition(z, 1.5)
    for a, b in zip(mine, theirs, strict=True):
        if a.dtype == torch.bool:
            apart = (a != b) & ((theirs[0] - 1.5).abs() > near)
            assert not apart.any()
            continue
        torch.testing.assert_close(a, b, rtol=near, atol=near * 10, equal_nan=True)
    upstream = torch.linspace(-1, 1, len(z), dtype=theirs[0].dtype, device=z.device)
    a = cl_bench_ops.entropy_filter_grad(z, theirs[0], theirs[3], upstream)
    b = cl_bench_ops.entropy_filter_grad.definition(z, theirs[0], theirs[3], upstream)
    coarse = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(z.dtype, near)  # one step of the 16-bit result
    torch.testing.assert_close(a, b, rtol=coarse, atol=near * 10, equal_nan=True)
    assert a.dtype == z.dtype and a.is_contiguous()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    rows=st.integers(0, 40), classes=st.integers(1, 70) | st.sampled_from([100, 1000, 1024, 1025, 3001]),
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(["contiguous", "transposed", "rows apart"]),
    scale=st.sampled_from([0.0, 0.1, 5.0, 60.0]), seed=st.integers(0, 2**32),
)
def test_kernels_lie_within_rounding_of_the_definition(
    device: torch.device, rows: int, classes: int, dtype: torch.dtype, layout: str, scale: float, seed: int
) -> None:
    compare(device, logits(rows, classes, dtype, seed, layout, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 40, 2000])
def test_infinite_and_missing_logits(device: torch.device, dtype: torch.dtype, classes: int) -> None:
    z = logits(6, classes, dtype, 2)
    z[0, 0] = z[1, 1] = -math.inf
    z[1, 2] = -math.inf
    z[2, 1], z[3, 2], z[4] = math.nan, math.inf, -math.inf
    compare(device, z)
    entropy, *_ = cl_bench_ops.entropy_filter(z.to(device), 1.0)
    assert entropy.isnan().tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_opcheck(dtype: torch.dtype) -> None:
    z = logits(4, 7, dtype, 0).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(cl_bench_ops.entropy_filter.overload.default, (z, 1.0), test_utils=tests)
    h, _, _, lse = cl_bench_ops.entropy_filter(z.detach(), 1.0)
    torch.library.opcheck(cl_bench_ops.entropy_filter_grad.overload.default, (z.detach(), h, lse, torch.ones_like(h)))


def test_inside_torch_compile() -> None:
    def loss(x: Tensor) -> Tensor:
        entropy, _, reliable, _ = cl_bench_ops.entropy_filter(x, 1.0)
        return torch.where(reliable, entropy, 0.0).sum()

    z, other = (logits(8, 5, torch.float32, 4).requires_grad_() for _ in range(2))
    torch.compile(loss, backend="aot_eager", fullgraph=True)(z).backward()
    loss(other).backward()
    assert z.grad is not None and other.grad is not None
    torch.testing.assert_close(z.grad, other.grad)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_refusals_are_the_same_with_and_without_kernels(compiled: bool, request: pytest.FixtureRequest) -> None:
    if compiled:
        request.getfixturevalue("on_cpu")
    call = cl_bench_ops.entropy_filter if compiled else definition
    for wrong, sentence in (
        (torch.ones(2, 3, dtype=torch.int64), r"entropy_filter: logits have dtype (int64|Long); supported are float32"),
        (torch.ones(3), r"entropy_filter: logits have shape \[3\]; give \(images, classes\) with at least one class"),
        (torch.ones(3, 0), r"entropy_filter: logits have shape \[3, 0\]; give"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(wrong, 1.0)
