"""Stopped anywhere and gone on with: the same bits; another run, or a damaged one: told before anything is touched."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import coded

from cl_bench.command.config import parse, plan_from
from cl_bench.engine import checkpoint, run_state, runner
from cl_bench.engine.encoding import restore, snapshot
from cl_bench.engine.feed import TrainingFeed
from cl_bench.engine.fit import FitPosition
from cl_bench.engine.run_state import Position
from cl_bench.engine.runner import run
from cl_bench.engine.stream import SegmentPosition
from cl_bench.errors import UserError
from cl_bench.records.results import Run, load
from cl_bench.rng import generators, seeded, set_generators

OFTEN = ["--checkpoint_every", "0"]
LEARN = ["--scenario", "split_digits", "--scenario.per_class", "6", "--scenario.increment", "4", "--method.epochs", "2",
         "--method.batch_size", "8", *OFTEN]
STREAM = ["--scenario", "digits_c", "--scenario.corruptions", "[gaussian_noise, fog]", "--source.epochs", "1", *OFTEN]
TWO = ["--scenario.of", "digits_c", "--scenario.of.corruptions", "[fog, snow]", "--source.epochs", "1", *OFTEN]
PLACES = {  # what a run is in the middle of, and a run that gets there
    "a fit": ([*LEARN, "--method", "codyra"], FitPosition),
    "a fit with a memory": ([*LEARN, "--method", "derpp"], FitPosition),
    "a fit with a schedule": ([*LEARN, "--method", "coda_prompt"], FitPosition),
    "a segment": ([*STREAM, "--method", "cotta", "--method.augmentations", "2"], SegmentPosition),
    "a segment with a memory": ([*STREAM, "--method", "rotta"], SegmentPosition),
    "a segment after a reset": (["--scenario", "per_domain", *TWO, "--method", "tent"], SegmentPosition),
    "a stream that does not wait": (["--scenario", "constant_speed", *TWO, "--method", "eata"], SegmentPosition),
    "deployed learning": (["--scenario", "deployed_digits", "--scenario.corruptions", "[fog]", "--scenario.increment", "6",
                           "--method", "tent", "--method.epochs", "1", *OFTEN], SegmentPosition),
}


def numbers(run: Run) -> dict[str, Any]:
    """All of a record that a seed determines."""
    record = run.record
    stream = [{k: v for k, v in e.items() if k != "seconds"} for e in record["stream"]]
    cost = {k: v for k, v in record["cost"].items() if "seconds" not in k and "memory" not in k}
    events = [{k: v for k, v in e.items() if k != "t"} for e in run.events() if e["kind"] not in ("resume", "error")]
    return {"matrix": record["matrix"], "stream": stream, "metrics": record["metrics"], "cost": cost, "events": events,
            "fingerprint": record["fingerprint"], "warnings": record["warnings"],
            "predictions": {k: v.tolist() for k, v in run.arrays().items()}}


@cache
def whole_of(place: str) -> Run:
    """The same run without a stop."""
    return load(run(plan_from(parse(PLACES[place][0])), Path(tempfile.mkdtemp(prefix="cl-bench-whole-"))))


def stop(argv: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool], skip: int = 0) -> Path:
    """A run that is stopped right after the checkpoint that ``when`` chooses (the one after ``skip`` of them)."""
    real, left = checkpoint.save, [skip]

    def save(folder: Path, method: Any, position: Any, identity: Any) -> None:
        if when(position):
            left[0] -= 1
            if left[0] < 0:
                real(folder, method, position, identity)
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_state, "DEAR", 0)  # a checkpoint is due between any two batches
        patched.setattr(checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(plan_from(parse(argv)), runs)
    (folder,) = [f for f in runs.iterdir() if not f.name.startswith(".")]
    assert load(folder).status == "stopped"
    return folder


def resume(folder: Path) -> Run:
    return load(run(plan_from(load(folder).record["config"]), folder.parent, resume=folder))


@pytest.mark.parametrize("place", list(PLACES))
def test_stopped_in_the_middle_and_resumed_equals_uninterrupted(place: str, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    argv, kind = PLACES[place]
    whole = whole_of(place)
    for skip in (0, 3):
        runs = tmp_path / str(skip)
        resumed = resume(stop(argv, runs, monkeypatch, lambda p: isinstance(p.inside, kind), skip))
        assert resumed.done and numbers(resumed) == numbers(whole)


@pytest.mark.parametrize("place", ["a fit", "a segment"])
@pytest.mark.parametrize("when", ["between steps", "fitted"])
def test_stopped_between_and_resumed(place: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = PLACES[place][0]
    if when == "fitted" and place == "a segment":
        pytest.skip("a stream fits nothing")
    whole = whole_of(place)
    chosen = (lambda p: p.fitted) if when == "fitted" else (lambda p: p.inside is None and not p.fitted)
    assert numbers(resume(stop(argv, tmp_path / "cut", monkeypatch, chosen))) == numbers(whole)


@cache
def cut_of(fitted: bool) -> Path:
    """A deployed run that was stopped: right after its fit, or in the middle of a later segment."""
    when = (lambda p: p.fitted) if fitted else (lambda p: p.step >= 2 and isinstance(p.inside, SegmentPosition))
    with pytest.MonkeyPatch.context() as patched:
        return stop(PLACES["deployed learning"][0], Path(tempfile.mkdtemp(prefix="cl-bench-cut-")), patched, when)


@pytest.mark.parametrize("name", [f.name for f in fields(Position)])
def test_every_field_of_the_position_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that forgets one field gives another end, or none."""
    whole = whole_of("deployed learning")
    folder = Path(shutil.copytree(cut_of(name == "fitted"), tmp_path / "cut" / cut_of(name == "fitted").name))
    known, busy = (load(folder).record["cost"][key] for key in ("seconds", "busy_seconds"))
    real = checkpoint.Found.fill
    forgotten = getattr(Position(), name)
    monkeypatch.setattr(checkpoint.Found, "fill", lambda self, *a: replace(real(self, *a), **{name: forgotten}))
    try:
        resumed = resume(folder)
    except Exception:
        return
    seconds = resumed.record["cost"]["seconds"]
    if name == "seconds":
        assert seconds["learn"] < known["learn"] + 1e-9, "without it, what was learned before the stop took no time"
    elif name == "busy":
        assert resumed.record["cost"]["busy_seconds"]["learn"] < busy["learn"] + 1e-9
    elif name == "elapsed":
        assert seconds["total"] < sum(v for k, v in seconds.items() if k != "total") + 60
        times = [e["t"] for e in resumed.events()]
        assert times != sorted(times), "without it, time goes back at the stop"
    elif name == "warnings":
        assert forgotten == [] and "warnings" in {f.name for f in fields(Position)}
        test_warnings_come_back(tmp_path / "warned", monkeypatch)
    else:
        assert numbers(resumed) != numbers(whole), f"nothing notices that {name} is forgotten"


