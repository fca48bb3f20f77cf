"""A run: a stream fed to a method. Learn, answer, adapt, measure, write down; stop anywhere and go on."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..backbones import Backbone
from ..data.tensor import as_float
from ..errors import UserError
from ..method import Method
from ..numbers.matrix import AccuracyMatrix
from ..numbers.metrics import metrics_of
from ..numbers.stream_metrics import Stream, StreamEntry
from ..records.results import RunWriter, environment, new_id, utc_now
from ..rng import Rng
from ..scenario import Scenario
from ..types import Experience, LabelSpace, TestSet
from . import checkpoint
from .compute import Compute, resolve_device
from .fit import fit
from .measure import Scored, measure
from .meter import Meter, optimised_parameters, parameter_counts, peak_memory, reset_peak_memory, state_bytes
from .optimizers import check_optimizers
from .protocol import PROTOCOL_VERSION, Plan, check_needs, fingerprint, head_fits
from .seeding import derive, seeded
from .source_training import ready_backbone
from .stream import reset_counted, stream_step, taken_back

__all__ = ["PROTOCOL_VERSION", "Plan", "fingerprint", "run"]


Listener = Callable[[str, Mapping[str, Any]], None]


class _Run:
    """The state of one run between two steps of its timeline."""

    def __init__(self, plan: Plan, writer: RunWriter, listen: Listener | None) -> None:
        self.plan, self.writer, self.listen = plan, writer, listen
        self.scenario = plan.scenario
        self.device = resolve_device(plan.compute.device)
        self.meter = Meter()
        self.tests = list(plan.scenario.test_sets())
        self.rows: list[str] = []
        self.correct: list[list[int | None]] = []
        self.total: list[list[int | None]] = []
        self.entries: list[StreamEntry] = []
        self.growth: list[dict[str, Any]] = []
        self.counts: dict[str, int | float] = {"optimizer_steps": 0}
        self.seconds = {"source": 0.0, "learn": 0.0, "adapt": 0.0, "evaluate": 0.0}
        self.warnings: list[str] = []
        self.speed: dict[str, Any] = {}
        self.step = 0
        self.in_stream = False
        self.trainable = 0
        self.predictions: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        self.born = time.perf_counter()
        self.before = 0.0
        self.saved: tuple[float, float] | None = None  # when, and how long it took

    # ---------------------------------------------------------------- the record
    def open(self, identity: dict[str, Any]) -> None:
        p = self.plan
        self.record = {
            "status": "running", "error": None, "started": utc_now(), "finished": None, "suite": p.suite,
            "scenario": {**p.names["scenario"], "kind": self.kind()}, "method": p.names["method"],
            "backbone": {**p.names["backbone"], "sha256": p.backbone.info["sha256"],
                         "preprocess": p.backbone.info["preprocess"], "source": p.backbone.info["source"]},
            "seed": p.seed, "order": getattr(p.scenario, "order", None) if isinstance(
                getattr(p.scenario, "order", None), int) else None,
            "config": p.config, "fingerprint": identity,
            "experiences": [{"name": e.name, "classes": list(e.space.ids), "train_size": len(e.data)}  # type: ignore[arg-type]
                            for e in p.scenario.experiences()],
            "test_sets": [{"name": t.name, "classes": list(t.space.ids), "size": len(t.data)} for t in self.tests],  # type: ignore[arg-type]
            "environment": environment(str(self.device), torch.get_num_threads(), _ops_backend()),
        }

    def kind(self) -> str:
        learns, streams = bool(self.scenario.experiences()), bool(self.scenario.stream())
        return "deployed" if learns and streams else "stream" if streams else "learn"

    def write(self, **changes: Any) -> None:
        """Bring the record up to date and on disk."""
        matrix, stream = self.matrix(), Stream(tuple(self.entries))
        self.record.update(
            matrix=matrix.to_json(), stream=stream.to_json(), warnings=self.warnings,
            cost={
                "seconds": {**self.seconds, "total": self.elapsed()},
                "peak_memory_bytes": peak_memory(),
                "parameters": {"total": self.growth[-1]["parameters"] if self.growth else 0, "trainable": self.trainable},
                "forward_images": self.meter.forward_images, "backward_images": self.meter.backward_images,
                **self.counts, "growth": self.growth,
            },
        )
        self.record["metrics"] = metrics_of(matrix, stream, self.record)
        self.record.update(changes)
        self.writer.write(self.record)

    def matrix(self) -> AccuracyMatrix:
        taught = {e.name: self.rows.index(e.name) for e in self.scenario.experiences() if e.name in self.rows}
        return AccuracyMatrix.from_json({
            "rows": self.rows, "columns": [t.name for t in self.tests], "correct": self.correct, "total": self.total,
            "learned": [taught.get(t.of) for t in self.tests],
        })

    def elapsed(self) -> float:
        """Seconds of work since the run began, a stop in between not counted."""
        return round(self.before + time.perf_counter() - self.born, 4)

    def event(self, kind: str, write: bool = True, **facts: Any) -> None:
        if write:
            self.writer.event(kind=kind, t=self.elapsed(), **facts)
        if self.listen is not None:
            self.listen(kind, {"id": self.writer.folder.name, "seed": self.plan.seed, **facts})

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            self.event("warning", message=sentence)

    @contextmanager
    def clock(self, name: str) -> Any:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    # ---------------------------------------------------------------- position, for a resume
    _POSITION = ("rows", "correct", "total", "growth", "counts", "seconds", "warnings", "speed", "step",
                 "in_stream", "trainable", "predictions")

    def position(self) -> dict[str, Any]:
        return {
            **{k: getattr(self, k) for k in self._POSITION}, "stream": [e.to_json() for e in self.entries],
            "passes": [self.meter.forward_images, self.meter.backward_images],
            "elapsed": self.elapsed(), "events": self.writer.events_offset(),
        }

    def go_on(self, position: dict[str, Any]) -> None:
        for key in self._POSITION:
            setattr(self, key, position[key])
        self.entries = [StreamEntry.from_json(e) for e in position["stream"]]
        self.meter.forward_images, self.meter.backward_images = position["passes"]
        self.before = position["elapsed"]
        self.writer.cut_events(position["events"])  # of work that is done again

    # ---------------------------------------------------------------- what happens
    def learn(self, method: Method, exp: Experience) -> None:
        with self.clock("learn"):
            fitted = fit(method, exp, self.plan.compute, derive(self.plan.seed, "learn", exp.name), self.scenario.max_epochs)
        self.trainable = max(self.trainable, fitted.trainable)
        self.counts["optimizer_steps"] += fitted.steps
        if fitted.nonfinite:
            self.warn(f"{fitted.nonfinite} training losses of {exp.name} were not finite.")
        self._grew(method, exp.name)
        for step, value in fitted.losses:
            self.writer.event(kind="loss", t=self.elapsed(), experience=exp.name, step=step, value=value)
        self.measure(method, exp.name, method.seen)
        done = [t.name for t in self.tests].index(exp.name) if exp.name in [t.name for t in self.tests] else None
        self.event("experience", name=exp.name, step=self.step, accuracy=self._row_mean(-1), column=done)

    def _grew(self, method: Method, name: str) -> None:
        self.growth.append({
            "experience": name, "parameters": parameter_counts(method)["total"], "state_bytes": state_bytes(method),
            "stored_samples": method.stored_samples(),
        })

    def measure(self, method: Method, row: str, seen: LabelSpace) -> None:
        """One row of the matrix; a cell that could not be right (classes never seen) is not measured."""
        spaces = [self.scenario.space_for(t, seen) for t in self.tests]
        now = [k for k, t in enumerate(self.tests) if set(t.space.ids) <= set(seen.ids)]
        with self.clock("evaluate"):
            scored = measure(method, [self.tests[k] for k in now], [spaces[k] for k in now], self.plan.compute,
                             self.scenario.test_batch_size, derive(self.plan.seed, "measure", row))
        correct: list[int | None] = [None] * len(self.tests)
        total: list[int | None] = [None] * len(self.tests)
        for k, result in zip(now, scored, strict=True):
            correct[k], total[k] = result.correct, result.total
            self._keep(f"{row}/{self.tests[k].name}", result)
        self.rows.append(row)
        self.correct.append(correct)
        self.total.append(total)

    def _row_mean(self, row: int) -> float | None:
        pairs = [(c, t) for c, t in zip(self.correct[row], self.total[row], strict=True) if c is not None and t]
        return sum(100 * c / t for c, t in pairs) / len(pairs) if pairs else None

    def _keep(self, key: str, scored: Scored) -> None:
        if scored.nonfinite:
            self.warn(f"{scored.nonfinite} answers for {key} were not finite; they count as wrong.")
        self.predictions[key] = torch.from_numpy(scored.predictions.astype("int32"))

    def enter_stream(self, method: Method) -> None:
        """Measure the learned model, then build what adapts."""
        if self.kind() == "stream":
            self.measure(method, "source", self.scenario.space)
        source = self.scenario.source if "source" in method.needs else None
        seed = derive(self.plan.seed, "deploy", self.step)
        with self.clock("adapt"), seeded(seed), torch.enable_grad():
            method.to(self.device).eval()
            method.rng = Rng(seed)
            taken_back(self.speed, method.counters(), {})  # of an earlier deployment
            method.deploy(source)
            method.to(self.device)
        method.mark()
        self._grew(method, "deployed")
        self.trainable = max(self.trainable, optimised_parameters(method))
        self.in_stream = True

    def stream(self, method: Method, test: TestSet) -> None:
        if not self.in_stream:
            self.enter_stream(method)
        elif self.scenario.reset == "domain":
            reset_counted(method, self.speed)
            self.event("reset", name=test.name)
        space = self.scenario.space_for(test, method.seen if len(method.seen) else self.scenario.space)
        with self.clock("adapt"):
            entries, scored = stream_step(method, test, space, self.scenario, self.plan.compute, self.meter, self.speed,
                                          derive(self.plan.seed, "stream", self.step))
        self._keep(f"stream/{self.step}/{test.name}", scored)
        for entry in entries:
            visit = 1 + sum(e.domain == entry.domain for e in self.entries)
            entry = StreamEntry.from_json({**entry.to_json(), "visit": visit})
            self.entries.append(entry)
            if entry.collapsed:
                self.event("collapse", name=entry.name, share=entry.top_class_share)
                self.warn(f"collapse: {100 * (entry.top_class_share or 0):.0f} % of the answers on {entry.name} are one class.")
            self.event("domain", name=entry.name, error=entry.error, step=self.step)
        spent, broken = self.speed.get("spent", {}), self.counts.get("nonfinite", 0)
        self.counts.update({key: value + spent.get(key, 0) for key, value in method.counters().items()})
        if (more := self.counts.get("nonfinite", 0) - broken) > 0:
            self.warn(f"{more} losses or gradients of adapting to {test.name} were not finite; their steps were not taken.")

    def leave_stream(self, method: Method, last: str) -> None:
        """After the last segment before learning goes on, or the end: what is left of the source."""
        self.in_stream = False
        self.measure(method, "after stream" if self.kind() == "stream" else f"after {last}",
                     method.seen if len(method.seen) else self.scenario.space)

    def go(self, method: Method) -> None:
        timeline = list(self.scenario.timeline())
        for k, step in enumerate(timeline):
            if k < self.step:
                continue
            if isinstance(step, Experience):
                self.learn(method, step)
            else:
                self.stream(method, step)
                following = timeline[k + 1] if k + 1 < len(timeline) else None
                if following is None or isinstance(following, Experience):
                    self.leave_stream(method, step.name)
            self.step = k + 1
            self.write()
            if self.plan.checkpoint and k + 1 < len(timeline):
                self.save(method)

    def save(self, method: Method) -> None:
        """Write a checkpoint unless the last one is so recent that saving would cost over a twentieth of the run."""
        if self.saved is not None and time.perf_counter() - self.saved[0] < 20 * self.saved[1]:
            return
        started = time.perf_counter()
        checkpoint.save(self.writer.folder / "checkpoint", method, self.position())
        self.saved = (time.perf_counter(), time.perf_counter() - started)


def run(plan: Plan, runs: Path, *, listen: Listener | None = None, resume: Path | None = None) -> Path:
    """Run ``plan`` to the end and return its folder, ``runs/<id>``; ``resume`` takes up a stopped one.

    The record is on disk after every step. An interrupt leaves status ``stopped``, any other error ``failed`` with its
    sentence; both pass on.

    Raises:
        UserError: before any work, where the scenario does not give what the method needs.
    """
    device = resolve_device(plan.compute.device)
    check_optimizers(plan.compute.optimizers, device)
    with _process(plan.compute):
        reset_peak_memory()
        check_needs(plan.method, plan.scenario, plan.names)
        # Walk the scenario once before anything is on disk: missing files and impossible splits show themselves here.
        identity, steps = fingerprint(plan), sum(1 for _ in plan.scenario.timeline())
        plan.scenario.test_sets()
        folder = resume or runs / new_id(plan.names["scenario"]["name"], plan.names["method"]["name"], plan.seed)
        writer = RunWriter(folder)
        state = _Run(plan, writer, listen)
        try:
            state.open(identity)
            facts = {"scenario": plan.names["scenario"]["name"], "method": plan.names["method"]["label"],
                     "steps": steps}
            state.event("start", write=resume is None, **facts)
            with state.clock("source"):
                backbone = ready_backbone(plan.backbone, plan.scenario, plan.recipe, plan.compute, plan.seed,
                                          fits=head_fits(plan.backbone, plan.scenario), cache=runs / ".cache")
            with seeded(derive(plan.seed, "build")):
                method = _built(plan, backbone).to(device)
            _watch(state.meter, method, plan.scenario)
            if resume is not None:
                state.go_on(checkpoint.load(folder / "checkpoint", method, device))
                state.meter.watch(method)
                state.event("resume", step=state.step)
            state.write()
            state.go(method)
            writer.arrays({k: v.numpy() for k, v in state.predictions.items()})
            state.write(status="finished", finished=utc_now())
            _drop(folder / "checkpoint")
            state.event("finish")
            writer.done()
        except BaseException as fault:
            _fail(state, fault)
            raise
        finally:
            writer.close()
    return folder


def _built(plan: Plan, backbone: Backbone) -> Method:
    """The method on ``backbone``; what its constructor says against its options is the user's to mend."""
    try:
        return plan.build(backbone)
    except UserError:
        raise
    except (TypeError, ValueError) as fault:
        raise UserError(f"method {plan.names['method']['label']} cannot be built: {fault}.") from fault


