"""The trained source of a test stream: kept under its content, used only as it was written."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, TensorData
from cl_bench.engine import source_training
from cl_bench.engine.compute import Compute
from cl_bench.engine.content import data_digest, object_digest, tensors_digest
from cl_bench.engine.source_training import SourceRecipe, ready_backbone
from cl_bench.registry import find
from cl_bench.testing import ToyScenario


class Fits:
    """Counts trainings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, real = 0, source_training.fit

        def fit(*args: Any, **kw: Any) -> Any:
            self.count += 1
            return real(*args, **kw)

        monkeypatch.setattr(source_training, "fit", fit)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    return Fits(monkeypatch)


def ready(cache: Path, scenario: Any = None, seed: int = 0, **recipe: Any) -> Any:
    scenario = scenario if scenario is not None else ToyScenario(learns=False, answers="all")
    return ready_backbone(find("cl_bench.backbones", "glyph_resnet")(), scenario, SourceRecipe(**{"epochs": 1, **recipe}),
                          Compute("cpu"), seed, fits=False, cache=cache)


def bits(backbone: Any) -> str:
    return tensors_digest(backbone.state_dict())


class Source:
    """A stream over a toy whose source is given."""

    def __init__(self, data: Dataset, augment: Any = None) -> None:
        self.source = Experience("source", LabelSpace((0, 1)), data, augment)

    def experiences(self) -> tuple[()]:
        return ()


def images(shift: int = 0) -> TensorData:
    x = torch.arange(24 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(24, 3, 32, 32)
    return TensorData(x + shift, torch.arange(24) % 2)


def test_methods_of_a_table_start_from_the_same_bits_and_pay_once(tmp_path: Path, fits: Fits) -> None:
    first, second = ready(tmp_path), ready(tmp_path)
    assert fits.count == 1 and bits(first) == bits(second)
    assert first.info["trained"] == second.info["trained"] and first.info["trained"]["note"] == ""
    (file,) = tmp_path.iterdir()
    assert first.info["trained"]["sha256"] == tensors_digest(load_file(file))
    assert ready(tmp_path, seed=1).info["trained"]["sha256"] != first.info["trained"]["sha256"]
    ready(tmp_path, epochs=2)
    assert fits.count == 3


@pytest.mark.parametrize("damage", ["zeroed", "one bit", "cut", "empty", "noise", "another's", "bare"])
def test_what_is_not_as_it_was_written_is_trained_again(damage: str, tmp_path: Path, fits: Fits) -> None:
    first = ready(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "zeroed":  # the tensors alone: still a file that opens
        head = 8 + int.from_bytes(whole[:8], "little")
        file.write_bytes(whole[:head] + bytes(len(whole) - head))
    elif damage == "one bit":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "another's":
        other = ready(tmp_path / "other", seed=5)
        assert bits(other) != bits(first)
        (file_of_other,) = (tmp_path / "other").iterdir()
        file.write_bytes(file_of_other.read_bytes())
    elif damage == "bare":  # without a word on what it is
        save_file(load_file(file), file)
    else:
        file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff" * 1000}[damage])
    before = fits.count
    again = ready(tmp_path)
    assert fits.count == before + 1 and bits(again) == bits(first), "never the numbers of other weights"
    assert "trained again" in again.info["trained"]["note"]
    assert ready(tmp_path).info["trained"]["note"] == "" and fits.count == before + 1, "the file was put right"


def test_a_cache_that_cannot_be_written_costs_a_note(tmp_path: Path, fits: Fits) -> None:
    (tmp_path / "file").write_text("")
    made = ready(tmp_path / "file" / "cache")
    assert "could not be kept" in made.info["trained"]["note"] and fits.count == 1


class Items(Dataset):
    """Read item by item; a name and a length say nothing of its pixels. ``digest`` lies."""

    def __init__(self, data: TensorData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.data.x[k], int(self.data.y[k])

    @property
    def y(self) -> Tensor:
        return self.data.y

    def digest(self) -> str:
        return "always the same"


@pytest.mark.parametrize("wrap", [lambda data: data, Items], ids=["held", "item by item"])
def test_other_pixels_are_another_source_whatever_the_data_set_says_of_itself(wrap: Any, tmp_path: Path, fits: Fits) -> None:
    a, b = ready(tmp_path, Source(wrap(images()))), ready(tmp_path, Source(wrap(images(1))))
    assert fits.count == 2 and bits(a) != bits(b)
    assert bits(ready(tmp_path, Source(wrap(images())))) == bits(a) and fits.count == 2
    swapped = TensorData(images().x, 1 - images().y)
    assert data_digest(wrap(swapped)) != data_digest(wrap(images()))


@dataclass
class Shift:
    by: float = 0.0

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.by


class Plain:
    """No ``__repr__`` of its own: its text is an address."""

    def __init__(self, by: float) -> None:
        self.by = torch.tensor(by)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.by


def shifted(by: float) -> Any:
    return lambda x, generator: x + by


def moved(x: Tensor, generator: torch.Generator, by: float = 0.0) -> Tensor:
    return x + by


@pytest.mark.parametrize("make", [Shift, Plain, shifted, lambda by: functools.partial(moved, by=by),
                                  lambda by: Shift(by).__call__], ids=["dataclass", "object", "closure", "partial", "method"])
def test_an_augmentation_is_what_it_does_not_where_it_lies(make: Any, tmp_path: Path, fits: Fits) -> None:
    keep = [make(0.0) for _ in range(50)]  # so that no two share an address
    assert len({object_digest(a) for a in keep}) == 1 and object_digest(keep[0]) is not None
    assert object_digest(make(0.25)) not in (None, object_digest(keep[0]))
    for by, count in ((0.0, 1), (0.0, 1), (0.25, 2)):
        ready(tmp_path, Source(images(), make(by)))
        assert fits.count == count


def test_what_cannot_be_told_apart_is_not_kept(tmp_path: Path, fits: Fits) -> None:
    space: dict[str, Any] = {}
    exec("augment = lambda x, generator: x", space)  # no source anywhere
    assert object_digest(space["augment"]) is None
    for count in (1, 2):
        made = ready(tmp_path, Source(images(), space["augment"]))
        assert fits.count == count and not list(tmp_path.iterdir()) and made.info["trained"]["sha256"]
    with open(tmp_path / "open", "w") as file:
        assert object_digest(file) is None


def test_edited_code_trains_again(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(tmp_path)
    monkeypatch.setattr(source_training, "network_code", lambda network: "0123456789abcdef")
    ready(tmp_path)
    assert fits.count == 2


def test_an_edited_network_trains_again(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name, weights and settings, another forward in the user's own file."""
    monkeypatch.syspath_prepend(tmp_path)
    for change, count in (("x", 1), ("x", 1), ("2 * x", 2)):
        (tmp_path / "network_edited.py").write_text(
            f"from torch import nn\nclass Scaled(nn.Module):\n    def forward(self, x):\n        return {change}\n")
        sys.modules.pop("network_edited", None)
        importlib.invalidate_caches()
        backbone = find("cl_bench.backbones", "glyph_resnet")()
        backbone.model.scaled = importlib.import_module("network_edited").Scaled()
        ready_backbone(backbone, ToyScenario(learns=False, answers="all"), SourceRecipe(epochs=1), Compute("cpu"), 0,
                       fits=False, cache=tmp_path / "cache")
        assert fits.count == count
