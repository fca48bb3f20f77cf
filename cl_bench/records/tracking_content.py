"""What a record becomes in MLflow: metrics by step, params, tags, data sets, artifacts. Plain Python, no MLflow.

Everything here is a function of the record alone, timestamps included, so that sending the same record twice offers
the store the same rows twice, which it keeps once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..numbers.metrics import all_metrics
from .results import Run

__all__ = ["FILES", "STATUS", "VIEW", "Point", "Progress", "clean", "datasets", "digest", "final_points", "millis", "params",
           "points", "run_name", "summary", "table", "tags", "write_artifacts"]

FILES = ("run.json", "events.jsonl", "arrays.npz")
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
MAX_PARAMS = 100  # MLflow takes that many in one batch
MAX_TASKS = 20  # per-task curves of a hundred tasks would bury the rest
MAX_TEXT = 500


SOURCE = {"mlflow.source.name": "cl-bench", "mlflow.source.type": "LOCAL"}
MAX_SUMMARY = 60  # more charts than that are no first screen
VERSION = 2  # of what a record becomes; 2: the tag `row`
ROW = "row"  # the tag of what is one row of a table; a short name, for the UI writes it before every value
# How MLflow's UI shows the experiment: its runs by row, with means over a row's runs. (Which runs are opened below their suite
# is nothing that a view keeps, and a suite's own run hides them.)
VIEW = {"searchFilter": "tags.`cl_bench.kind` = 'run'", "groupBy": {"aggregateFunction": "average", "groupByKeys": [
            {"mode": "tag", "groupByData": ROW}]},
        "selectedColumns": [*(f"metrics.`{m}`" for m in ("average_accuracy", "forgetting", "mean_error", "cost/seconds total")),
                            *(f"tags.`cl_bench.{t}`" for t in ("status", "seed", "order", "device"))]}


@dataclass(frozen=True)
class Point:
    """One value of one metric: percent (or the unit in its name), milliseconds since 1970, step."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Progress:
    """How much of a record's curves a store has: rows of the accuracy matrix, domains of the stream."""

    rows: int = 0
    domains: int = 0


def clean(text: object, limit: int = 200) -> str:
    """Text as a metric's or param's name may be: letters, digits, ``_ - .`` and space, never a path out."""
    name = re.sub(r"[^A-Za-z0-9_. -]+", "_", str(text))
    return re.sub(r"\.{2,}", "_", name).strip(" .")[:limit].strip(" .") or "_"


def _text(value: object, limit: int = MAX_TEXT) -> str:
    """A value as text that every database takes: no NUL, no lone surrogate, not too long."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    text = text.replace("\0", "�").encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[:limit - 1] + "…"


def millis(stamp: object) -> int | None:
    """An ISO 8601 time as milliseconds since 1970; None for anything else."""
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp() * 1000)


def _event_times(run: Run) -> tuple[dict[str, float], list[float]]:
    """Seconds since the start: of the end of each experience by name, and of each domain in stream order."""
    rows: dict[str, float] = {}
    domains: list[float] = []
    for event in run.events():
        t = event.get("t")
        if not isinstance(t, (int, float)):
            continue
        if event.get("kind") == "experience":
            rows.setdefault(str(event.get("name")), float(t))
        elif event.get("kind") == "domain":
            domains.append(float(t))
    return rows, domains


def points(run: Run, start: int, since: Progress = Progress()) -> Iterator[list[Point]]:
    """One list per experience or domain that came after ``since``, in time; ``start`` in ms is when the run began."""
    rows, domains = _event_times(run)
    # every column keeps its number while the matrix grows, so only the rows are cut to those measured
    matrix, measured = run.matrix, len(run.matrix.so_far().rows)
    average, percent = matrix.incremental_accuracies(), matrix.percent
    for i in range(since.rows, measured):
        values = {"accuracy/average": average[i], "forgetting/average": matrix.forgetting(row=i),
                  "forgetting/since learned": matrix.forgetting("learned", row=i)}
        if len(matrix.columns) <= MAX_TASKS:
            values |= {f"accuracy/{j:02d} {clean(name, 80)}": percent[i, j] for j, name in enumerate(matrix.columns)}
        yield _points(values, start + round(1000 * rows.get(matrix.rows[i], i / 1000)), i)
    errors = run.stream.errors
    for k in range(since.domains, len(run.stream)):
        entry, seen = run.stream.entries[k], errors[:k + 1]
        values = {"error/domain": errors[k],
                  "error/mean so far": np.nanmean(seen) if np.isfinite(seen).any() else math.nan,
                  "error/ece": math.nan if entry.ece is None else entry.ece}
        yield _points(values, start + round(1000 * (domains[k] if k < len(domains) else k / 1000)), k)


def final_points(run: Run, start: int) -> list[Point]:
    """The record's own metrics and what the run cost, at a step of their own after the last."""
    cost = run.record.get("cost") or {}
    seconds, counts = cost.get("seconds") or {}, cost.get("parameters") or {}
    values: dict[str, Any] = {clean(k): v for k, v in run.metrics.items()}
    values |= {f"cost/seconds {clean(k)}": v for k, v in seconds.items()}
    values |= {"cost/parameters trainable": counts.get("trainable"), "cost/parameters total": counts.get("total"),
               "cost/forward images": cost.get("forward_images"), "cost/backward images": cost.get("backward_images")}
    if isinstance(cost.get("peak_memory_bytes"), (int, float)):
        values["cost/peak memory MiB"] = cost["peak_memory_bytes"] / 2**20
    step = len(run.matrix.so_far().rows) + len(run.stream)
    return _points(values, millis(run.record.get("finished")) or start, step)