def _fail(state: _Run, fault: BaseException) -> None:
    """Leave an honest record of how the run ended."""
    stopped = isinstance(fault, (KeyboardInterrupt, SystemExit))
    sentence = "stopped by the user" if stopped else f"{type(fault).__name__}: {fault}"
    state.writer.event(kind="error", message=sentence, traceback=traceback.format_exc())
    if state.record:
        state.write(status="stopped" if stopped else "failed", error=" ".join(sentence.split())[:500], finished=utc_now())


def _watch(meter: Meter, method: Method, scenario: Scenario) -> None:
    """Count images through the method's backbone, probed with one image of the scenario's."""
    parts: list[Experience | TestSet] = [*scenario.experiences(), *scenario.test_sets(), *scenario.stream()]
    for part in parts:
        image = as_float(torch.as_tensor(part.data[0][0]))[None].to(next(method.backbone.parameters()).device)
        meter.attach(method.backbone, image.to(next(method.backbone.parameters()).dtype))
        return


def _ops_backend() -> str:
    import cl_bench_ops

    return str(cl_bench_ops.backend())


def _drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _process(compute: Compute) -> Any:
    """Thread count, denormals and cuDNN's choices decide the last bit and the speed: fix them, then put them back."""
    threads, cudnn = torch.get_num_threads(), (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


