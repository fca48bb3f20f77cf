"""Explicit state: what is written down is enough, and nothing else is believed."""

from __future__ import annotations

import json
import os
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.utils import parametrize

from cl_bench import LabelSpace, Rng
from cl_bench.engine.checkpoint import Damaged, read, restore, save, snapshot
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
    import cl_bench.engine.encoding as checkpoint

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


def test_a_checkpoint_is_whole_or_told(tmp_path: Path) -> None:
    backbone = find("cl_bench.backbones", "glyph_vit")(pretrained=False)
    folder = tmp_path / "checkpoint"
    assert read(folder) is None
    save(folder, Method(backbone), {"step": 2}, {"seed": 3})
    found = read(folder)
    assert found is not None and found.identity == {"seed": 3} and found.fill(Method(backbone)) == {"step": 2}
    with pytest.raises(UserError, match=r"is of cl_bench\.method:Method"):
        found.fill(find("cl_bench.methods", "ncm")(backbone))
    save(folder, Method(backbone), {"step": 3}, {"seed": 3})
    (tensors,) = folder.glob("*.safetensors")
    again = read(folder)
    assert again is not None and again.fill(Method(backbone)) == {"step": 3}, "one state, one file of tensors"
    whole, state = tensors.read_bytes(), (folder / "state.json").read_bytes()
    zeroed = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    for path, data in ((tensors, whole[:100]), (tensors, zeroed), (tensors, None), (folder / "state.json", state[:-40]),
                       (folder / "state.json", state.replace(b"step", b"stop")), (folder / "state.json", b"[]"),
                       (folder / "state.json", b"")):
        kept = path.read_bytes()
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with pytest.raises(Damaged):
            read(folder)
        path.write_bytes(kept)
    assert read(folder) is not None


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_save_that_is_killed_leaves_the_old_checkpoint(name: str, call: int, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that brings it to the disk."""
    method, folder = Method(find("cl_bench.backbones", "glyph_vit")(pretrained=False)), tmp_path / "checkpoint"
    save(folder, method, {"step": 1}, {})
    real, left = getattr(os, name), [call]

    def killed(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, name, killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, method, {"step": 2}, {})
    monkeypatch.undo()
    found = read(folder)
    assert found is not None and found.fill(method) == {"step": 1}


def test_the_mark_comes_back(tmp_path: Path) -> None:
    backbone = find("cl_bench.backbones", "glyph_vit")(pretrained=False)
    method = Method(backbone)
    method.note = 1
    method.mark()
    method.note = 2
    save(tmp_path / "checkpoint", method, None, {})
    other, found = Method(backbone), read(tmp_path / "checkpoint")
    assert found is not None
    found.fill(other)
    assert other.note == 2
    other.reset()
    assert other.note == 1


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("cl_bench.engine.checkpoint.SCHEMA", 1)
        save(tmp_path / "checkpoint", Method(find("cl_bench.backbones", "glyph_vit")(pretrained=False)), None, {})
    with pytest.raises(UserError, match="has schema 1; this cl-bench reads"):
        read(tmp_path / "checkpoint")
