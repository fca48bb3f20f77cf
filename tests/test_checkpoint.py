"""Explicit state: what is written down is enough, and nothing else is believed."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from cl_bench import LabelSpace, Rng
from cl_bench.engine.checkpoint import load, restore, save, snapshot
from cl_bench.errors import UserError
from cl_bench.method import Method
from cl_bench.registry import find


def again(value: Any, into: Any = None) -> Any:
    tree, tensors = snapshot(value)
    return restore(json.loads(json.dumps(tree, allow_nan=False)), tensors, into)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
plain = st.recursive(leaves, lambda c: st.lists(c, max_size=3) | st.tuples(c, c) | st.dictionaries(
    st.text(max_size=3) | st.integers(), c, max_size=3) | st.frozensets(st.integers(), max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_plain_data_come_back_equal(value: Any) -> None:
    assert again(value) == value


def test_infinity_and_nan_survive_json() -> None:
    back = again([float("inf"), -float("inf"), float("nan")])
    assert back[0] == float("inf") and back[1] == -float("inf") and back[2] != back[2]


def test_containers_tensors_and_generators() -> None:
    rng = Rng(4)
    torch.rand(3, generator=rng.on())
    value = {"q": deque([1, 2], maxlen=2), "o": OrderedDict(a=1), 3: {1, 2}, "space": LabelSpace((4, 2), ("x", "y")),
             "t": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([True]), "e": torch.zeros(0, 3), "rng": rng,
             "dtype": torch.float16, "size": torch.Size([2, 3])}
    back = again(value)
    assert back["q"].maxlen == 2 and isinstance(back["o"], OrderedDict) and back[3] == {1, 2}
    assert back["space"] == value["space"] and back["dtype"] is torch.float16
    assert torch.equal(back["t"], value["t"]) and back["e"].shape == (0, 3) and back["b"].dtype == torch.bool
    assert torch.equal(torch.rand(4, generator=back["rng"].on()), torch.rand(4, generator=rng.on()))


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, lr=0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_goes_on_with_the_models_own_parameters(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = make(model.parameters())
    x = torch.randn(8, 3)

    def step(m: nn.Module, o: torch.optim.Optimizer) -> None:
        o.zero_grad()
        m(x).square().sum().backward()
        o.step()

    step(model, optimizer)
    twin, other = again({"m": model, "o": optimizer}).values()
    step(model, optimizer)
    step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert {id(p) for g in other.param_groups for p in g["params"]} == {id(p) for p in twin.parameters()}


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(2, 2))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w + self.by


def test_parametrized_layers_come_back_parametrized(monkeypatch: pytest.MonkeyPatch) -> None:
    import cl_bench.engine.checkpoint as checkpoint

    monkeypatch.setattr(checkpoint, "_PACKAGES", (*checkpoint._PACKAGES, __name__.partition(".")[0]))
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Shift())
    x = torch.randn(3, 2)
    for into in (None, nn.Linear(2, 2)):
        back = again(layer, into)
        assert parametrize.is_parametrized(back)
        assert torch.equal(back(x), layer(x))
        assert not isinstance(getattr(nn.Linear, "weight", None), property), "the class of all layers was changed"
        back(x).sum().backward()
        assert back.parametrizations.weight[0].by.grad is not None


def test_what_cannot_be_kept_is_named() -> None:
    backbone = find("cl_bench.backbones", "glyph_vit")(pretrained=False)
    method = Method(backbone)
    method.trick = lambda: 1
    with pytest.raises(UserError, match=r"Method\.trick is a function"):
        snapshot(method)


def test_foreign_classes_are_refused() -> None:
    tree, tensors = snapshot(nn.Linear(2, 2))
    tree["class"] = "subprocess:Popen"
    with pytest.raises(UserError, match="subprocess:Popen"):
        restore(tree, tensors)
    tree["class"] = "torch.serialization:load"
    with pytest.raises(UserError, match="no Module"):
        restore(tree, tensors)


def test_damaged_missing_and_foreign_checkpoints(tmp_path: Path) -> None:
    backbone = find("cl_bench.backbones", "glyph_vit")(pretrained=False)
    method = Method(backbone)
    with pytest.raises(UserError, match="no checkpoint"):
        load(tmp_path / "checkpoint", method)
    folder = tmp_path / "checkpoint"
    save(folder, method, {"step": 2})
    assert load(folder, Method(backbone)) == {"step": 2}
    ncm = find("cl_bench.methods", "ncm")(backbone)
    with pytest.raises(UserError, match=r"is of cl_bench\.method:Method"):
        load(folder, ncm)
    whole = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match="damaged"):
        load(folder, Method(backbone))
    save_file({}, folder / "state.safetensors")
    (folder / "state.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        load(folder, Method(backbone))