def summary(runs: Sequence[Run]) -> list[Point]:
    """What a suite came to, for its own run: the mean over runs of what ranks each scenario's methods, and of forgetting."""
    known, values, latest = all_metrics(), dict[tuple[str, str, str], list[float]](), 0
    for run in runs:
        latest = max(latest, millis(run.record.get("finished")) or 0)
        leading = next((m.name for m in known.values() if m.ranks and run.kind in m.shown
                        and run.metrics.get(m.name) is not None), "")
        for name in dict.fromkeys((leading, "forgetting")):
            value = run.metrics.get(name)
            if value is not None and math.isfinite(value):
                values.setdefault((name, run.scenario, run.method), []).append(value)
    means = {clean(f"{known[name].label} on {scenario} - {method}"): sum(v) / len(v)
             for (name, scenario, method), v in values.items()}
    return _points(dict(list(means.items())[:MAX_SUMMARY]), latest, len(runs))


def _points(values: Mapping[str, Any], timestamp: int, step: int) -> list[Point]:
    return [Point(key, float(value), timestamp, step) for key, value in values.items()
            if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)]


def params(run: Run) -> dict[str, str]:
    """The resolved config, flattened: ``method.lr`` for ``method.init_args.lr``, ``method`` for its class path."""
    flat: dict[str, str] = {}

    def walk(value: Any, at: tuple[str, ...]) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(inner, at if key in ("class_path", "init_args") and at else (*at, clean(key, 60)))
        elif at:
            flat.setdefault(".".join(at)[:200], _text(value))
    walk(run.record.get("config") or {}, ())
    # MLflow compares names without regard to case on some databases: the first spelling stays
    unique = {key.lower(): key for key in reversed(list(flat))}
    kept = sorted(unique.values())
    if len(kept) > MAX_PARAMS:
        kept = kept[:MAX_PARAMS - 1]
        return {**{k: flat[k] for k in kept}, "left out - see record": str(len(unique) - len(kept))}
    return {k: flat[k] for k in kept}


def tags(run: Run) -> dict[str, str]:
    """What MLflow's own UI filters by: ``tags.cl_bench.method = 'codyra'``."""
    record, environment = run.record, run.record.get("environment") or {}
    git, packages = environment.get("git") or {}, environment.get("packages") or {}
    values = {
        "run_id": run.id, "kind": "run", "status": run.status, "scenario": run.scenario, "setting": run.kind,
        "method": record["method"]["name"], "label": run.method, "family": record["method"].get("family"),
        "seed": run.seed, "order": run.order, "fingerprint": run.fingerprint, "backbone": run.backbone,
        "suite": record.get("suite"), "error": record.get("error"), "version": packages.get("cl-bench"),
        "torch": packages.get("torch"), "device": environment.get("device"), "commit": git.get("commit"),
        "dirty": None if git.get("dirty") is None else str(bool(git["dirty"])).lower(),
        "done": str(run.done).lower(),
    }
    out = {f"cl_bench.{key}": _text(value, 2000) for key, value in values.items() if value is not None}
    out[ROW] = _text(f"{run.method} on {run.scenario}, {run.backbone}, {run.fingerprint}", 2000)
    out |= SOURCE
    if git.get("commit"):
        out["mlflow.source.git.commit"] = _text(git["commit"])
    return out


def run_name(run: Run) -> str:
    """``split_digits codyra s0`` (``o2`` for class order 2)."""
    order = "" if run.order is None else f" o{run.order}"
    return _text(f"{run.scenario} {run.method} s{run.seed}{order}", 200)


def datasets(run: Run) -> list[tuple[str, str, str]]:
    """(name, digest, context) of every part of the data whose digest is in the fingerprint."""
    found: dict[tuple[str, str], str] = {}

    def walk(value: Any, at: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, (*at, *str(key).split(".")))
        elif isinstance(value, str) and "data" in at and value:
            part = " ".join(at[at.index("data") + 1:])
            name = _text(f"{run.scenario} {part}".strip(), 400)
            found[name, _text(value, 36)] = "training" if "train" in part else "testing"
    walk(run.record["fingerprint"].get("fields") or {}, ())
    return [(name, code, context) for (name, code), context in found.items()]


def table(run: Run) -> dict[str, Any]:
    """The accuracy matrix in percent, one row per phase, as MLflow shows a table; None = not measured."""
    matrix = run.matrix.so_far()
    cells = [[None if not math.isfinite(v) else round(float(v), 4) for v in row] for row in matrix.percent]
    return {"columns": ["after", *matrix.columns], "data": [[r, *c] for r, c in zip(matrix.rows, cells, strict=True)]}


def digest(folder: Path) -> str:
    """32 hex digits over the record's files, whether it is done, and what is made of it here: what a store has is compared by
    it, and is brought up to date where any of them has changed."""
    whole = hashlib.sha256(f"{VERSION} ".encode())
    for name in FILES:
        path = folder / name
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None}\n".encode())
    whole.update(f"DONE {(folder / 'DONE').exists()}\n".encode())
    return whole.hexdigest()[:32]


def write_artifacts(run: Run, folder: Path) -> None:
    """``record/`` with the record's files byte for byte, and the matrix as a table in JSON and CSV."""
    (folder / "record").mkdir(parents=True)
    for name in FILES:
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, folder / "record" / name)
    if (run.folder / "DONE").exists():
        (folder / "record" / "DONE").touch()
    matrix = table(run)
    if matrix["data"]:
        (folder / "accuracy_matrix.json").write_text(json.dumps(matrix, ensure_ascii=False), encoding="utf-8")
        text = io.StringIO(newline="")
        csv.writer(text).writerows([matrix["columns"], *matrix["data"]])
        (folder / "accuracy_matrix.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
