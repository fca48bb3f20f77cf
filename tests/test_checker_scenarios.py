"""The checker's questions to scenarios: each broken promise is caught, in words a person can act on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cl_bench import LabelSpace, Scenario
from cl_bench.testing import Report, ToyScenario, check_scenario

_SHARED = torch.Generator().manual_seed(0)


def failures(report: Report) -> dict[str, str]:
    return {f.check: f.note for f in report.findings if f.state == "failed"}


class DrawsEarly(ToyScenario):
    def __init__(self) -> None:
        super().__init__()
        self.key = torch.rand(1)


class Dice(ToyScenario):
    def experiences(self) -> Any:
        return [replace(e, data=e.data.subset(torch.randperm(len(e.data), generator=_SHARED))) for e in super().experiences()]


class Outside(ToyScenario):
    def test_sets(self) -> Any:
        return [replace(t, space=LabelSpace((7, 8))) for t in super().test_sets()]


class Overlap(ToyScenario):
    def test_sets(self) -> Any:
        return [replace(t, data=e.data) for t, e in zip(super().test_sets(), self.experiences(), strict=True)]


class GivesAway(ToyScenario):
    gives: frozenset[str] = frozenset({"boundaries", "everything"})


class Twins(ToyScenario):
    def test_sets(self) -> Any:
        return [replace(t, name="same") for t in super().test_sets()]


class Shaky(ToyScenario):
    def protocol(self) -> dict[str, Any]:
        return {"draw": float(torch.rand(1, generator=_SHARED))}


class Complicated(ToyScenario):
    def protocol(self) -> dict[str, Any]:
        return {"data": object()}


class Empty(Scenario):
    """Nothing at all."""


class WalksLoudly(ToyScenario):
    def stream(self) -> Any:
        torch.rand(1)
        return super().stream()


class NoSource(ToyScenario):
    def __init__(self) -> None:
        super().__init__()
        self.gives = frozenset({"source"})


@pytest.mark.parametrize(("make", "check", "said"), [
    (DrawsEarly, "constructing reads no data and draws no random number", "constructing draws random numbers"),
    (Dice, "a second walk gives the same", "data differ"),
    (Outside, "labels lie in the space of their part", "outside its space"),
    (Overlap, "train and test are disjoint", "test images are also training images"),
    (GivesAway, "gives words that a method can need", "everything: known are boundaries"),
    (NoSource, "gives words that a method can need", "says it gives its source but has none"),
    (Twins, "names are unique", "test sets repeat a name"),
    (Shaky, "protocol is plain and constant", "changes from call to call"),
    (Complicated, "protocol is plain and constant", "not plain data"),
    (Empty, "has something to learn or to answer", "no experience and no test set"),
    (WalksLoudly, "walking it draws from no global generator", "a global generator moved"),
], ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_broken_scenario_is_caught(make: Callable[[], Scenario], check: str, said: str) -> None:
    wrong = failures(check_scenario(make))
    assert check in wrong, wrong
    assert said in wrong[check]


def test_reading_files_in_the_constructor_is_caught(tmp_path: Any) -> None:
    file = tmp_path / "data.bin"
    file.write_bytes(b"123")

    class Reads(ToyScenario):
        def __init__(self) -> None:
            super().__init__()
            self.raw = file.read_bytes()

    note = failures(check_scenario(Reads))["constructing reads no data and draws no random number"]
    assert note == f"constructing reads {file}"


def test_a_sound_scenario_passes_and_missing_files_skip() -> None:
    from cl_bench import UserError

    for make in (ToyScenario, lambda: ToyScenario(learns=False, answers="all")):
        report = check_scenario(make)
        report.raise_if_failed()
        assert len(report.findings) >= 9

    class Files(ToyScenario):
        def experiences(self) -> Any:
            raise UserError("put the files into /somewhere.")

    class Folder(ToyScenario):
        def __init__(self) -> None:
            raise UserError("put the files into /somewhere.")

    for lacking in (Files, Folder):
        report = check_scenario(lacking)
        assert report.ok and [(f.state, f.note) for f in report.findings][-1] == ("skipped", "put the files into /somewhere.")

    class Broken(ToyScenario):
        def experiences(self) -> Any:
            raise KeyError("no such thing")

    assert failures(check_scenario(Broken)) == {"can be walked": "KeyError: 'no such thing'"}
