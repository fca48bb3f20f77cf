"""Facts of a class stay its class's; what a method hangs on a Trainer, counts or skips is its own affair, and told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor
from toys import Logging, Oracle, Stream, coded

from cl_bench import LabelSpace, Method, TestSet
from cl_bench.engine import trainer
from cl_bench.engine.compute import Compute
from cl_bench.engine.measure import measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.seeding import derive
from cl_bench.engine.stream import StreamState, counters_of, stream_step
from cl_bench.errors import UserError

COMPUTE = Compute(device="cpu")
SPACE = LabelSpace((0, 1, 2, 3))
TESTS = [TestSet("t", SPACE, coded(6))]


@pytest.mark.parametrize(("fact", "value", "said"), [
    ("adapts", property(lambda self: True), "adapts is a property"), ("adapts", 1, "adapts is a int"),
    ("needs", "source", "needs is a str"), ("needs", property(lambda self: frozenset()), "needs is a property"),
    ("exempt", [], "exempt is a list"),
])
def test_a_fact_of_another_type_is_refused_when_the_class_is_defined(fact: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"Mine.{said}"):
        type("Mine", (Method,), {fact: value})


@pytest.mark.parametrize("fact", ["adapts", "needs", "exempt"])
def test_a_fact_is_not_set_on_an_object(fact: str) -> None:
    method = Oracle(torch.zeros(6, 4))
    with pytest.raises(UserError, match=f"sets {fact}, which is a fact of the class"):
        setattr(method, fact, getattr(method, fact))


def test_the_engine_asks_the_class_what_a_method_needs_and_whether_it_adapts() -> None:
    method = Logging()
    method.__dict__.update(needs=frozenset({"labels"}), adapts=False)
    stream_step(method, TESTS[0], SPACE, Stream(gives=("labels",)), COMPUTE, Meter(), StreamState(), 0)
    assert {kind for kind, _, _ in method.log} == {"adapt"}, "labels went to a class that does not need them"
    before = list(method.log)
    measure(method, TESTS, [SPACE], COMPUTE, 3, 0)
    assert method.log == before, "a class that adapts is measured on a copy"


class Hangs(Oracle):
    """Hangs something on its Trainer."""

    def __init__(self, where: str) -> None:
        super().__init__(torch.zeros(6, 4))
        self.where = where

    def configure_callbacks(self) -> Any:
        return [Callback()] if self.where == "callbacks" else []

    def on_test_start(self) -> None:
        if self.where == "trainer":
            self.trainer.__dict__["hoard"] = 1
        elif self.where == "limit":
            self.trainer.limit_test_batches = 2  # type: ignore[attr-defined]
        elif self.where == "strategy":
            self.trainer.strategy.__dict__["hoard"] = 1


@pytest.mark.parametrize("where", ["callbacks", "trainer", "strategy", "limit", "nowhere"])
def test_a_trainer_on_which_something_was_hung_is_not_used_again(where: str) -> None:
    measure(Oracle(torch.zeros(6, 4)), TESTS, [SPACE], COMPUTE, 3, 0)
    before = trainer.tester(COMPUTE)
    measure(Hangs(where), TESTS, [SPACE], COMPUTE, 3, 0)
    assert (trainer.tester(COMPUTE) is before) is (where == "nowhere")


class Skips(Oracle):
    """Keeps its Trainer from handing out more than one batch."""

    def setup(self, stage: str) -> None:
        self.trainer.limit_test_batches = 1  # type: ignore[attr-defined]


def test_a_method_that_skips_test_images_is_blamed() -> None:
    with pytest.raises(UserError, match="Skips took 3 of 6 test images"):
        measure(Skips(torch.zeros(6, 4)), TESTS, [SPACE], COMPUTE, 3, 0)
    measure(Oracle(torch.zeros(6, 4)), TESTS, [SPACE], COMPUTE, 3, 0)


class Again(Oracle):
    """Answers each batch a second time."""

    def on_test_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.__dict__["_answers"](batch)


def test_a_batch_is_answered_once() -> None:
    with pytest.raises(UserError, match="Again reads the test stream itself"):
        measure(Again(torch.zeros(6, 4)), TESTS, [SPACE], COMPUTE, 3, 0)


class Own(Tensor):
    """Answers for itself."""


def test_an_answer_is_a_plain_tensor() -> None:
    class Answers(Oracle):
        def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
            return super().predict(x, space).as_subclass(Own)

    with pytest.raises(UserError, match=r"Answers\.predict returned a Own: it must return a plain float tensor"):
        measure(Answers(torch.zeros(6, 4)), TESTS, [SPACE], COMPUTE, 3, 0)


def test_what_is_written_into_the_classes_asked_for_nobody_reads() -> None:
    class Writes(Oracle):
        def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
            object.__setattr__(space, "ids", ())
            return super().predict(x, SPACE)

    space = LabelSpace((0, 1, 2, 3))
    (scored,) = measure(Writes(torch.eye(4)[torch.arange(6) % 4]), TESTS, [space], COMPUTE, 3, 0)
    assert scored.correct == 6 and space.ids == (0, 1, 2, 3)


@pytest.mark.parametrize(("counters", "said"), [
    ({"forward_images": 0}, "counts forward_images, which the record counts by itself"),
    ({"seconds": 0.1}, "counts seconds"), ({"steps": "many"}, "says 'steps': 'many'"), ({"steps": float("nan")}, "nan"),
    ({1: 2}, "says 1: 2"), (None, "returned a NoneType"),
])
def test_counters_are_finite_numbers_under_names_of_their_own(counters: Any, said: str) -> None:
    class Says(Logging):
        def counters(self) -> Any:
            return counters

    with pytest.raises(UserError, match=said):
        counters_of(Says())
    assert counters_of(Logging()) == {}


@pytest.mark.parametrize("cls", [Oracle, Logging])
def test_gradients_are_on_where_a_method_adapts_and_only_there(cls: Any) -> None:
    seen = []

    class Watches(cls):  # type: ignore[misc]
        def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return torch.zeros(len(x), 4)

    measure(Watches(torch.zeros(6, 4)) if cls is Oracle else Watches(), TESTS, [SPACE], COMPUTE, 3, 0)
    assert seen == [cls.adapts] * 2


def test_every_place_and_every_seed_draws_its_own_numbers() -> None:
    places = [(0, "learn", "a"), (0, "learn", "b"), (0, "measure", "a"), (1, "learn", "a"), (0, "stream", 1), (0, "stream", 2)]
    assert len({derive(*place) for place in places}) == len(places) and derive(*places[0]) == derive(0, "learn", "a")
