"""The native operators: their definition, compiled kernels against it bit for bit, refusals, torch's own checks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import cl_bench_ops
import numpy as np
import pytest
import torch
from cl_bench_ops import native
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_toys import DEVICES, DTYPES, LAYOUTS, copies, device, draw, same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["device"]  # pytest finds the fixture here
definition = cl_bench_ops.selective_ema_.definition

# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("operator", [definition, cl_bench_ops.selective_ema_], ids=["definition", "operator"])
def test_masked_elements_keep_their_value_or_take_the_filling(operator: Callable[..., None]) -> None:
    mask = [torch.tensor([True, False]), torch.tensor([[False], [True]])]
    source = [torch.tensor([10.0, 10.0]), torch.tensor([[-1.0], [0.0]])]
    target = [torch.tensor([2.0, 2.0]), torch.tensor([[1.0], [3.0]])]
    operator(target, source, mask, 0.75)
    assert [t.tolist() for t in target] == [[2.0, 4.0], [[0.5], [3.0]]]
    operator(target, source, mask, 0.75, fill=source)
    assert [t.tolist() for t in target] == [[10.0, 5.5], [[0.125], [0.0]]]


@given(
    values=st.lists(st.tuples(*[st.floats(-1e30, 1e30)] * 3, st.booleans()), max_size=20),
    momentum=st.floats(0, 1),
    filled=st.booleans(),
)
def test_definition_is_the_formula_in_numpy(
    values: list[tuple[float, float, float, bool]], momentum: float, filled: bool
) -> None:
    t, s, f = np.array([v[:3] for v in values], dtype=np.float64).reshape(-1, 3).T.copy()
    m = np.array([v[3] for v in values], dtype=bool)
    expected = np.where(m, f if filled else t, momentum * t + (1 - momentum) * s)
    target = [torch.from_numpy(t.copy())]
    fill = [torch.from_numpy(f)] if filled else None
    definition(target, [torch.from_numpy(s)], [torch.from_numpy(m)], momentum, fill)
    np.testing.assert_array_equal(target[0].numpy(), expected)


def test_without_a_mask_it_is_a_mean_teacher() -> None:
    target = [torch.tensor([4.0, 0.0])]
    cl_bench_ops.selective_ema_(target, [torch.tensor([0.0, 8.0])], None, 0.75)
    assert target[0].tolist() == [3.0, 2.0]


def test_sixteen_bits_are_computed_in_float32_and_rounded_once() -> None:
    target, source = [torch.tensor([1.0], dtype=torch.bfloat16)], [torch.tensor([3.0], dtype=torch.bfloat16)]
    cl_bench_ops.selective_ema_(target, source, [torch.tensor([False])], 0.999)
    assert target[0].item() == 1.0  # 1.002 lies nearer to 1 than to 1.0078125, the next bfloat16
    cl_bench_ops.selective_ema_(target, source, [torch.tensor([False])], 0.997)
    assert target[0].item() == 1.0078125  # 1.006


# ---------------------------------------------------------------- compiled kernels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=4),
    dtype=st.sampled_from(DTYPES),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=4),
    momentum=st.sampled_from([0.0, 1.0, 0.999, 0.5]) | st.floats(0, 1),
    form=st.sampled_from(["bare", "masked", "filled"]),
    seed=st.integers(0, 2**32),
)
def test_compiled_kernels_equal_the_definition_bit_for_bit(
    device: torch.device,
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    layouts: list[str],
    momentum: float,
    form: str,
    seed: int,
) -> None:
    target, source, mask, fill = draw(shapes, dtype, layouts, seed, device)
    expected = copies(target)
    arguments = (source, None if form == "bare" else mask, momentum, fill if form == "filled" else None)
    definition(expected, *arguments)
    cl_bench_ops.selective_ema_(target, *arguments)
    assert all(same_bits(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors_on_several_threads_equal_the_definition(device: torch.device, dtype: torch.dtype, layout: str) -> None:
    shapes = [(317, 613), (3,), (64, 3, 7, 7), (100_003,)] + [(17,)] * 100  # several blocks, tails, more than one launch
    target, source, mask, fill = draw(shapes, dtype, [layout], 5, device)
    expected = copies(target)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cl_bench_ops.selective_ema_(target, source, mask, 0.999, fill)
    finally:
        torch.set_num_threads(threads)
    definition(expected, source, mask, 0.999, fill)
    assert all(same_bits(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [1.0, 0.999, 0.3])
@pytest.mark.parametrize("scale", [1.0, 1e-7, 6e4])
def test_every_16_bit_number_is_handled(device: torch.device, dtype: torch.dtype, momentum: float, scale: float) -> None:
    everything = torch.arange(-32768, 32768, dtype=torch.int16).view(dtype).to(device)
    source = [(torch.randn(65536, generator=torch.Generator().manual_seed(0)) * scale).to(dtype).to(device)]
    mask = [torch.zeros(65536, dtype=torch.bool, device=device)]
    target, expected = [everything.clone()], [everything.clone()]
    cl_bench_ops.selective_ema_(target, source, mask, momentum)
    definition(expected, source, mask, momentum)
    assert same_bits(target[0], expected[0])


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:3600].view(60, 60), lambda x: x[7:3607].view(60, 60), lambda x: x[:3600].view(60, 60).t()],
    ids=["itself", "shifted", "transposed"],
)
def test_source_and_filling_may_be_or_overlap_the_target(device: torch.device, view: Callable[[Tensor], Tensor]) -> None:
    memory = torch.randn(4000, generator=torch.Generator().manual_seed(1)).to(device)
    apart, mask = memory.clone(), [memory[:3600].view(60, 60) > 0.5]
    for momentum, filled in ((0.9, True), (0.9, False), (1.0, True)):
        cl_bench_ops.selective_ema_(
            [memory[:3600].view(60, 60)], [view(memory)], mask, momentum, [view(memory)] if filled else None
        )
        before = view(apart).clone()
        definition([apart[:3600].view(60, 60)], [before], mask, momentum, [before] if filled else None)
        assert torch.equal(memory, apart)


def test_lists_of_several_dtypes_and_empty_ones(device: torch.device) -> None:
    cl_bench_ops.selective_ema_([], [], [], 0.5)
    parts = [draw([(5,), (0, 3), ()], dtype, ["contiguous"], 3, device) for dtype in DTYPES]
    target, source, mask, fill = ([x for part in parts for x in part[role]] for role in range(4))
    expected = copies(target)
    cl_bench_ops.selective_ema_(target, source, mask, 0.25, fill)
    definition(expected, source, mask, 0.25, fill)
    assert all(same_bits(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_call_waits_for_nothing() -> None:
    target, source, mask, fill = draw([(1000,)] * 3, torch.float32, ["contiguous"], 0, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        cl_bench_ops.selective_ema_(target, source, mask, 0.9, fill)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- refusals, the same in both implementations

ONE, TRUE = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
REFUSED = {
    "source holds 2": ([ONE], [ONE, ONE], [TRUE], 0.5),
    "mask holds 0": ([ONE], [ONE], [], 0.5),
    "fill holds 2": ([ONE], [ONE], [TRUE], 0.5, [ONE, ONE]),
    "momentum is 1.5; give a number from 0 to 1": ([ONE], [ONE], [TRUE], 1.5),
    "momentum is nan": ([ONE], [ONE], [TRUE], float("nan")),
    r"target\[0\] has dtype (int64|Long); supported are float32": ([ONE.long()], [ONE.long()], [TRUE], 0.5),
    r"source\[1\] has dtype float64 where float32 is needed": ([ONE] * 2, [ONE, ONE.double()], [TRUE] * 2, 0.5),
    r"mask\[0\] has dtype float32 where bool is needed": ([ONE], [ONE], [ONE], 0.5),
    r"fill\[0\] has dtype bfloat16 where float32": ([ONE], [ONE], [TRUE], 0.5, [ONE.bfloat16()]),
    r"source\[0\] has shape \[3, 2\] but target\[0\] has shape \[2, 3\]": ([ONE], [ONE.t()], [TRUE], 0.5),
    "fill is given without a mask": ([ONE], [ONE], None, 0.5, [ONE]),
    r"mask\[0\] has shape \[3\] but target": ([ONE], [ONE], [TRUE[0]], 0.5),
    r"fill\[0\] has shape \[\] but target": ([ONE], [ONE], [TRUE], 0.5, [ONE.sum()]),
}


def refuse(operator: Callable[..., None]) -> None:
    for sentence, arguments in REFUSED.items():
        with pytest.raises(ValueError, match=sentence):
            operator(*arguments)
    shared = torch.ones(1, 1).expand(2, 3)
    with pytest.raises(RuntimeError, match="single memory location"):
        operator([shared], [ONE], [~TRUE], 0.5)
    assert torch.equal(ONE, torch.ones(2, 3)), "a refused call changed its target"


def test_the_definition_refuses_wrong_arguments() -> None:
    refuse(definition)


@pytest.mark.parametrize("device", [DEVICES[0]], indirect=True)
def test_compiled_kernels_refuse_the_same_in_the_same_words(device: torch.device) -> None:
    refuse(cl_bench_ops.selective_ema_)


@pytest.mark.parametrize("operator", [definition, cl_bench_ops.selective_ema_], ids=["definition", "operator"])
def test_tensors_on_several_devices_are_refused(operator: Callable[..., None]) -> None:
    elsewhere = torch.ones(2, 3, device="meta")
    with pytest.raises(ValueError, match=r"source\[0\] is on meta but target\[0\] is on cpu; put all tensors on one device"):
        operator([ONE], [elsewhere], [TRUE], 0.5)
    with pytest.raises(ValueError, match=r"target\[1\] is on (meta|cpu) but target\[0\] is on"):
        operator([ONE, elsewhere], [ONE, elsewhere], [TRUE, elsewhere.bool()], 0.5)


# ---------------------------------------------------------------- as torch sees the operator


def test_the_operator_is_defined_once_whatever_is_imported_again() -> None:
    before = torch.ops.cl_bench.selective_ema_.default
    importlib.reload(cl_bench_ops.operators.selective_ema)
    assert torch.ops.cl_bench.selective_ema_.default is before
    assert str(before._schema) == (
        "cl_bench::selective_ema_(Tensor(a!)[] target, Tensor[] source, Tensor[]? mask, float momentum, Tensor[]? fill=None)"
        " -> ()"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filled", [False, True])
def test_torch_opcheck(dtype: torch.dtype, filled: bool) -> None:
    target, source, mask, fill = draw([(3, 4), (5,)], dtype, ["contiguous", "transposed"], 0)
    torch.library.opcheck(
        torch.ops.cl_bench.selective_ema_.default, (target, source, mask, 0.9, fill if filled else None)
    )


def test_fake_tensors_pass_and_are_checked() -> None:
    with FakeTensorMode():
        target, mask = [torch.empty(2, 3)], [torch.empty(2, 3, dtype=torch.bool)]
        cl_bench_ops.selective_ema_(target, [torch.empty(2, 3)], mask, 0.9)
        with pytest.raises(ValueError, match=r"source\[0\] has shape"):
            cl_bench_ops.selective_ema_(target, [torch.empty(3)], mask, 0.9)


def test_inside_torch_compile() -> None:
    def step(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> Tensor:
        cl_bench_ops.selective_ema_(target, source, mask, 0.9)
        return sum((t.sum() for t in target), torch.zeros(()))

    target, source, mask, _ = draw([(4,), (2, 2)], torch.float32, ["contiguous"], 2)
    expected = copies(target)
    total = step(expected, source, mask)
    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(target, source, mask), total)
    assert all(torch.equal(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.parametrize("name", ["target", "source", "fill"])
def test_recording_gradients_is_refused_and_no_grad_is_fine(name: str) -> None:
    arguments = {"target": [torch.ones(2)], "source": [torch.zeros(2)], "fill": [torch.zeros(2)]}
    arguments[name][0].requires_grad_()
    mask = [torch.tensor([True, False])]
    with pytest.raises(RuntimeError, match=rf"not differentiable, but {name}\[0\] requires grad.*torch.no_grad"):
        cl_bench_ops.selective_ema_(mask=mask, momentum=0.5, **arguments)
    with torch.no_grad():
        cl_bench_ops.selective_ema_(mask=mask, momentum=0.5, **arguments)
    assert arguments["target"][0].tolist() == [0.0, 0.5]


def test_autograd_notices_that_a_saved_tensor_changed() -> None:
    weight, x = torch.ones(2), torch.ones(2, requires_grad=True)
    loss = (weight * x).sum()
    cl_bench_ops.selective_ema_([weight], [torch.zeros(2)], [torch.tensor([True, False])], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_are_updated_too() -> None:
    with torch.inference_mode():
        target = [torch.ones(2)]
        cl_bench_ops.selective_ema_(target, [torch.zeros(2)], [torch.tensor([True, False])], 0.5)
        assert target[0].tolist() == [1.0, 0.5]


def test_backend_names_the_kernels_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_loaded", {"cpu": Path("library.so")})
    monkeypatch.setattr(native, "_settled", True)
    assert cl_bench_ops.backend("cpu") == "cpu"
    assert cl_bench_ops.backend("cuda:0") == cl_bench_ops.backend("mps") == "reference"