def test_warnings_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    argv = [*LEARN, "--method", "finetune", "--method.lr", "1e12"]
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    assert whole.record["warnings"], "this run was to go wrong"
    cut = stop(argv, tmp_path / "cut", monkeypatch, lambda p: p.step == 1)
    assert resume(cut).record["warnings"] == whole.record["warnings"]


def test_a_feed_goes_on_in_the_middle_of_an_epoch() -> None:
    """Order and augmentation alike; so do the epochs after it."""
    def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    places: list[Any] = []
    cpu = torch.device("cpu")
    whole = TrainingFeed(coded(20), 8, cpu, seed=3, augment=jitter, between=lambda: places.append(whole.position()))
    epochs = [[b.x for b in whole] for _ in range(3)]
    for place, done in zip(places[2:], ((1, 1), (1, 2), (2, 1), (2, 2)), strict=True):
        feed = TrainingFeed(coded(20), 8, cpu, seed=3, augment=jitter, at=place)
        assert place.batch == done[1]
        rest = [epochs[done[0]][done[1]:], *epochs[done[0] + 1:]]
        for wanted in rest:
            got = [b.x for b in feed]
            assert len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_time_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the record says of time is that of before the stop and after it together."""
    argv = [*LEARN, "--method", "finetune"]
    real = run_state.RunState._told

    def told(self: Any) -> Position:  # each look at the clock a thousand seconds later
        real(self)
        self.position.seconds["learn"] += 1000
        self.position.busy["learn"] += 1000
        self._before += 1000
        return real(self)

    monkeypatch.setattr(run_state.RunState, "_told", told)
    folder = stop(argv, tmp_path, monkeypatch, lambda p: p.step == 2)
    before = load(folder)
    monkeypatch.undo()
    resumed = resume(folder)
    for kind in ("seconds", "busy_seconds"):
        assert resumed.record["cost"][kind]["learn"] >= 1000 * (len(before.matrix.rows) - 1), kind
    assert resumed.record["cost"]["seconds"]["total"] >= 1000
    times = [e["t"] for e in resumed.events()]
    assert times == sorted(times), "time goes back at the stop"


def test_killed_for_real_and_resumed(tmp_path: Path) -> None:
    argv = PLACES["a fit"][0]
    whole = whole_of("a fit")
    code = ("import sys, time\nfrom pathlib import Path\nfrom cl_bench.command.config import parse, plan_from\n"
            "from cl_bench.engine.runner import run\nimport cl_bench.engine.checkpoint as c\n"
            "import cl_bench.engine.run_state as s\ns.DEAR = 0\nold, n = c.save, [0]\n"
            "def save(*a):\n    old(*a)\n    n[0] += 1\n    if n[0] == 5:\n        print('saved', flush=True); time.sleep(60)\n"
            "c.save = save\nrun(plan_from(parse(sys.argv[2:])), Path(sys.argv[1]))\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cut"), *argv], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "saved"
    (folder,) = [f for f in (tmp_path / "cut").iterdir() if not f.name.startswith(".")]
    assert load(folder).status == "running"
    with pytest.raises(UserError, match=str(process.pid)):
        resume(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert numbers(resume(folder)) == numbers(whole)


# ------------------------------------------------------------------------------------------------ not the same run
@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return stop(PLACES["a fit"][0], tmp_path / "runs", monkeypatch, lambda p: p.step == 1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "LOCK"}


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("change", "said"), [
    (lambda r: r.update(seed=5), "seed is 0 now and was 5 in its record"),
    (lambda r: (r.update(seed=5), r["config"].update(seed=5)), "config.seed is 5 now and was 0 in its checkpoint"),
    (lambda r: r["config"]["method"]["init_args"].update(epochs=9), "config.method.init_args.epochs is 9 now and was 2"),
    (lambda r: r["fingerprint"]["fields"].update(weights="00"), "fingerprint.fields.weights is"),
    (lambda r: r["method"].update(source_digest="00"), "method_source is"),
    (lambda r: r.pop("environment"), "cl_bench_source is .* now and was None in its record"),
])
def test_another_run_is_refused_with_the_field_and_untouched(stopped: Path, change: Any, said: str) -> None:
    edited(stopped, change)
    before = content(stopped)
    with pytest.raises(UserError, match=said):
        resume(stopped)
    assert content(stopped) == before, "refusing must not touch anything"


def test_an_edited_method_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.py"
    source = "from cl_bench import Method\n\nclass Mine(Method):\n    'One.'\n"
    mine.write_text(source)
    argv = [*LEARN, "--method", f"{mine}:Mine"]
    folder = stop(argv, tmp_path / "runs", monkeypatch, lambda p: p.step == 1)
    code = ("import sys\nfrom cl_bench.cli import main\n"
            "sys.exit(main(['run', '--resume', sys.argv[1], '--tracking', 'none']))")
    for text, ends in ((source.replace("One", "Two"), 2), (source, 0)):
        mine.write_text(text)
        ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
        assert ran.returncode == ends, ran.stderr
        assert ends == 0 or ("method_source" in ran.stderr and "Traceback" not in ran.stderr)


# ------------------------------------------------------------------------------------------------ nothing to go on from
def zero(folder: Path) -> None:
    (file,) = (folder / "checkpoint").glob("*.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize("harm", [zero, lambda f: shutil.rmtree(f / "checkpoint"),
                                  lambda f: (f / "checkpoint" / "state.json").write_text("{"),
                                  lambda f: next((f / "checkpoint").glob("*.safetensors")).unlink()],
                         ids=["zeroed", "none", "torn", "no tensors"])
def test_without_a_whole_checkpoint_a_run_starts_over_and_says_so(stopped: Path, harm: Any, tmp_path: Path) -> None:
    whole = whole_of("a fit")
    harm(stopped)
    again = resume(stopped)
    (said,) = [w for w in again.record["warnings"] if "started over" in w]
    assert "checkpoint" in said
    told = numbers(again)
    told["warnings"].remove(said)
    told["events"] = [e for e in told["events"] if e.get("message") != said]
    assert told == numbers(whole)


def test_a_finished_run_is_not_resumed_and_not_touched(tmp_path: Path) -> None:
    folder = run(plan_from(parse(PLACES["a fit"][0])), tmp_path)
    before = content(folder)
    with pytest.raises(UserError, match="finished"):
        resume(folder)
    assert content(folder) == before
    (folder / "DONE").unlink()
    with pytest.raises(UserError, match="finished"):
        resume(folder)
    assert content(folder) == before, "what had finished gets its mark back"


def test_the_record_stands_before_the_source_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    real = runner.ready_backbone
    monkeypatch.setattr(runner, "ready_backbone", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(plan_from(parse([*STREAM, "--method", "tent"])), tmp_path)
    (folder,) = [f for f in tmp_path.iterdir() if not f.name.startswith(".")]
    assert load(folder).status == "stopped"
    monkeypatch.setattr(runner, "ready_backbone", real)
    again = resume(folder)
    assert again.done and any("before its first checkpoint" in w for w in again.record["warnings"])


def test_states_of_generators_come_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    with seeded(3):
        draw()
        tree, tensors = snapshot(generators())
        first = draw()
        assert draw() != first
        set_generators(restore(json.loads(json.dumps(tree)), tensors))
        assert draw() == first
