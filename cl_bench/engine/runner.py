"""A run: a stream fed to a method. Learn, answer, adapt, measure, write down; stop anywhere and go on."""

from __future__ import annotations

import copy
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import ranks
from ..backbones import Backbone
from ..data.entry import check_data
from ..data.labels import labels_of
from ..errors import Terminated, UserError
from ..method import Method
from ..records.results import environment
from ..records.source_digest import UNKNOWN, source_digest
from ..records.writer import RunWriter, new_id, plain, utc_now
from . import checkpoint
from .compute import Compute, device_for
from .layout import arrange, relaid
from .meter import reset_peak_memory
from .processes import check_processes, writer_of
from .protocol import PROTOCOL_VERSION, Plan, fingerprint, head_fits, needs_source, unsuited
from .run_state import Listener, RunState, identity_of
from .seeding import derive, seeded
from .source_training import ready_backbone
from .steps import handler_of, leave_stream, watch
from .trainer import interruptible

__all__ = ["PROTOCOL_VERSION", "Plan", "fingerprint", "run"]


def run(plan: Plan, runs: Path, *, listen: Listener | None = None, resume: Path | None = None) -> Path:
    """Run ``plan`` to the end and return its folder, ``runs/<id>``; ``resume`` takes up a stopped one.

    The record is on disk before any expensive work and after every step, unless writing it would take over a twentieth of the
    run. An interrupt leaves status ``stopped``, any other error ``failed`` with its sentence; both pass on. A run that was
    stopped before its first checkpoint, or whose checkpoint is damaged, starts over, and its warnings say so.

    Raises:
        UserError: before anything is touched: where this machine has not what the run asks for, the method cannot be
            built, another process writes the folder, the run has finished, or it is not the same run any more.
    """
    device = device_for(plan.compute)
    with _process(plan.compute):
        reset_peak_memory()
        check_processes(plan.compute, plan.method, plan.scenario, plan.names["method"]["label"])
        if plan.compute.devices != ranks.size():
            raise UserError(f"a run on {plan.compute.devices} devices is started by `cl-bench run` or cl_bench.run, which make "
                            "its processes.")
        # Walk the scenario once before anything is on disk: missing files, impossible splits and labels that cannot be
        # right show themselves here.
        notes = [*check_data(plan.scenario), *unsuited(plan)]
        timeline = list(plan.scenario.timeline())
        for step in timeline:
            handler_of(step)
        record = _opened(plan, fingerprint(plan), device)
        if needs_source(plan):
            _built(plan, _without_head(plan.backbone))  # a constructor that refuses does so before the training of a source
        folder = resume or runs / new_id(plan.names["scenario"]["name"], plan.names["method"]["name"], plan.seed)
        with writer_of(folder) as writer:
            found, lost = _taken_up(writer, record) if resume is not None else (None, "")
            if writer.previous is not None:
                record["started"] = writer.previous.get("started", record["started"])
            state = RunState(plan, writer, record, listen)
            try:
                _go(state, timeline, found, lost, notes, runs / ".cache")
            except BaseException as fault:
                _fail(state, fault)
                raise
            return writer.folder


def _opened(plan: Plan, identity: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What a record says from the start."""
    s, info = plan.scenario, plan.backbone.info
    learns, streams = bool(s.experiences()), bool(s.stream())
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    kind = "deployed" if learns and streams else "stream" if streams else "learn"
    return {
        "status": "running", "error": None, "started": utc_now(), "finished": None, "suite": plan.suite,
        "scenario": {**plan.names["scenario"], "kind": kind},
        "method": {"source_digest": source_digest(plan.method), **plan.names["method"]},
        "backbone": {**plan.names["backbone"], "sha256": info["sha256"], "preprocess": info["preprocess"],
                     "source": info["source"]},
        "seed": plan.seed, "order": s.order if isinstance(s.order, int) else None,
        "config": plan.config, "fingerprint": identity,
        "experiences": [{"name": e.name, "classes": list(e.space.ids), "train_size": len(e.data)}  # type: ignore[arg-type]
                        for e in s.experiences()],
        "test_sets": [{"name": t.name, "classes": list(t.space.ids), "size": len(t.data)} for t in s.test_sets()],  # type: ignore[arg-type]
        **({"tuning": plan.tuning} if plan.tuning else {}),
        "environment": environment(str(device), torch.get_num_threads(), _ops_backend(), card),
    }


def _taken_up(writer: RunWriter, record: Mapping[str, Any]) -> tuple[checkpoint.Found | None, str]:
    """The checkpoint that a run goes on from, or None and why it starts over.

    Raises:
        UserError: where the run on disk is another one than the one planned.
    """
    if writer.previous is None:
        raise UserError(f"{writer.folder} holds no run to resume (no run.json that can be read).")
    now = identity_of(record)
    _same(writer.folder, "its record", identity_of(writer.previous), now)
    try:
        found = checkpoint.read(writer.folder / "checkpoint")
    except checkpoint.Damaged as fault:
        return None, f"its checkpoint is damaged ({fault})"
    if found is None:
        return None, "it was stopped before its first checkpoint"
    _same(writer.folder, "its checkpoint", found.identity, now)
    return found, ""


def _same(folder: Path, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than the one on disk, naming the first field of its identity that differs."""
    now = plain(new)
    for code in ("method_source", "cl_bench_source"):
        if UNKNOWN in (now[code], old.get(code)):
            now[code] = old.get(code)  # code without a file: nothing can be compared
    if (difference := _difference(plain(old), now)) is not None:
        field, before, after = difference
        raise UserError(f"{folder} cannot be resumed: {field} is {after} now and was {before} in {what}; put it back, or run "
                        "it anew.")


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, str, str] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if key == "id" and "fields" in new:
                continue  # a hash of the fields, which say more
            if (found := _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)) is not None:
                return found
        return None
    return None if old == new else (path, repr(old)[:80], repr(new)[:80])


