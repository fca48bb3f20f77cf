"""What is remembered of a trunk that nothing trains: of images that are read one by one, of training images, by layout."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_speed_engine import COMPUTE, SPACE, Frozen, counted
from torch import Tensor
from torch.utils.data import Dataset
from toys import coded, tiny_backbone

from cl_bench import Experience, LabelSpace, Method, TensorData, TestSet
from cl_bench.engine import features as features_module
from cl_bench.engine.compute import Compute
from cl_bench.engine.features import Features
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.trunk import glance
from cl_bench.registry import find


class Read(Dataset[tuple[Tensor, int]]):
    """Images that are read item by item."""

    def __init__(self, data: Any) -> None:
        self.data, self.y = data, data.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.x[index], int(self.y[index])


def test_images_that_are_read_item_by_item_pass_once_too() -> None:
    """The loader's own draw of a seed is no draw of the network's."""
    tests, method = [TestSet("a", SPACE, Read(coded(10)))], Frozen()
    passes, features = counted(method), Features(COMPUTE, None, Meter())
    plain, = measure(method, tests, [SPACE], COMPUTE, 4, 0)
    passes.clear()
    for _ in range(2):
        kept, = measure(method, tests, [SPACE], COMPUTE, 4, 0, features)
        assert (kept.predictions == plain.predictions).all()
    assert sum(passes) == 10


class Encodes(Method):
    """Asks for the features of what it is to learn, and trains nothing."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.backbone.eval().requires_grad_(False)
        self.found = self.backbone.encoded(exp.data, 8)

    def epochs_for(self, exp: Experience) -> int:
        return 0


def learned(cache: Path | None, data: Any, change: Callable[[Any], Any] = lambda b: None, **compute: Any
            ) -> tuple[Tensor, int, int]:
    """Features that a run of its own is told, how many images passed its trunk, and how many count as passed."""
    torch.manual_seed(0)
    method, meter = Encodes(tiny_backbone()), Meter()
    change(method.backbone)
    meter.attach(method.backbone, torch.zeros(1, 3, 4, 4))
    passes, start = counted(method), meter.forward_images
    asked = Compute(device="cpu", **compute)
    fit(method, Experience("a", SPACE, data), asked, 0, meter=meter, encoded=Features(asked, cache, meter).lend(data))
    return method.found, sum(passes), meter.forward_images - start


def test_training_images_pass_a_frozen_trunk_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "LONG", 0.0)
    monkeypatch.setattr(features_module, "FEW", 20)
    data = coded(20)
    alone, first, second = learned(None, data), learned(tmp_path, data), learned(tmp_path, data)
    assert (alone[1], first[1], second[1]) == (20, 20, 0) and {alone[2], first[2], second[2]} == {20}
    assert torch.equal(alone[0], first[0]) and torch.equal(first[0], second[0])
    other = coded(20)
    other.x[0, 0, 0, 0] += 1
    assert learned(tmp_path, other)[1] == 20, "other pixels"
    assert learned(tmp_path, coded(19))[1] == 19 == learned(tmp_path, coded(19))[1], "too few to be looked up"
    assert learned(tmp_path, data, layout="channels_last")[1] == 20, "another layout has other last bits"
    with torch.no_grad():
        assert learned(tmp_path, data, lambda b: b.model[1].weight.mul_(2))[1] == 20, "other weights"


def test_training_images_pass_an_edited_network_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "LONG", 0.0)
    monkeypatch.setattr(features_module, "FEW", 1)
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    for number, body in enumerate(("x", "-x", "-x")):
        file = tmp_path / "mine_turned.py"
        file.write_text(f"from torch import nn\nclass Turn(nn.Module):\n    def forward(self, x):\n        return {body}\n")
        os.utime(file, (number, number))
        sys.modules.pop("mine_turned", None)
        importlib.invalidate_caches()
        turn = importlib.import_module("mine_turned").Turn()
        told.append(learned(tmp_path / "cache", coded(9), lambda b, turn=turn: b.model.append(turn)))
    assert [passed for _, passed, _ in told] == [9, 9, 0]
    assert torch.equal(told[1][0], -told[0][0]) and torch.equal(told[1][0], told[2][0])


def test_a_test_image_s_features_are_not_another_layout_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "LONG", 0.0)
    passed = []
    for layout in ("contiguous", "channels_last", "channels_last"):
        torch.manual_seed(0)
        method, compute = Frozen(), Compute(device="cpu", layout=layout)
        passes = counted(method)
        measure(method, [TestSet("a", SPACE, coded(9))], [SPACE], compute, 4, 0, Features(compute, tmp_path, Meter()))
        passed.append(sum(passes))
    assert passed == [9, 9, 0]


