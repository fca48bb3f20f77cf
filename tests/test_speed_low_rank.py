"""A linear layer under low-rank adapters: the same answers and gradients as by the dense way, without the dense gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cl_bench.adapters import AdapterSet, attach
from cl_bench.adapters import _low_rank as low_rank
from cl_bench.adapters.lora import LoRA
from cl_bench.engine.encoding import restore, snapshot


class Own(LoRA):
    """A kind of somebody else's, with a ``forward`` of its own and what it inherits about another."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.B @ self.A


def attached(kind: Any, rows: Any = None, **settings: Any) -> tuple[nn.Module, AdapterSet]:
    torch.manual_seed(0)
    trunk = nn.Sequential()
    trunk.add_module("qkv", nn.Linear(8, 12))
    trunk.add_module("out", nn.Linear(12, 5))
    trunk.double()
    adapters = attach(trunk, kind, "qkv|out", rows=rows, **settings)
    for p in adapters.parameters():
        p.data = torch.randn_like(p)
    return trunk, adapters


def differentiated(trunk: nn.Module, adapters: AdapterSet, on: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What it answers, and gradients of images and adapters, by one way or the other."""
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    with monkeypatch.context() as patched:
        patched.setattr(low_rank, "pays", lambda *a: on)
        out = trunk(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *(p for p in trunk.parameters() if p.requires_grad)])]


@pytest.mark.parametrize("rows", [None, ("k", "v")])
@pytest.mark.parametrize("kind", ["lora", "codyra", "sora", "pissa", "dora", "adalora", Own])
def test_both_ways_agree(kind: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, adapters = attached(kind, rows, r=2)
    dense, factored = (differentiated(trunk, adapters, on, monkeypatch) for on in (False, True))
    assert len(dense) > 5 and torch.equal(dense[0], factored[0]), "an answer is the same bits"
    for a, b in zip(dense[1:], factored[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_several_adapters_a_frozen_factor_a_trained_bias_and_a_closed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, adapters = attached("codyra", r=3)
    adapters.add("second")
    adapters.use("default", "second")
    for k, (_, adapter) in enumerate(adapters.each()):
        adapter.A.requires_grad_(k % 2 == 0)  # InfLoRA's first factor stands still
        adapter.B.data.normal_()
        adapter.gate.data[0] = 0.0
    trunk.out.bias.requires_grad_(True)
    dense, factored = (differentiated(trunk, adapters, on, monkeypatch) for on in (False, True))
    for a, b in zip(dense, factored, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(bool(p.gate[0] == 0) for _, p in adapters.each()), "and a gate at zero has its gradient among these"


def test_gradients_of_the_function() -> None:
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    x, weight, bias, down, up = rand(4, 6), rand(5, 6).detach(), rand(5), rand(2, 6), rand(3, 2)

    def layer(x: Tensor, bias: Tensor, down: Tensor, up: Tensor) -> Tensor:
        moved = (up @ down).detach()  # a function of the factors in all but the graph
        whole = torch.cat([weight[:1], weight[1:4] + moved, weight[4:]])
        return low_rank._Linear.apply(x, whole, bias, ((1, 4),), down, up)

    assert torch.autograd.gradcheck(layer, (x, bias, down, up))
    one = torch.func.vmap(lambda row: layer(row[None], bias, down, up)[0])(x)
    torch.testing.assert_close(one, layer(x, bias, down, up))


def test_a_layer_answers_in_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, adapters = attached("codyra", r=2)
    trunk.float()
    grads = []
    for on in (False, True):
        with monkeypatch.context() as patched, torch.autocast("cpu", torch.bfloat16):
            patched.setattr(low_rank, "pays", lambda *a, on=on: on)
            out = trunk(torch.ones(3, 8, requires_grad=True))
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().sum(), list(adapters.parameters())))
    for a, b in zip(*grads, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_the_dense_gradient_is_not_computed_and_small_layers_take_the_old_way() -> None:
    assert low_rank.pays(16, 768, 768) and low_rank.pays(16, 2304, 768)
    assert not low_rank.pays(4, 256, 64) and not low_rank.pays(64, 768, 768)
    counts = {}
    for rank in (4, 64):  # the first pays, the second does not
        layer = nn.Sequential()
        layer.add_module("one", nn.Linear(256, 256))
        attach(layer, "lora", "one", r=rank)
        with FlopCounterMode(display=False) as flops:
            layer(torch.ones(512, 256, requires_grad=True)).sum().backward()
        counts[rank] = flops.get_total_flops() / (2 * 512 * 256 * 256)  # in forward passes
    assert counts[4] < 2.2 and counts[64] > 3, counts


def test_copies_and_what_a_checkpoint_holds_take_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, adapters = attached("lora", r=2)
    expected = differentiated(trunk, adapters, True, monkeypatch)
    tree, tensors = snapshot(trunk)
    for other in (copy.deepcopy(trunk), restore(tree, tensors), restore(tree, tensors, into=attached("lora", r=2)[0])):
        assert isinstance(other.qkv, low_rank.LowRankLinear)
        for a, b in zip(expected, differentiated(other, adapters, True, monkeypatch), strict=True):
            assert torch.equal(a, b)
