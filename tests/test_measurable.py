"""Which cells of the matrix are measured: those that could be right, in every view; with a text head, more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import coded, tiny_backbone

from cl_bench import Experience, LabelSpace, Method, Scenario, TensorData, TestSet, TextHead, Wrapper
from cl_bench.engine.compute import Compute
from cl_bench.engine.protocol import Plan
from cl_bench.engine.runner import run
from cl_bench.records.results import load
from cl_bench.registry import find

VIEWS = ("seen", "task", "all")


class Steps(Scenario):
    """Experiences of some classes each, a test set beside each of them; ``shared``: one more, of all classes."""

    def __init__(self, steps: Sequence[tuple[int, ...]], answers: Literal["seen", "task", "all"], shared: bool = False) -> None:
        self.steps, self.answers, self.shared = steps, answers, shared

    def part(self, ids: tuple[int, ...]) -> tuple[LabelSpace, TensorData]:
        data = coded(24, 6)
        rows = torch.isin(data.y, torch.tensor(ids))
        return LabelSpace(ids, tuple(f"class {i}" for i in ids)), TensorData(data.x[rows], data.y[rows])

    def experiences(self) -> list[Experience]:
        return [Experience(f"e{k}", *self.part(ids)) for k, ids in enumerate(self.steps)]

    def test_sets(self) -> list[TestSet]:
        every = tuple(dict.fromkeys(i for ids in self.steps for i in ids))
        more = [TestSet("everything", *self.part(every))] if self.shared else []
        return [TestSet(f"t{k}", *self.part(ids)) for k, ids in enumerate(self.steps)] + more


steps = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True).map(tuple), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(steps, st.sampled_from(VIEWS), st.booleans())
def test_a_cell_is_measured_when_all_of_its_classes_were_learned_and_may_be_answered(
    taken: list[tuple[int, ...]], view: Literal["seen", "task", "all"], shared: bool
) -> None:
    s, seen = Steps(taken, view, shared), LabelSpace()
    for exp in s.experiences():
        seen = seen | exp.space
        for test in s.test_sets():
            could = all(i in seen for i in test.space)
            assert s.measurable(test, seen) == could == Wrapper(s).measurable(test, seen)
            assert not could or set(test.space) <= set(s.space_for(test, seen))


class Zero(Method):
    """Answers by what classes are called: nothing is trained."""

    def make_head(self) -> TextHead:
        def encode(names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
            return torch.stack([torch.nn.functional.one_hot(torch.tensor(int(n.split()[-1])), 8).float() for n in names])

        return TextHead(8, encode, templates=("{}",))

    def epochs_for(self, exp: Experience) -> int:
        return 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.head.over(self.backbone.forward_features(x), space)

    answer = predict


def matrix(scenario: Scenario, method: type[Method], runs: Path, **arguments: Any) -> list[list[bool]]:
    names = {"scenario": {"name": "steps"}, "method": {"name": "m", "label": "m"}, "backbone": {"name": "tiny"}}
    plan = Plan(scenario, tiny_backbone(), method, lambda b: method(b, **arguments), names, compute=Compute("cpu"),
                checkpoint=False)
    found = load(run(plan, runs)).record["matrix"]["total"]
    return [[cell is not None for cell in row] for row in found]


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_measures_classes_that_were_never_seen(view: Literal["seen", "task", "all"], tmp_path: Path) -> None:
    s = Steps([(0, 1), (2,), (0, 3)], view, shared=True)
    expected = [[True, False, False, False], [True, True, False, False], [True, True, True, True]]
    assert matrix(s, find("cl_bench.methods", "ncm"), tmp_path) == expected


@pytest.mark.parametrize("view", VIEWS)
def test_a_head_that_reads_names_is_measured_on_what_comes_later(view: Literal["seen", "task", "all"], tmp_path: Path) -> None:
    assert matrix(Steps([(0, 1), (2,)], view, shared=True), Zero, tmp_path) == [[True] * 3] * 2
