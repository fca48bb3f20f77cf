"""Costs: images forward and backward counted exactly, also through copies; parameters and state counted once."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import tta_toy
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toys import tiny_backbone

from cl_bench import Backbone, Method
from cl_bench.engine.meter import (
    Meter,
    optimised_parameters,
    parameter_counts,
    peak_memory,
    reset_peak_memory,
)
from cl_bench.registry import find
from cl_bench.state import size_bytes as state_bytes


def metered(backbone: Backbone | None = None, side: int = 4) -> tuple[Meter, Backbone]:
    backbone = tiny_backbone() if backbone is None else backbone
    meter = Meter()
    meter.attach(backbone, torch.zeros(1, 3, side, side))
    return meter, backbone


def counts(meter: Meter) -> tuple[int, int]:
    return meter.forward_images, meter.backward_images


@pytest.mark.parametrize("name", ["glyph_vit", "glyph_resnet"])
def test_images_forward_and_backward(name: str) -> None:
    backbone = find("cl_bench.backbones", name)(pretrained=False)
    flags = [m.training for m in backbone.modules()]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    meter, _ = metered(backbone, 16)
    assert counts(meter) == (0, 0), "the probe does not count"
    assert flags == [m.training for m in backbone.modules()]
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items()), "the probe moves no statistics"
    backbone.train()
    backbone.forward_features(torch.rand(5, 3, 16, 16)).sum().backward()
    assert counts(meter) == (5, 5)
    with torch.no_grad():
        backbone.forward_features(torch.rand(7, 3, 16, 16))
    assert counts(meter) == (12, 5)


def test_a_frozen_backbone_has_no_backward_pass() -> None:
    meter, backbone = metered()
    method = Method(backbone.requires_grad_(False))
    method.head = nn.Linear(8, 4)
    method(torch.rand(3, 3, 4, 4)).sum().backward()
    assert counts(meter) == (3, 0)


def test_forward_without_backward_is_forward_only() -> None:
    meter, backbone = metered()
    backbone.forward_features(torch.rand(3, 3, 4, 4))
    kept = backbone.forward_features(torch.rand(2, 3, 4, 4))
    kept.sum().backward()
    assert counts(meter) == (5, 2)


def test_copies_count_into_the_same_run() -> None:
    meter, backbone = metered()
    teacher = copy.deepcopy(backbone)
    with torch.no_grad():
        teacher.forward_features(torch.rand(4, 3, 4, 4))
    again = copy.deepcopy(teacher)
    again.forward_features(torch.rand(2, 3, 4, 4)).sum().backward()
    assert counts(meter) == (6, 2)
    meter.watch(nn.ModuleList([backbone, teacher, again]))
    backbone.forward_features(torch.rand(1, 3, 4, 4))
    assert counts(meter) == (7, 2), "watching twice does not count twice"


def test_a_method_copied_for_measuring_goes_on_counting() -> None:
    meter, backbone = metered()
    method = Method(backbone)
    method.mark()
    twin = copy.deepcopy(method)
    twin.backbone.forward_features(torch.rand(3, 3, 4, 4))
    method.reset()
    method.backbone.forward_features(torch.rand(2, 3, 4, 4))
    assert counts(meter) == (5, 0)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(()))

    def forward(self, w: Tensor) -> Tensor:
        return w * self.by


def test_parametrized_layers_are_counted_before_and_after() -> None:
    meter, backbone = metered()
    for layer in (backbone.model[1], backbone.model[4]):
        parametrize.register_parametrization(layer, "weight", Scale())
    backbone.forward_features(torch.rand(3, 3, 4, 4)).sum().backward()
    assert counts(meter) == (3, 3)
    meter, backbone = metered(copy.deepcopy(backbone))
    copy.deepcopy(backbone).forward_features(torch.rand(2, 3, 4, 4)).sum().backward()
    assert counts(meter) == (2, 2)


@pytest.mark.parametrize("kind", ["lora", "codyra", "adaptformer", "vpt_deep"])
def test_adapters_on_a_frozen_trunk_are_passed_backward(kind: str) -> None:
    from cl_bench.adapters import FUSED4, attach

    meter, backbone = metered(find("cl_bench.backbones", "glyph_vit")(pretrained=False), 16)
    attach(backbone, kind, FUSED4 if kind in ("lora", "codyra") else r"blocks\.\d+")
    backbone.forward_features(torch.rand(3, 3, 16, 16)).sum().backward()
    assert counts(meter) == (3, 3)


def test_adapters_that_were_there_first_are_no_end() -> None:
    """A method attaches in its constructor, before the run starts to count, and may change to another adapter later."""
    from cl_bench.adapters import attach

    backbone = find("cl_bench.backbones", "glyph_vit")(pretrained=False)
    adapters = attach(backbone, "pfeiffer", r"blocks\.\d+\.mlp")
    adapters.add("second")
    meter, _ = metered(backbone, 16)
    for name in ("default", "second"):
        adapters.use(name)
        backbone.forward_features(torch.rand(3, 3, 16, 16)).sum().backward()
    assert counts(meter) == (6, 6)


def test_norms_may_be_replaced_without_losing_the_count() -> None:
    meter, backbone = metered()
    backbone.model[2], backbone.model[5] = nn.Identity(), nn.Identity()
    backbone.forward_features(torch.rand(3, 3, 4, 4)).sum().backward()
    assert counts(meter) == (3, 3)


def test_a_network_without_layers_is_refused() -> None:
    from cl_bench.backbones.base import Preprocess

    empty = Backbone(nn.Flatten(), num_features=48, preprocess=Preprocess(None))
    with pytest.raises(ValueError, match="no layer with parameters"):
        metered(empty)


# ------------------------------------------------------------------------------------------------ sizes
def test_parameters_are_counted_once() -> None:
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    b.weight = a.weight
    b.bias.requires_grad_(False)
    assert parameter_counts(nn.ModuleList([a, b])) == {"total": 12 + 4 + 4, "trainable": 12 + 4}


@pytest.mark.parametrize(("name", "share"), [("source", "none"), ("bn", "none"), ("tent", "norms"), ("cotta", "all")])
def test_a_deployed_method_trains_what_its_optimizer_holds(name: str, share: str) -> None:
    method = tta_toy.deployed(name)
    norms = sum(p.numel() for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    every = sum(p.numel() for p in method.model.parameters())
    assert 0 < norms < every and parameter_counts(method)["total"] >= 2 * every, "the learned model is held beside it"
    assert optimised_parameters(method) == {"none": 0, "norms": norms, "all": every}[share]


@dataclass
class Stored:
    image: Tensor
    age: int = 0


def test_state_bytes_of_everything_a_method_can_keep() -> None:
    x = torch.zeros(10)  # 40 bytes
    assert state_bytes(x) == 40 and state_bytes([x, x, {"again": x}]) == 40, "a tensor counts once"
    assert state_bytes((torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.uint8))) == 19
    assert state_bytes(deque([torch.zeros(1)])) == 4 and state_bytes(np.zeros(3)) == 24
    assert state_bytes([Stored(torch.zeros(5)), Stored(torch.zeros(5))]) == 40
    assert state_bytes("words") == state_bytes(3) == state_bytes(None) == 0


def test_state_bytes_of_modules_and_optimizers() -> None:
    layer = nn.BatchNorm1d(4)  # weight, bias, mean, var: 16 bytes each, and an int64 counter
    assert state_bytes(layer) == 72
    model = nn.Linear(4, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert state_bytes([model, optimizer]) == 32
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert state_bytes([model, optimizer]) == 64, "the momentum counts"


def test_a_mark_is_not_state_of_the_method() -> None:
    method = Method(tiny_backbone())
    size = state_bytes(method)
    assert size >= 4 * parameter_counts(method)["total"]
    method.mark()
    assert state_bytes(method) == size
    method.buffer = torch.zeros(100)
    assert state_bytes(method) == size + 400


def test_peak_memory_is_plausible() -> None:
    reset_peak_memory()
    before = peak_memory()
    block = torch.ones(50_000_000 // 4)
    assert peak_memory() - before > 40_000_000
    assert before > 10_000_000 and block.sum() > 0
