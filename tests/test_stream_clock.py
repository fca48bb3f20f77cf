"""What happens between two batches of a stream: what a pass costs, resets, late labels, whose batch size counts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Logging, Oracle, Slow, Stream, Supervised, coded, rows_of

from cl_bench import LabelSpace, Method, TestSet
from cl_bench.engine.compute import Compute
from cl_bench.engine.meter import Meter
from cl_bench.engine.stream import StreamState, stream_step

COMPUTE = Compute(device="cpu")
SPACE = LabelSpace((0, 1, 2, 3))


def walk(method: Method, scenario: Stream, tests: list[TestSet] | None = None, state: StreamState | None = None) -> list[str]:
    """The kinds of what happened to ``method``."""
    meter, state = Meter(), StreamState() if state is None else state
    meter.attach(method.backbone, torch.zeros(1, 3, 4, 4))
    for k, test in enumerate(tests or scenario.stream()):
        stream_step(method, test, SPACE, scenario, COMPUTE, meter, state, k)
    return [kind for kind, _, _ in method.log]


class Learns(Logging):
    """One forward and one backward pass per batch."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        logits = super().predict(x, space)
        logits.square().sum().backward()
        return logits.detach()


def test_a_backward_pass_costs_two_forward_passes() -> None:
    """One forward and one backward pass are three slots at full speed: one batch adapts, the next two are missed."""
    assert walk(Learns(), Stream((12,), stream_speed=1.0)) == ["adapt", "answer", "answer"] * 2
    assert walk(Learns(), Stream((12,), stream_speed=0.5)) == ["adapt", "adapt", "answer"] * 2


@pytest.mark.parametrize(("passes", "pattern"), [(1, ["adapt"]), (2, ["adapt", "answer"]), (3, ["adapt", "answer", "answer"])])
def test_a_batchs_own_slot_is_one_pass(passes: int, pattern: list[str]) -> None:
    class Passes(Slow):
        """As many forward passes as it is told."""

    Passes.passes = passes
    assert walk(Passes(), Stream((12,), stream_speed=1.0)) == (pattern * 6)[:6]


class Counting(Logging):
    """Counts its batches, in a counter that a reset takes back."""

    reports: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.batches += 1
        return super().predict(x, space)

    def counters(self) -> dict[str, int | float]:
        return {"batches": self.batches}


@pytest.mark.parametrize(("reset", "left", "spent"), [("batch", 1, 3), ("never", 4, 0)])
def test_a_reset_before_every_batch_where_the_scenario_says_so_keeps_what_was_counted(reset: str, left: int,
                                                                                      spent: int) -> None:
    method, state = Counting(), StreamState()
    method.mark()
    walk(method, Stream((8,), reset=reset), state=state)
    assert method.batches == left and state.spent.get("batches", 0) == spent, "4 batches in all"


def test_counters_that_a_reset_takes_back_add_up() -> None:
    state = StreamState()
    state.lose({"steps": 5, "kept": 2}, {"steps": 1, "kept": 2})
    state.lose({"steps": 4}, {})
    assert state.spent == {"steps": 8, "kept": 0}


def test_a_segments_own_batch_size_comes_before_the_scenarios() -> None:
    method = Logging()
    walk(method, Stream(batch=2), [TestSet("a", SPACE, coded(6), batch_size=3), TestSet("b", SPACE, coded(6))])
    assert [len(rows) for _, rows, _ in method.log] == [3, 3, 2, 2, 2]


def test_labels_of_the_last_batches_wait_for_their_delay() -> None:
    """Batch t's labels come when batch t + delay has been answered, and to those alone who need them."""
    for delay, told in ((1, 3), (3, 1), (4, 0)):
        method = Supervised()
        assert walk(method, Stream((8,), gives=("labels",), label_delay=delay)).count("feedback") == told
        assert [rows for kind, rows, _ in method.log if kind == "feedback"] == [[0, 1], [2, 3], [4, 5]][:told]
        assert [y for kind, _, y in method.log if kind == "feedback"] == [[0, 1], [2, 3], [0, 1]][:told], "its own labels"
    assert "feedback" not in walk(Logging(), Stream((8,), gives=("labels",), label_delay=1))


def test_a_collapse_is_judged_by_the_classes_of_its_own_domain() -> None:
    """Always the same answer, which is no collapse where a domain holds but one class."""
    logits = torch.tensor([[9.0, 0, 0, 0]] * 8)
    codes = np.array([0, 1, 1, 1, 0, 1, 1, 1])  # rows 0 and 4 are class 0
    test = TestSet("mixed", SPACE, coded(8), rows=(("one class", "three"), codes))
    entries, _ = stream_step(Oracle(logits), test, SPACE, Stream(batch=4), COMPUTE, Meter(), StreamState(), 0)
    assert [(e.domain, e.collapsed) for e in entries] == [("one class", False), ("three", True)]


def test_rows_of_the_toy_are_what_they_say() -> None:
    assert rows_of(coded(5).x.float() / 255).tolist() == list(range(5))
