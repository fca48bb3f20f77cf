"""What autograd sees of compiled operators: the same as of the definitions, without a call into Python."""

from __future__ import annotations

from collections.abc import Callable

import cl_bench_ops
import pytest
import torch
from ops_toys import device
from torch import Tensor

__all__ = ["device"]  # pytest finds the fixture here
LISTS: dict[str, Callable[[list[list[Tensor]]], None]] = {
    "selective_ema_": lambda x: cl_bench_ops.selective_ema_(x[0], x[1], None, 0.5),
    "fisher_accumulate_": lambda x: cl_bench_ops.fisher_accumulate_(x[0], x[1], 0.5),
    "anchored_penalty_grad_": lambda x: cl_bench_ops.anchored_penalty_grad_(*x, 0.5),
}
NAMES = [*LISTS, "entropy_filter", "entropy_filter_grad"]


def ones(device: torch.device, lists: int = 4) -> list[list[Tensor]]:
    return [[torch.ones(2, device=device), torch.ones(3, device=device)] for _ in range(lists)]


@pytest.mark.parametrize("name", NAMES)
def test_autograd_is_answered_by_the_library_of_the_device(device: torch.device, name: str) -> None:
    key = f"Autograd{device.type.upper()}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"cl_bench::{name}", key)
    assert "autograd.cpp" in torch._C._dispatch_dump(f"cl_bench::{name}").partition(f"{key}:")[2].partition("\n")[0]


@pytest.mark.parametrize("name", LISTS)
def test_recording_gradients_of_a_list_is_refused(device: torch.device, name: str) -> None:
    x = ones(device)
    x[1][1].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{name} is not differentiable, but \w+\[1\] requires grad.*torch.no_grad"):
        LISTS[name](x)
    assert x[0][0].tolist() == [1, 1], "a refused call changed its target"
    with torch.no_grad():
        LISTS[name](x)


@pytest.mark.parametrize("name", LISTS)
def test_autograd_notices_that_a_saved_tensor_of_a_list_changed(device: torch.device, name: str) -> None:
    x = ones(device)
    weight = torch.ones(2, requires_grad=True, device=device)
    loss = (weight * x[0][0]).sum()
    versions = [t._version for t in x[1]]
    LISTS[name](x)
    assert [t._version for t in x[1]] == versions
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("made_inside", [True, False])
def test_inference_mode(device: torch.device, name: str, made_inside: bool) -> None:
    outside = ones(device)
    with torch.inference_mode():
        x = ones(device) if made_inside else outside
        LISTS[name](x)
    expected = ones(device)
    getattr(cl_bench_ops, name).definition(*expected[: 2 if name != "anchored_penalty_grad_" else 4],
                                           *([None] if name == "selective_ema_" else []), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(x[0], expected[0], strict=True))


def test_entropy_is_differentiated_once_and_the_rest_is_not(device: torch.device) -> None:
    z = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    entropy, confidence, reliable, logsumexp = cl_bench_ops.entropy_filter(z, 1.0)
    assert entropy.requires_grad and not (confidence.requires_grad or reliable.requires_grad or logsumexp.requires_grad)
    (gradient,) = torch.autograd.grad(entropy.sum(), z, retain_graph=True)
    p = z.detach().softmax(1)
    torch.testing.assert_close(gradient, -p * (p.log() + entropy.detach().unsqueeze(1)))
    with pytest.raises(RuntimeError, match="entropy_filter_grad is not differentiable, but logits requires grad"):
        torch.autograd.grad(entropy.sum(), z, create_graph=True)
    with torch.no_grad():
        assert not cl_bench_ops.entropy_filter(z, 1.0)[0].requires_grad
    assert torch.autograd.gradcheck(lambda x: cl_bench_ops.entropy_filter(x, 1.0)[0], (z,))


def test_torch_opcheck_of_the_library(device: torch.device) -> None:
    z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    torch.library.opcheck(cl_bench_ops.entropy_filter.overload.default, (z, 1.0))
    torch.library.opcheck(cl_bench_ops.fisher_accumulate_.overload.default, (*ones(device, 2), 0.5))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_several_dtypes_layouts_and_an_empty_tensor(device: torch.device, name: str) -> None:
    def make() -> list[list[Tensor]]:
        draw = torch.Generator().manual_seed(3)
        shapes: list[tuple[int, ...]] = [(40_000,), (5, 3), (0, 2), (70_001,), (6, 4), ()]
        dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float32, torch.float16]
        lists = [[torch.randn(s, generator=draw).to(d).to(device) for s, d in zip(shapes, dtypes, strict=True)]
                 for _ in range(4)]
        for tensors in lists[1:]:
            tensors[4] = tensors[4].t().contiguous().t()  # lies otherwise than what is written
        return lists

    mine, theirs = make(), make()
    LISTS[name](mine)
    getattr(cl_bench_ops, name).definition(*theirs[: 2 if name != "anchored_penalty_grad_" else 4],
                                           *([None] if name == "selective_ema_" else []), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(mine[0], theirs[0], strict=True))
