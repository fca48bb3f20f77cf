"""Fisher information and its pull: the formulas, compiled kernels bit for bit, refusals, torch's own checks."""

from __future__ import annotations

import cl_bench_ops
import pytest
import torch
from cl_bench_ops.declaration import Operator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_toys import DTYPES, LAYOUTS, copies, device, draw, on_cpu, same_bits
from torch import Tensor

__all__ = ["device", "on_cpu"]  # pytest finds the fixtures here
# how many lists each takes, the one that is written first
OPERATORS: dict[str, tuple[Operator, int]] = {
    "fisher_accumulate_": (cl_bench_ops.fisher_accumulate_, 2),
    "anchored_penalty_grad_": (cl_bench_ops.anchored_penalty_grad_, 4),
}


def lists(shapes: list[tuple[int, ...]], dtype: torch.dtype, layouts: list[str], seed: int, device: torch.device | str = "cpu",
          count: int = 4) -> list[list[Tensor]]:
    """``count`` lists of floating tensors."""
    a, b = (draw(shapes, dtype, layouts, seed + k, device) for k in range(2))
    return [a[0], a[1], a[3], b[0]][:count]


def test_the_formulas() -> None:
    f, g = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -4.0])]
    cl_bench_ops.fisher_accumulate_(f, g, 0.5)
    assert f[0].tolist() == [1 + 0.5 * 9, 2 + 0.5 * 16]
    p, a = [torch.tensor([2.0, 1.0])], [torch.tensor([1.0, 4.0])]
    cl_bench_ops.anchored_penalty_grad_(g, f, p, a, 2.0)
    assert g[0].tolist() == [3 + 2 * 2 * 5.5 * 1, -4 + 2 * 2 * 10 * -3]


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    f, p, a = (t.double() for t in torch.rand(3, 7, generator=torch.Generator().manual_seed(0)))
    p.requires_grad_()
    (0.3 * (f * (p - a).square()).sum()).backward()
    gradient = [torch.zeros(7, dtype=torch.float64)]
    cl_bench_ops.anchored_penalty_grad_(gradient, [f], [p.detach()], [a], 0.3)
    assert p.grad is not None
    torch.testing.assert_close(gradient[0], p.grad)


@pytest.mark.parametrize("name", OPERATORS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=4),
    dtype=st.sampled_from(DTYPES),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=4),
    weight=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_compiled_kernels_equal_the_definition_bit_for_bit(
    device: torch.device, name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, layouts: list[str], weight: float,
    seed: int,
) -> None:
    operator, count = OPERATORS[name]
    target, *others = lists(shapes, dtype, layouts, seed, device, count)
    expected = copies(target)
    operator.definition(expected, *others, weight)
    operator(target, *others, weight)
    assert all(same_bits(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors_and_many_equal_the_definition(device: torch.device, name: str, dtype: torch.dtype, layout: str) -> None:
    operator, count = OPERATORS[name]
    shapes: list[tuple[int, ...]] = [(317, 613), (3,), (64, 3, 7, 7), (100_003,), *[(17,)] * 200]  # more than one launch
    target, *others = lists(shapes, dtype, [layout], 5, device, count)
    expected = copies(target)
    operator(target, *others, 0.7)
    operator.definition(expected, *others, 0.7)
    assert all(same_bits(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_other_lists_may_overlap_the_first(device: torch.device, name: str) -> None:
    operator, count = OPERATORS[name]
    memory = torch.randn(4000, generator=torch.Generator().manual_seed(1)).to(device)
    apart = memory.clone()
    operator([memory[:3600]], *[[memory[7:3607]]] * (count - 1), 0.5)
    operator.definition([apart[:3600]], *[[apart[7:3607].clone()]] * (count - 1), 0.5)
    assert torch.equal(memory, apart)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_refusals_are_the_same_with_and_without_kernels(name: str, compiled: bool, request: pytest.FixtureRequest) -> None:
    operator, count = OPERATORS[name]
    if compiled:
        request.getfixturevalue("on_cpu")
    call = operator if compiled else operator.definition
    one, first, second = torch.ones(2, 3), *list(operator.definition.__annotations__)[:2]
    wrong = {
        rf"{name}: {first} holds 1 tensors but {second} holds 2": [[one], [one, one]],
        rf"{name}: {first}\[0\] has dtype (int64|Long); supported are float32": [[one.long()], [one.long()]],
        rf"{name}: {second}\[0\] has dtype float64 where float32 is needed": [[one], [one.double()]],
        rf"{name}: {second}\[0\] has shape \[3, 2\] but {first}\[0\] has shape \[2, 3\]": [[one], [one.t()]],
        rf"{name}: {second}\[0\] is on meta but {first}\[0\] is on cpu": [[one], [torch.ones(2, 3, device="meta")]],
    }
    for sentence, (a, b) in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            call(a, b, *[a] * (count - 2), 1.0)
    with pytest.raises(RuntimeError, match="single memory location"):
        call([torch.ones(1, 1).expand(2, 3)], *[[one]] * (count - 1), 1.0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_opcheck(name: str, dtype: torch.dtype) -> None:
    operator, count = OPERATORS[name]
    values = lists([(3, 4), (5,)], dtype, ["contiguous", "transposed"], 0, count=count)
    torch.library.opcheck(operator.overload.default, (*values, 0.9))


@pytest.mark.parametrize("name", OPERATORS)
def test_recording_gradients_is_refused(name: str) -> None:
    operator, count = OPERATORS[name]
    values = [[torch.ones(2)] for _ in range(count)]
    values[1][0].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{name} is not differentiable, but \w+\[0\] requires grad.*torch.no_grad"):
        operator(*values, 0.5)
    with torch.no_grad():
        operator(*values, 0.5)
