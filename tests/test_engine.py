"""What goes in and what is counted: order of batches, scores against hand-made answers, streams that do not wait."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Lazy, Logging, Oracle, Slow, Stream, Supervised, coded, rows_of, tiny_backbone

from cl_bench import Experience, LabelSpace, Method, TestSet
from cl_bench.engine.compute import Compute
from cl_bench.engine.feed import Pool, TrainingFeed, opaque
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.errors import UserError

CPU = torch.device("cpu")
COMPUTE = Compute(device="cpu")
SPACE = LabelSpace((0, 1, 2, 3))


def order(feed: TrainingFeed) -> list[list[int]]:
    return [rows_of(b.x).tolist() for b in feed]


def test_a_feed_shuffles_anew_each_epoch_and_the_same_way_each_time() -> None:
    a, b, other = (TrainingFeed(coded(20), 8, CPU, seed=s) for s in (1, 1, 2))
    first, second = order(a), order(a)
    assert [first, second] == [order(b), order(b)]
    assert first != second, "epochs differ"
    assert order(other) != first, "seeds differ"
    assert sorted(k for batch in first for k in batch) == list(range(20))
    assert [len(batch) for batch in first] == [8, 8, 4] and len(a) == 3


def test_batches_are_floats_in_0_1_with_their_own_labels() -> None:
    for data in (coded(20), Lazy(coded(20))):
        for x, y in TrainingFeed(data, 8, CPU, seed=0):
            assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
            assert torch.equal(rows_of(x) % 4, y)
            assert torch.allclose(x[:, 0, 0, 0] * 255, rows_of(x).float())
        for rows, x in Pool([data], 8, CPU).batches(torch.arange(20).flip(0)):
            assert torch.equal(rows_of(x), rows), "images by row number, in the order asked for"


def test_a_pool_of_several_data_sets_counts_rows_through_them() -> None:
    data = [coded(20).subset(range(5)), coded(20).subset(range(5, 20))]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for parts in (data, [Lazy(d) for d in data]):
        for rows, x in Pool(parts, 8, CPU).batches(order):
            assert torch.equal(rows_of(x), rows)


def test_a_last_batch_of_one_joins_the_one_before_where_it_must() -> None:
    assert [len(b) for b in order(TrainingFeed(coded(17), 8, CPU, seed=0))] == [8, 8, 1]
    assert [len(b) for b in order(TrainingFeed(coded(17), 8, CPU, seed=0, joins=True))] == [8, 9]


def test_what_a_trainer_holds_leads_nowhere() -> None:
    loader = opaque(iter([1, 2]).__iter__, 2)
    assert len(loader) == 2 and list(loader) == [1, 2]
    assert not [a for a in dir(loader) if not a.startswith("__")] and not hasattr(loader, "__dict__")


def test_held_and_lazy_data_and_any_number_of_workers_give_the_same_batches() -> None:
    def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    def epoch(data: Any, workers: int) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        out = [b.x for b in TrainingFeed(data, 8, CPU, seed=3, workers=workers, augment=jitter)]
        return out, torch.rand(2)

    held, _ = epoch(coded(20), 0)
    (zero, after_zero), (two, after_two) = epoch(Lazy(coded(20)), 0), epoch(Lazy(coded(20)), 2)
    for a, b, c in zip(held, zero, two, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    assert torch.equal(after_zero, after_two), "workers must not move the process's generator"


def test_compute_refuses_what_cannot_be() -> None:
    with pytest.raises(UserError, match="workers must be at least 0"):
        Compute(workers=-1)


class Interrupted(Method):
    """The user presses Ctrl-C while it learns, or while it answers."""

    def __init__(self, backbone: Any, *, when: str = "fit") -> None:
        super().__init__(backbone, epochs=1)
        self.when = when

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.when == "fit":
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["fit", "test"])
def test_an_interrupt_stays_one(when: str) -> None:
    """Lightning by itself would leave the process with code 1, in learning and in answering alike."""
    handler = signal.getsignal(signal.SIGINT)
    method = Interrupted(tiny_backbone(), when=when)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(method, Experience("e", SPACE, coded(8)), COMPUTE, 0)
            assert when == "test", "the fit went on"
            measure(method, [TestSet("t", SPACE, coded(8))], [SPACE], COMPUTE, 8, 0)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


# ------------------------------------------------------------------------------------------------ scores
def table(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities).log()


def score(logits: Tensor, truth: list[int], space: LabelSpace = SPACE) -> Any:
    data = coded(len(truth))
    data.y = torch.tensor(truth)
    (scored,) = measure(Oracle(logits), [TestSet("t", SPACE, data)], [space], COMPUTE, 3, 0)
    return scored


def test_scores_of_answers_made_by_hand() -> None:
    p = [[0.97, 0.01, 0.01, 0.01], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.25, 0.15, 0.35, 0.25]]
    s = score(table(p), [0, 1, 2, 2])
    assert (s.total, s.correct, s.nonfinite) == (4, 3, 0)
    assert s.predictions.tolist() == [0, 1, 0, 2] and s.right.tolist() == [True, True, False, True]
    assert s.share == 0.5, "class 0 takes two of four answers"
    # fifteen bins: 0.97 -> the last (1 right); 0.7, 0.7 -> the eleventh (1 of 2 right); 0.35 -> the sixth (1 right)
    assert np.flatnonzero(s.bins.count).tolist() == [5, 10, 14]
    assert s.bins.count[[5, 10, 14]].tolist() == [1, 2, 1] and s.bins.correct[[5, 10, 14]].tolist() == [1, 1, 1]
    assert s.bins.ece() == pytest.approx(100 * (0.65 + 0.40 + 0.03) / 4, abs=1e-4)


def test_columns_are_the_spaces_labels_in_its_order() -> None:
    s = score(table([[0.9, 0.1], [0.2, 0.8]]), [3, 1], LabelSpace((3, 1)))
    assert s.predictions.tolist() == [3, 1] and s.correct == 2


def test_calibration_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    g = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(200, 4, generator=g) * 2, torch.randint(0, 4, (200,), generator=g)
    s = score(logits, truth.tolist())
    assert s.bins.ece() == pytest.approx(100 * float(multiclass_calibration_error(logits, truth, 4, n_bins=15)), abs=1e-4)
    assert s.correct == int((logits.argmax(1) == truth).sum())


def test_answers_that_are_not_finite_are_wrong_and_counted() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[nan, 0, 0, 0], [inf, 0, 0, 0], [-inf, -inf, -inf, -inf], [0, -inf, -inf, 5.0]])
    s = score(logits, [0, 0, 0, 3])
    assert s.nonfinite == 3 and s.correct == 1 and s.predictions.tolist() == [-1, -1, -1, 3]
    assert s.bins.count.sum() == 1, "what is not finite has no confidence"


def test_a_wrong_shape_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"Oracle\.predict returned \(3, 5\) for 3 images and 4 classes"):
        score(torch.zeros(6, 5), [0] * 6)


@pytest.mark.parametrize(("answer", "said"), [
    (lambda z: None, "a NoneType"), (lambda z: (z, z), "a tuple"), (lambda z: z.numpy(), "a ndarray"),
    (lambda z: z.to(torch.complex64), "complex64 values"), (lambda z: z.long(), "int64 values"), (lambda z: z > 0, "bool"),
    (lambda z: z.to("meta"), "on meta"), (lambda z: z.to_sparse(), "float32 values"), (lambda z: z[:-1], r"\(2, 4\)"),
])
def test_what_is_no_answer_is_blamed_on_the_method(answer: Any, said: str) -> None:
    class Wrong(Oracle):
        def predict(self, x: Tensor, space: LabelSpace) -> Any:
            return answer(super().predict(x, space))

    with pytest.raises(UserError, match=rf"Wrong\.predict returned .*{said}"):
        measure(Wrong(torch.zeros(6, 4)), [TestSet("t", SPACE, coded(6))], [SPACE], COMPUTE, 3, 0)


def test_half_precision_answers_are_answers() -> None:
    class Half(Oracle):
        def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
            return super().predict(x, space).half()

    (scored,) = measure(Half(table([[0.9, 0.1, 0, 0]] * 6)), [TestSet("t", SPACE, coded(6))], [SPACE], COMPUTE, 3, 0)
    assert scored.total == 6 and scored.predictions.tolist() == [0] * 6


class Order(Oracle):
    """Keeps in which company images come."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(20, 4))
        self.log: list[list[int]] = []

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.log.append(rows_of(x).tolist())
        return super().predict(x, space)


