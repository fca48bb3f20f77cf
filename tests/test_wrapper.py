"""A wrapper passes on all of the contract but what it changes: every pair of wrappers, every field, every method."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError, Wrapper
from cl_bench.registry import entries, find
from cl_bench.scenario import FIELDS

ODD = {
    "gives": frozenset({"names", "task_id"}), "answers": "task", "reset": "batch", "stream_speed": 0.25, "label_delay": 7,
    "order": 11, "draws": False, "test_batch_size": 5, "max_epochs": 3, "backbone": "glyph_resnet", "subject": "photographs",
}  # fmt: skip
# What each wrapper changes, with its arguments; everything else is passed on.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "online": ({}, {"max_epochs": 1}),
    "corrupted": ({"corruptions": "brightness,contrast"}, {}),
    "continual": ({}, {"reset": "never"}),
    "per_domain": ({}, {"reset": "domain"}),
    "episodic": ({}, {"reset": "batch"}),
    "small_batch": ({"test_batch_size": 2}, {"test_batch_size": 2}),
    "constant_speed": ({"stream_speed": 0.5}, {"stream_speed": 0.5}),
    "label_delay": ({"label_delay": 2}, {"label_delay": 2, "gives": {"labels"}}),
    "shuffled": ({}, {"draws": True}),
    "correlated": ({}, {"draws": True}),
    "mixed": ({}, {"draws": True}),
    "continual_dynamic_change": ({}, {"draws": True}),
    "label_shift": ({}, {"draws": True}),
    "long_tailed": ({"source_imbalance": 1.0, "imbalance": 2.0}, {"draws": True}),
    "recurring": ({"visits": 2}, {"draws": True}),
    "gradual": ({}, {}),
    "return_to_source": ({}, {}),
}  # fmt: skip
WRAPPERS = sorted(name for name, entry in entries("cl_bench.scenarios").items() if issubclass(entry.load(), Wrapper)
                  and "of" in inspect.signature(entry.load()).parameters)  # others choose what they wrap by themselves
IMPOSSIBLE = {"gradual": {"gradual"}, "corrupted": set(CHANGES) - {"online", "corrupted", "continual", "per_domain", "episodic",
                                                                   "small_batch", "constant_speed", "label_delay"}}


def images(n: int = 24) -> TensorData:
    x = torch.arange(n * 192).remainder(251).to(torch.uint8).view(n, 3, 8, 8)
    return TensorData(x, torch.arange(n) % 4)


class Odd(Scenario):
    """Every field of the contract at a value that is not its default; every part one and the same object."""

    def __init__(self) -> None:
        for name, value in ODD.items():
            setattr(self, name, value)
        self.parts = {name: TestSet(name, LabelSpace((0, 1, 2, 3)), images()) for name in ("clean", "a", "b")}
        self.learned = [Experience("clean", LabelSpace((0, 1, 2, 3)), images())]

    @property
    def space(self) -> LabelSpace:
        return LabelSpace((3, 2, 1, 0))

    @property
    def source(self) -> Experience:
        return self.learned[0]

    def experiences(self) -> Sequence[Experience]:
        return self.learned

    def test_sets(self) -> Sequence[TestSet]:
        return [self.parts["clean"]]

    def stream(self) -> Sequence[TestSet]:
        return [self.parts["a"], self.parts["b"]]

    def at(self, severity: int) -> Sequence[TestSet]:
        return self.stream()

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        return LabelSpace((1, 0))

    def protocol(self) -> dict[str, Any]:
        return {"fact": 42}


def wrap(of: Scenario, *names: str) -> Scenario:
    """Wrapped in each of ``names``, the first one innermost."""
    for name in names:
        of = find("cl_bench.scenarios", name)(of, **CHANGES[name][0])
    return of


def pairs() -> list[tuple[str, str]]:
    return [(a, b) for a in WRAPPERS for b in WRAPPERS if a not in IMPOSSIBLE.get(b, ())]


def test_the_lists_of_this_file_cover_the_contract_and_every_wrapper() -> None:
    assert set(ODD) == set(FIELDS) and set(CHANGES) == set(WRAPPERS)
    assert all(getattr(Scenario, name) != value for name, value in ODD.items() if name != "draws")


@pytest.mark.parametrize("field", FIELDS)
def test_every_pair_of_wrappers_keeps_the_field_or_changes_it(field: str) -> None:
    for inner, outer in pairs():
        expected = ODD[field]
        for name in (inner, outer):
            change = CHANGES[name][1].get(field, expected)
            expected = expected | change if field == "gives" else change
        assert getattr(wrap(Odd(), inner, outer), field) == expected, f"{field} is lost in {outer}({inner}(...))"


@pytest.mark.parametrize("outer", WRAPPERS)
def test_every_pair_of_wrappers_passes_on_the_parts(outer: str) -> None:
    for inner in (a for a, b in pairs() if b == outer):
        odd = Odd()
        s = wrap(odd, inner, outer)
        assert s.space == odd.space and s.source is odd.source and s.experiences() is odd.experiences(), inner
        assert s.test_sets()[0] is odd.test_sets()[0] and s.space_for(odd.parts["a"], LabelSpace()).ids == (1, 0), inner
        assert s.protocol()["fact"] == 42 and not s.interleaves, inner
        assert [p.name for p in s.timeline()] == [p.name for p in [*odd.learned, *s.stream()]], inner
        assert [t.name for t in s.drawn(1)] == [t.name for t in s.stream()], inner


def test_a_wrapper_overrides_every_public_name_of_the_contract() -> None:
    own = {n for n, v in vars(Scenario).items() if not n.startswith("_") and (callable(v) or isinstance(v, property))}
    assert own <= set(vars(Wrapper)), f"not passed on: {own - set(vars(Wrapper))}"
    for name in own:
        theirs, ours = (inspect.getattr_static(c, name) for c in (Scenario, Wrapper))
        assert theirs is not ours


def test_interleaved_learning_keeps_its_timeline_in_a_wrapper_that_does_not_touch_the_stream() -> None:
    deployed = find("cl_bench.scenarios", "deployed_digits")()
    s = wrap(deployed, "online", "online")
    assert s.interleaves and [p.name for p in s.timeline()] == [p.name for p in deployed.timeline()]
    for name in ("shuffled", "corrupted"):
        with pytest.raises(UserError, match="interleaves learning and streaming"):
            wrap(s, name)


def test_what_follows_from_an_overridden_part_follows_it() -> None:
    class Backwards(Wrapper):
        def stream(self) -> Sequence[TestSet]:
            return self.of.stream()[::-1]

    class Everything(Wrapper):
        answers = "all"

    odd = Odd()
    s = Backwards(odd)
    assert [p.name for p in s.timeline()] == ["clean", "b", "a"] and [t.name for t in s.drawn(3)] == ["b", "a"]
    assert Everything(odd).space_for(odd.parts["a"], LabelSpace()).ids == (3, 2, 1, 0)
    s.stream_speed = 0.75  # an attribute of its own wins as well
    assert s.stream_speed == 0.75 and odd.stream_speed == 0.25 and wrap(s, "online").stream_speed == 0.75


def test_corrupted_replaces_no_order_of_images_in_silence() -> None:
    for name in IMPOSSIBLE["corrupted"]:
        with pytest.raises(UserError, match="wrap corrupted in"):
            wrap(Odd(), name, "corrupted")
    assert wrap(Odd(), "corrupted", "correlated").draws


def test_corrupted_streams_in_batches_of_its_own_where_nothing_streamed() -> None:
    make = lambda name, *a, **k: find("cl_bench.scenarios", name)(*a, **k)  # noqa: E731
    assert make("corrupted", make("split_digits")).test_batch_size == 64
    assert make("corrupted").test_batch_size == make("digits_c").test_batch_size
    assert make("corrupted", make("split_digits"), test_batch_size=9).protocol()["test_batch_size"] == 9
    assert make("corrupted", make("split_digits")).answers == "seen", "the matrix stays class-incremental"


def test_each_visit_of_a_gradual_stream_is_drawn_anew() -> None:
    def rows(visit: int) -> list[list[int]]:
        return [t.data.y.tolist() for t in wrap(Odd(), "shuffled", "gradual").drawn(visit)]  # type: ignore[attr-defined]

    assert rows(1) != rows(2) and rows(2) == rows(2)