def _go(state: RunState, timeline: list[Any], found: checkpoint.Found | None, lost: str, notes: list[str],
        cache: Path) -> None:
    """The whole run, from its start or from a checkpoint."""
    plan = state.plan
    state.features.cache = cache
    if found is None:
        state.writer.cut_events(0)
    state.event("start", write=found is None, scenario=plan.names["scenario"]["name"], method=plan.names["method"]["label"],
                steps=len(timeline))
    if found is None:
        state.write()
    with state.clock("source"):
        backbone = ready_backbone(plan.backbone, plan.scenario, plan.recipe, plan.compute, plan.seed,
                                  fits=head_fits(plan.backbone, plan.scenario), cache=cache)
    trained = backbone.info.get("trained") or {}
    state.record["source"] = {"sha256": trained["sha256"]} if trained else None
    with seeded(derive(plan.seed, "build")):
        method = _built(plan, backbone).to(state.device)
    arrange(method, plan.compute, state.meter)
    watch(state, method)
    if found is not None:
        spent = state.position.seconds["source"]
        state.go_on(found.fill(method, state.device))
        state.position.seconds["source"] += spent
        if plan.compute.layout == "channels_last":
            relaid([method, Method.marked(method)])  # a checkpoint keeps values, not how they lay
        state.meter.watch([method, Method.marked(method)])
        state.event("resume", step=state.position.step)
    elif lost:
        state.warn(f"The run was started over: {lost}.")
    for sentence in notes:
        state.warn(sentence)
    if trained.get("note"):
        state.warn(f"{trained['note'][:1].upper()}{trained['note'][1:]}.")
    state.write()
    with interruptible():
        _walk(state, method, timeline)
    state.writer.arrays({k: v.numpy() for k, v in state.position.predictions.items()} | _truths(state, timeline))
    state.end("finished")
    if ranks.rank() == 0:
        shutil.rmtree(state.writer.folder / "checkpoint", ignore_errors=True)
    state.event("finish")
    state.writer.done()


def _truths(state: RunState, timeline: list[Any]) -> dict[str, Any]:
    """The true classes beside the predictions, by which finished runs are compared image by image."""
    tests = {f"truth/{t.name}": t for t in state.tests}
    tests |= {f"truth/stream/{k}/{t.name}": t for k, t in enumerate(timeline) if handler_of(t).streams}
    return {key: labels_of(t.data).numpy().astype("int32") for key, t in tests.items()}


def _walk(state: RunState, method: Method, timeline: list[Any]) -> None:
    for k, step in enumerate(timeline):
        if k < state.position.step:
            continue
        handler = handler_of(step)
        handler.run(state, method, step)
        if handler.streams and not (k + 1 < len(timeline) and handler_of(timeline[k + 1]).streams):
            leave_stream(state, method, step.name)
        state.position.step = k + 1
        state.count_all()
        state.write_where_cheap()
        if k + 1 < len(timeline):
            state.save(method)


def _without_head(backbone: Backbone) -> Backbone:
    """A copy without the classifier that came with its weights."""
    bare = copy.deepcopy(backbone)
    bare.head = None
    return bare


def _built(plan: Plan, backbone: Backbone) -> Method:
    """The method on ``backbone``; what its constructor says against its options is the user's to mend."""
    try:
        method = plan.build(backbone)
        method.plan(len(plan.scenario.experiences()))
        return method
    except UserError:
        raise
    except (TypeError, ValueError) as fault:
        raise UserError(f"method {plan.names['method']['label']} cannot be built: {fault}.") from fault


def _fail(state: RunState, fault: BaseException) -> None:
    """Leave an honest record of how the run ended."""
    stopped = isinstance(fault, KeyboardInterrupt)
    by = "SIGTERM" if isinstance(fault, Terminated) else "the user"
    sentence = f"stopped by {by}" if stopped else f"{type(fault).__name__}: {fault}"
    state.writer.event(kind="error", message=sentence, traceback=traceback.format_exc())
    state.end("stopped" if stopped else "failed", error=" ".join(sentence.split())[:500])


def _ops_backend() -> str:
    import cl_bench_ops

    return str(cl_bench_ops.backend())


@contextmanager
def _process(compute: Compute) -> Iterator[None]:
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
