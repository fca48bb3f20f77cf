"""Mixed batch statistics: the formula in float64, its gradient, kernels within rounding of the definition, refusals."""

from __future__ import annotations

import cl_bench_ops
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ops_toys import device, on_cpu
from torch import Tensor

__all__ = ["device", "on_cpu"]  # pytest finds the fixtures here
definition = cl_bench_ops.batchnorm_mix.definition
# Sums in another order; relative to values of size 1 around a mean of up to 3. Of 16 bits: one step of the result.
NEAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: str = "contiguous",
          affine: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    x = (torch.randn(shape, generator=draw, dtype=torch.float64) + 3 * torch.rand(1, shape[1], *[1] * (len(shape) - 2),
                                                                                  generator=draw)).to(dtype)
    if layout == "channels last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    mean, var, weight, bias = (torch.rand(shape[1], generator=draw, dtype=torch.float64).to(wide) + 0.1 for _ in range(4))
    return x, mean, var, weight if affine else None, bias if affine else None


def formula(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, alpha: float, eps: float,
            unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, written down from the paper."""
    x, mean, var = x.double(), mean.double(), var.double()
    dims = [0, *range(2, x.ndim)]
    n = x.numel() // x.shape[1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    own = x.mean(dims)
    squares = (x - own.view(shape)).square().sum(dims) / (n - 1 if unbiased and n > 1 else n)
    m, v = (1 - alpha) * mean + alpha * own, (1 - alpha) * var + alpha * squares
    out = (x - m.view(shape)) / (v.view(shape) + eps).sqrt()
    if weight is not None and bias is not None:
        out = out * weight.double().view(shape) + bias.double().view(shape)
    return out, m, v


def steps(x: Tensor) -> list[int]:
    """How the values lie: the step of a dimension of one value is never taken, and torch writes any number there."""
    return [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1]


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 37)) | st.tuples(
    st.integers(1, 5), st.sampled_from([1, 3, 8, 16, 33, 64]), st.integers(1, 9), st.integers(1, 9)) | st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 70))
SETTINGS = {"alpha": st.sampled_from([0.0, 0.1, 0.5, 1.0]), "unbiased": st.booleans(), "affine": st.booleans(),
            "layout": st.sampled_from(["contiguous", "channels last", "transposed"]), "seed": st.integers(0, 2**32)}


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from([torch.float32, torch.float64]), **SETTINGS)
def test_the_definition_is_the_formula(shape: tuple[int, ...], dtype: torch.dtype, alpha: float, unbiased: bool, affine: bool,
                                       layout: str, seed: int) -> None:
    given_ = drawn(shape, dtype, seed, layout, affine)
    for a, b in zip(definition(*given_, alpha, 1e-2, unbiased), formula(*given_, alpha, 1e-2, unbiased), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=NEAR[dtype], atol=10 * NEAR[dtype])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(shape=SHAPES, dtype=st.sampled_from([*NEAR]), **SETTINGS)
@example(shape=(1, 3, 1, 2), dtype=torch.float32, alpha=0.0, unbiased=False, affine=False, layout="transposed", seed=0)
def test_kernels_lie_within_rounding_of_the_formula(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype,
                                                    alpha: float, unbiased: bool, affine: bool, layout: str, seed: int) -> None:
    given_ = drawn(shape, dtype, seed, layout, affine)
    there = [None if t is None else t.to(device) for t in given_]
    mine = cl_bench_ops.batchnorm_mix(*there, alpha, 1e-2, unbiased)  # type: ignore[arg-type]
    theirs = definition(*there, alpha, 1e-2, unbiased)  # type: ignore[arg-type]
    for a, b, c in zip(mine, theirs, formula(*given_, alpha, 1e-2, unbiased), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and steps(a) == steps(b)
        torch.testing.assert_close(a.double().cpu(), c, rtol=NEAR[dtype], atol=10 * NEAR[dtype])


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_gradcheck(compiled: bool, request: pytest.FixtureRequest) -> None:
    """Of the output alone, with statistics that carry no gradient: those of the point where it is taken."""
    if compiled:
        request.getfixturevalue("on_cpu")
    x, mean, var, weight, bias = drawn((3, 4, 2, 3), torch.float64, 1)
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    out, m, v = cl_bench_ops.batchnorm_mix(x, mean, var, weight, bias, 0.3, 1e-3, True)
    assert out.requires_grad and not m.requires_grad and not v.requires_grad
    fixed = torch.nn.functional.batch_norm(x, m.detach(), v.detach(), weight, bias, False, 0.0, 1e-3)
    up = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for a, b in zip(torch.autograd.grad(out, leaves, up), torch.autograd.grad(fixed, leaves, up), strict=True):
        torch.testing.assert_close(a, b)
    # alpha = 0 leaves the statistics as they are given, so that numbers may be differentiated
    assert torch.autograd.gradcheck(lambda *t: cl_bench_ops.batchnorm_mix(t[0], mean, var, t[1], t[2], 0.0, 1e-3, True)[0],
                                    leaves)


def test_torch_opcheck() -> None:
    x, mean, var, weight, bias = drawn((3, 4, 2, 3), torch.float32, 1)
    for given_ in ((x.clone().requires_grad_(), mean, var, weight, bias), (x, mean, var, None, None)):
        torch.library.opcheck(cl_bench_ops.batchnorm_mix.overload.default, (*given_, 0.3, 1e-3, True),
                              test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_refusals_are_the_same_with_and_without_kernels(compiled: bool, request: pytest.FixtureRequest) -> None:
    if compiled:
        request.getfixturevalue("on_cpu")
    call = cl_bench_ops.batchnorm_mix if compiled else definition
    x, mean, var, weight, bias = drawn((3, 4, 2, 2), torch.float32, 1)
    for given_, sentence in (
        ((x.long(), mean, var, weight, bias), r"x is \[3, 4, 2, 2\] of (int64|Long); give \(images, channels, \.\.\.\)"),
        ((x[:0], mean, var, weight, bias), r"x is \[0, 4, 2, 2\] of float32; give"),
        ((x, mean[:3], var, weight, bias), r"mean is \[3\] of float32 where \[4\] of float32 is needed"),
        ((x.half(), mean, var.half(), weight, bias), r"var is \[4\] of float16 where \[4\] of float32 is needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(*given_, 0.1, 1e-5, True)