def test_images_of_all_test_sets_come_mixed_where_they_are_answered_among_the_same_classes() -> None:
    tests = [TestSet(f"t{k}", SPACE, coded(20).subset(range(5 * k, 5 * k + 5))) for k in range(4)]
    method = Order()
    scored = measure(method, tests, [SPACE] * 4, COMPUTE, 5, 0)
    assert sorted(r for batch in method.log for r in batch) == list(range(20)) and len(method.log) == 4
    assert all(len({r // 5 for r in batch}) > 1 for batch in method.log), "no batch is of one test set alone"
    assert [s.correct for s in scored] == [2, 1, 1, 1], "always class 0: right for rows 0, 4, 8, 12, 16"
    apart = Order()
    assert [s.correct for s in measure(apart, tests, [SPACE] * 4, COMPUTE, 7, 1)] == [2, 1, 1, 1]
    assert apart.log != method.log


def test_a_test_sets_own_batch_size_and_classes_are_kept() -> None:
    other = LabelSpace((3, 2, 1, 0))
    tests = [TestSet("a", SPACE, coded(6)), TestSet("b", SPACE, coded(6), batch_size=2), TestSet("c", SPACE, coded(6))]
    method = Order()
    measure(method, tests, [SPACE, SPACE, other], COMPUTE, 6, 0)
    assert [len(batch) for batch in method.log] == [6, 2, 2, 2, 6]


class Reader(Oracle):
    """Reads the stream of test images by itself."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        next(iter(self.trainer.test_dataloaders))
        return super().predict(x, space)


class EarlyReader(Oracle):
    def on_test_start(self) -> None:
        list(self.trainer.test_dataloaders)


@pytest.mark.parametrize("cls", [Reader, EarlyReader])
def test_a_method_that_reads_ahead_is_refused(cls: type[Oracle]) -> None:
    with pytest.raises(UserError, match="reads the test stream itself"):
        measure(cls(torch.zeros(6, 4)), [TestSet("t", SPACE, coded(6))], [SPACE], COMPUTE, 3, 0)


@pytest.mark.parametrize("name", ["test_step", "mark", "reset", "mark_as", "marked", "__deepcopy__", "__setattr__"])
def test_what_is_final_cannot_be_overridden(name: str) -> None:
    with pytest.raises(UserError, match=f"Mine overrides {name}, which is final"):
        type("Mine", (Method,), {name: lambda self, *args: None})
    mixin = type("Mixin", (), {name: lambda self, *args: None})
    with pytest.raises(UserError, match="which is final"):
        type("Mine", (mixin, Method), {})
    if not name.startswith("__"):
        method = Oracle(torch.zeros(1, 4))
        with pytest.raises(UserError, match=f"sets {name}, which is final"):
            setattr(method, name, lambda *args: None)


def test_no_test_sets_no_scores() -> None:
    assert measure(Oracle(torch.zeros(1, 4)), [], [], COMPUTE, 3, 0) == []


# ------------------------------------------------------------------------------------------------ learning
def test_fit_counts_steps_losses_and_trainable_parameters() -> None:
    method = Method(tiny_backbone(), epochs=3, batch_size=8)
    for p in method.backbone.parameters():
        p.requires_grad_(False)
    exp = Experience("e", SPACE, coded(20))
    fitted = fit(method, exp, COMPUTE, 0)
    assert fitted.steps == 9 and len(fitted.losses) == 9 and fitted.nonfinite == 0
    assert fitted.trainable == 4 * 8 + 4
    assert fit(Method(tiny_backbone(), epochs=3, batch_size=8), exp, COMPUTE, 0, max_epochs=1).steps == 3


# ------------------------------------------------------------------------------------------------ streams
def walk(method: Method, scenario: Stream, meter: Meter | None = None) -> list[list[Any]]:
    state = StreamState()
    with torch.no_grad():
        if meter is None:
            meter = Meter()
            meter.attach(method.backbone, torch.zeros(1, 3, 4, 4))
    return [stream_step(method, t, SPACE, scenario, COMPUTE, meter, state, k)[0] for k, t in enumerate(scenario.stream())]


def test_a_stream_arrives_in_order_and_once() -> None:
    method = Logging()
    entries = walk(method, Stream((5, 4)))
    assert [e[1] for e in method.log] == [[0, 1], [2, 3], [4], [0, 1], [2, 3]]
    assert [(e.name, e.total, e.missed) for (e,) in entries] == [("domain 0", 5, 0), ("domain 1", 4, 0)]


def test_mixed_domains_are_counted_apart() -> None:
    data = coded(6)
    answers = table([[0.7, 0.1, 0.1, 0.1]] * 6)  # always 0: right for rows 0 and 4
    codes = np.array([0, 1, 0, 1, 0, 1])
    test = TestSet("mixed", SPACE, data, rows=(("fog", "snow"), codes))
    entries, scored = stream_step(Oracle(answers), test, SPACE, Stream(), COMPUTE, Meter(), StreamState(), 0)
    told = [(e.name, e.domain, e.total, e.correct) for e in entries]
    assert told == [("mixed:fog", "fog", 3, 2), ("mixed:snow", "snow", 3, 0)]
    assert scored.correct == 2 and scored.total == 6
    assert entries[0].ece == pytest.approx(100 * abs(2 / 3 - 0.7), abs=1e-4)
    assert entries[0].top_class_share == 1 and entries[0].collapsed
    empty = replace(test, rows=(("fog", "snow", "never"), codes))
    assert len(stream_step(Oracle(answers), empty, SPACE, Stream(), COMPUTE, Meter(), StreamState(), 0)[0]) == 2


def test_a_stream_that_waits_for_nobody() -> None:
    """Three passes per batch at full speed: one batch adapts, the next two are answered as it stands."""
    kinds = []
    for _ in range(2):
        method = Slow()
        entries = walk(method, Stream((12, 12), stream_speed=1.0))
        kinds.append([k for k, _, _ in method.log])
        assert [k for _, rows, _ in method.log for k in rows] == [*range(12), *range(12)], "every image is answered"
        assert [e.missed for (e,) in entries] == [8, 8], "four of six batches of two in each domain"
        assert [e.total for (e,) in entries] == [12, 12]
    assert kinds[0] == kinds[1] == ["adapt", "answer", "answer"] * 4


@pytest.mark.parametrize(("speed", "pattern"), [(0.5, ["adapt", "adapt", "answer"]), (1 / 3, ["adapt"])])
def test_a_slower_stream_is_missed_less(speed: float, pattern: list[str]) -> None:
    method = Slow()
    walk(method, Stream((12,), stream_speed=speed))
    assert [k for k, _, _ in method.log] == (pattern * 6)[:6]


def test_a_method_as_fast_as_the_plain_model_misses_nothing() -> None:
    method = Logging()
    (entries,) = walk(method, Stream((12,), stream_speed=1.0))
    assert entries[0].missed == 0 and {k for k, _, _ in method.log} == {"adapt"}


def test_missed_images_are_counted_per_domain_of_a_mixed_stream() -> None:
    method, meter, scenario = Slow(), Meter(), Stream((12,), stream_speed=1.0)
    meter.attach(method.backbone, torch.zeros(1, 3, 4, 4))
    test = TestSet("mixed", SPACE, coded(12), rows=(("fog", "snow"), np.arange(12) % 2))
    entries, _ = stream_step(method, test, SPACE, scenario, COMPUTE, meter, StreamState(), 0)
    assert [e.missed for e in entries] == [4, 4]


def test_answering_without_adapting_leaves_gradients_off() -> None:
    class Watch(Slow):
        grads: list[bool] = []

        def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
            Watch.grads.append(torch.is_grad_enabled())
            return super().answer(x, space)

    walk(Watch(), Stream((12,), stream_speed=1.0))
    assert Watch.grads and not any(Watch.grads)


# ------------------------------------------------------------------------------------------------ late labels
def test_labels_come_late_and_are_the_right_ones() -> None:
    method = Supervised()
    walk(method, Stream((8,), gives=("labels",), label_delay=2))
    assert [k for k, _, _ in method.log] == ["adapt", "adapt", "adapt", "feedback", "adapt", "feedback"]
    told = [(rows, y) for k, rows, y in method.log if k == "feedback"]
    assert told == [([0, 1], [0, 1]), ([2, 3], [2, 3])]


def test_a_delay_longer_than_a_domain_reaches_over_it() -> None:
    method = Supervised()
    walk(method, Stream((4, 4, 4), gives=("labels",), label_delay=3))
    told = [(rows, y) for k, rows, y in method.log if k == "feedback"]
    assert told == [([0, 1], [0, 1]), ([2, 3], [2, 3]), ([0, 1], [0, 1])], "six batches, three of them late"


def test_labels_reach_only_methods_that_need_them_where_they_are_given() -> None:
    for method, gives in ((Logging(), ("labels",)), (Supervised(), ())):
        walk(method, Stream((8,), gives=gives, label_delay=1))
        assert "feedback" not in {k for k, _, _ in method.log}


def test_on_a_gpu_a_method_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would move network and optimizers to the host after every fit and segment."""
    from cl_bench.engine.trainer import _Stays

    method, moves = Oracle(torch.zeros(1, 4)), []
    strategy = _Stays(CPU)
    strategy._lightning_module = method
    monkeypatch.setattr(type(method), "cpu", lambda self: moves.append("network"))
    strategy.optimizers = [torch.optim.SGD(method.parameters(), 0.1)]
    strategy.teardown()
    assert not moves and strategy.optimizers