def test_a_row_of_many_test_sets_tells_a_trunk_once_and_again_when_it_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []
    plain = features_module.trunk_digest
    monkeypatch.setattr(features_module, "trunk_digest", lambda b: (told.append(plain(b)), told[-1])[1])
    method, features = Frozen(), Features(COMPUTE, None, Meter())
    spaces = [SPACE, SPACE - LabelSpace((0,)), SPACE - LabelSpace((1,))]
    tests = [TestSet(n, s, coded(6)) for n, s in zip("abc", spaces, strict=True)]
    measure(method, tests, spaces, COMPUTE, 6, 0, features)
    assert len(told) == 1
    measure(method, tests, spaces, COMPUTE, 6, 0, features)
    assert len(told) == 2 and told[0] == told[1], "the next row looks again"
    written, answer = Frozen(), Frozen.predict

    def predict(self: Frozen, x: Tensor, space: LabelSpace) -> Tensor:
        with torch.no_grad():
            self.backbone.model[1].weight.mul_(2)
        return answer(self, x, space)

    monkeypatch.setattr(Frozen, "predict", predict)
    measure(written, tests, spaces, COMPUTE, 6, 0, features)
    assert len(set(told[2:])) == 3, "a network that is written to between two test sets is another each time"


class Lends(Frozen):
    """Asks its trunk, lends it something by what it saw, and asks again: as methods do that prompt a frozen network."""

    def __init__(self, lend: Callable[[Any], Any], take_back: Callable[[Any], Any], before: bool) -> None:
        super().__init__()
        self.lend, self.take_back, self.before = lend, take_back, before

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        seen = self.backbone.forward_features(x) if self.before else 0
        with torch.no_grad():
            self.lend(self.backbone.model)
            prompted = self.backbone.forward_features(x)
            self.take_back(self.backbone.model)
        return self.head(torch.sin(9 * prompted) - seen)


class Scale(torch.nn.Module):
    """By its own attribute, and one of its class."""

    shared: ClassVar[float] = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.by: Any = None
        self.held: list[Any] = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if self.by is None else self.by) * self.held[0] * Scale.shared


def _doubled(model: Any) -> Any:
    model[-1].hook = model[1].register_forward_hook(lambda m, i, o: 2 * o)


LENT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "a tensor": (lambda m: setattr(m[-1], "by", torch.full((1,), 2.0)), lambda m: setattr(m[-1], "by", None)),
    "a number": (lambda m: setattr(m[-1], "by", 2.0), lambda m: setattr(m[-1], "by", None)),
    "in a list": (lambda m: m[-1].held.__setitem__(0, 2.0), lambda m: m[-1].held.__setitem__(0, 1.0)),
    "in place": (lambda m: m[1].weight.mul_(2), lambda m: m[1].weight.div_(2)),
    "through data": (lambda m: m[1].weight.data.mul_(2), lambda m: m[1].weight.data.div_(2)),
    "a hook": (_doubled, lambda m: m[-1].__dict__.pop("hook").remove()),
    "of the class": (lambda m: setattr(Scale, "shared", 2.0), lambda m: setattr(Scale, "shared", 1.0)),
}


@pytest.mark.parametrize(("how", "before"), [
    *((how, True) for how in LENT), *((how, False) for how in LENT if how != "of the class")])
def test_a_trunk_that_is_lent_something_while_it_answers_is_asked_anew(how: str, before: bool) -> None:
    torch.manual_seed(0)
    method = Lends(*LENT[how], before)
    method.backbone.model.append(Scale())
    tests, spaces = [TestSet(n, SPACE, coded(20)) for n in "ab"], [SPACE, SPACE]
    plain = measure(method, tests, spaces, COMPUTE, 6, 0)
    passes = counted(method)
    kept = measure(method, tests, spaces, COMPUTE, 6, 0, Features(COMPUTE, None, Meter()))
    assert all((a.predictions == b.predictions).all() for a, b in zip(kept, plain, strict=True))
    assert sum(passes) >= 40, "the second answer of each batch came from the network"


@pytest.mark.parametrize("odd", [torch.zeros(4).to(torch.float8_e4m3fn), torch.zeros(2, 2).to_sparse()])
def test_a_trunk_that_cannot_be_glanced_at_stops_no_run(odd: Tensor) -> None:
    method = Frozen()
    method.backbone.model.register_buffer("odd", odd)
    assert glance(method.backbone) is None


def test_a_prompted_method_answers_the_same_with_remembered_features() -> None:
    method = find("cl_bench.methods", "l2p")(find("cl_bench.backbones", "glyph_vit")())
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    method.head.grow(SPACE)
    method.requires_grad_(False)
    tests = [TestSet("a", SPACE, TensorData(torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 4))]
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    plain, = measure(method, tests, [SPACE], COMPUTE, 16, 0)
    kept, = measure(method, tests, [SPACE], COMPUTE, 16, 0, Features(COMPUTE, None, Meter()))
    assert len(set(plain.predictions.tolist())) > 1 and (kept.predictions == plain.predictions).all()
