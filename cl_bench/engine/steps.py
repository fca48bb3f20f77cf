"""What the runner does at each kind of step of a timeline: one handler per type, and more by entry point.

A package that brings a new kind of step registers a :class:`Handler` under the entry-point group ``cl_bench.steps``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from ..data.tensor import TensorData, as_float
from ..errors import UserError
from ..method import Method
from ..registry import GROUPS, entries
from ..rng import Rng
from ..state import size_bytes, stored_images
from ..types import Experience, LabelSpace, StreamFacts, TestSet
from .fit import FitPosition, fit, shown
from .measure import measure
from .meter import optimised_parameters, parameter_counts
from .run_state import BEFORE, RunState
from .seeding import derive, seeded
from .stream import SegmentPosition, counters_of, stream_step

KEPT = "kept images are counted"  # the promise that a method which counts by itself is exempt from, with its reason

__all__ = ["GROUP", "Handler", "handler_of", "measure_row"]

GROUP = GROUPS["steps"]


@dataclass(frozen=True)
class Handler:
    """How one kind of step is done.

    Attributes:
        step: the type of the timeline's step.
        run: does it; ``run.position`` is what a stop in the middle finds again.
        streams: the method stays deployed between two such steps.
    """

    step: type
    run: Callable[[RunState, Method, Any], None]
    streams: bool = False


def learn(run: RunState, method: Method, exp: Experience) -> None:
    """Fit an experience, then one row of the matrix."""
    p = run.position
    if not (p.rows or p.fitted or p.inside or p.step) and _knows_all(run, method):
        measure_row(run, method, BEFORE, LabelSpace())
        run.save(method)
    if not p.fitted:
        at, p.inside = p.inside, None
        assert at is None or isinstance(at, FitPosition)
        with run.clock("learn"):
            fitted = fit(method, exp, run.plan.compute, derive(run.plan.seed, "learn", exp.name), run.scenario.max_epochs,
                         at=at, between=run.between(method), meter=run.meter, encoded=run.features.lend(exp.data))
        p.trainable = max(p.trainable, fitted.trainable)
        p.counts["optimizer_steps"] += fitted.steps
        for sentence in fitted.differences:
            run.warn(sentence)
        if fitted.nonfinite:
            p.counts["nonfinite_losses"] = p.counts.get("nonfinite_losses", 0) + fitted.nonfinite
            run.warn(f"{fitted.nonfinite} training losses of {exp.name} were not finite.")
        _grew(run, method, exp.name)
        for step, value in fitted.losses:
            run.event("loss", tell=False, experience=exp.name, step=step, value=value)
        p.fitted = True
        run.save(method)
    measure_row(run, method, exp.name, method.seen)
    p.fitted = False
    run.event("experience", name=exp.name, step=p.step, accuracy=_row_mean(run),
              column=next((k for k, t in enumerate(run.tests) if t.of == exp.name), None))


def _knows_all(run: RunState, method: Method) -> bool:
    """Whether there is something to measure before any learning: a head that reads names, and names."""
    return method.backbone.reads_names and bool(run.tests) and all(method.head.can_answer(t.space) for t in run.tests)


def _grew(run: RunState, method: Method, name: str) -> None:
    """What the method holds now, without what it can compute again and no checkpoint keeps (embeddings of names). Images are
    counted where they are found, not only where the method says so; what is neither parameter nor memory is
    ``other_bytes``, and said where it goes on growing."""
    first = next((part.data[0][0] for part in _parts(run)), None)
    found = 0 if first is None or KEPT in method.exempt else stored_images(method, tuple(torch.as_tensor(first).shape))
    memories = [m for m in method.modules() if m is not method and hasattr(m, "samples")]
    whole = size_bytes(method)
    told = method.stored_samples()
    if found > told:
        run.warn(f"{type(method).__name__} keeps {found} images and counts {told} (stored_samples); the record counts {found}.")
    own = size_bytes(list(method.parameters()))
    growth = run.position.growth
    growth.append({
        "experience": name, "parameters": parameter_counts(method)["total"], "state_bytes": whole,
        "other_bytes": whole - size_bytes([*method.parameters(), *memories]), "stored_samples": max(told, found),
    })
    if len(growth) > 2 and growth[-1]["other_bytes"] - growth[1]["other_bytes"] > own:
        run.warn(f"{type(method).__name__} keeps state that is neither parameter nor memory and grows: since the second "
                 "experience by more than the size of its parameters.")


def measure_row(run: RunState, method: Method, row: str, seen: LabelSpace) -> None:
    """One row of the matrix; a cell that could not be right is not measured: classes never seen, unless the head can
    answer for them all the same, as one that reads names can."""
    p, scenario = run.position, run.scenario
    known = [seen | t.space if method.head.can_answer(t.space) else seen for t in run.tests]
    now = [k for k, t in enumerate(run.tests) if scenario.measurable(t, known[k])]
    tests = [run.tests[k] for k in now]
    with run.clock("evaluate"):
        scored = measure(method, tests, [scenario.space_for(run.tests[k], known[k]) for k in now], run.plan.compute,
                         scenario.test_batch_size, derive(run.plan.seed, "measure", row), run.features)
    correct: list[int | None] = [None] * len(run.tests)
    total: list[int | None] = [None] * len(run.tests)
    for k, result in zip(now, scored, strict=True):
        correct[k], total[k] = result.correct, result.total
        run.keep(f"{row}/{run.tests[k].name}", result)
    p.rows.append(row)
    p.correct.append(correct)
    p.total.append(total)


def _row_mean(run: RunState) -> float | None:
    p = run.position
    pairs = [(c, t) for c, t in zip(p.correct[-1], p.total[-1], strict=True) if c is not None and t]
    return sum(100 * c / t for c, t in pairs) / len(pairs) if pairs else None


def enter_stream(run: RunState, method: Method, test: TestSet) -> None:
    """Measure the learned model, then build what adapts."""
    p, scenario = run.position, run.scenario
    if run.kind == "stream":
        measure_row(run, method, "source", scenario.space)
    source = scenario.source if "source" in type(method).needs else None
    facts = StreamFacts(test.batch_size or scenario.test_batch_size, _asked(run, method, test))
    seed = derive(run.plan.seed, "deploy", p.step)
    with run.clock("adapt"), seeded(seed), torch.enable_grad():
        method.to(run.device).eval()
        method.rng = Rng(seed)
        p.stream.lose(counters_of(method), {})  # of an earlier deployment
        method.deploy(None if source is None else shown(source), facts)
        method.to(run.device)
    Method.mark(method)
    _grew(run, method, "deployed")
    p.trainable = max(p.trainable, optimised_parameters(method))
    p.in_stream = True


def _asked(run: RunState, method: Method, test: TestSet) -> LabelSpace:
    return run.scenario.space_for(test, method.seen if len(method.seen) else run.scenario.space)


def stream(run: RunState, method: Method, test: TestSet) -> None:
    """One segment of the stream: adapt and answer, batch by batch."""
    p = run.position
    at, p.inside = p.inside, None
    assert at is None or isinstance(at, SegmentPosition)
    if not p.in_stream:
        enter_stream(run, method, test)
    elif at is None and run.scenario.reset == "domain":
        p.stream.reset(method)
        run.event("reset", name=test.name)
    if isinstance(test.data, TensorData):
        _ = test.data.x  # making the images is no cost of the method that answers them
    with run.clock("adapt"):
        entries, scored = stream_step(method, test, _asked(run, method, test), run.scenario, run.plan.compute, run.meter,
                                      p.stream, derive(run.plan.seed, "stream", p.step), at=at, between=run.between(method))
    run.keep(f"stream/{p.step}/{test.name}", scored)
    for entry in entries:
        p.entries.append(replace(entry, visit=1 + sum(e.domain == entry.domain for e in p.entries)))
        if entry.collapsed:
            run.event("collapse", name=entry.name, share=entry.top_class_share)
            run.warn(f"collapse: {100 * (entry.top_class_share or 0):.0f} % of the answers on {entry.name} are one class.")
        run.event("domain", name=entry.name, error=entry.error, step=p.step)
    broken = p.counts.get("nonfinite", 0)
    p.counts.update({key: value + p.stream.spent.get(key, 0) for key, value in counters_of(method).items()})
    if (more := p.counts.get("nonfinite", 0) - broken) > 0:
        run.warn(f"{more} losses or gradients of adapting to {test.name} were not finite; their steps were not taken.")


def leave_stream(run: RunState, method: Method, last: str) -> None:
    """After the last segment before something else goes on, or the end: what is left of the source."""
    run.position.in_stream = False
    measure_row(run, method, "after stream" if run.kind == "stream" else f"after {last}",
                method.seen if len(method.seen) else run.scenario.space)


BUILT_IN = (Handler(Experience, learn), Handler(TestSet, stream, streams=True))


def handler_of(step: Any) -> Handler:
    """The handler of a step's type.

    Raises:
        UserError: for a kind of step that nothing handles.
    """
    for handler in chain(BUILT_IN, (entry.load() for entry in entries(GROUP).values())):  # one import at a time, where needed
        if isinstance(handler, Handler) and type(step) is handler.step:
            return handler
    raise UserError(f"the timeline has a step of type {type(step).__name__}, which nothing handles; register a handler under "
                    f"the entry-point group {GROUP}.")


def watch(run: RunState, method: Method) -> None:
    """Count images through the method's backbone, probed with one image of the scenario's."""
    weight = next(method.backbone.parameters())
    for part in _parts(run):
        image = as_float(torch.as_tensor(part.data[0][0]))[None]
        run.meter.attach(method.backbone, image.to(weight.device, weight.dtype))
        return


def _parts(run: RunState) -> list[Experience | TestSet]:
    return [*run.scenario.experiences(), *run.tests, *run.scenario.stream()]
