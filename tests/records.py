"""Synthetic but realistic records for the tests of results, compare and the page: no training, no torch.

``write_runs(folder, ...)`` writes a suite of class-incremental and test-time runs whose numbers follow simple known
rules (forgetting decays with the distance to the learned task; errors differ by corruption), from a seeded generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cl_bench.numbers.matrix import AccuracyMatrix, Stream, StreamEntry
from cl_bench.numbers.metrics import metrics_of
from cl_bench.records.results import RunWriter

CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
               "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
               "jpeg_compression")
HARDNESS = (62, 58, 60, 35, 52, 33, 30, 28, 36, 27, 10, 40, 30, 48, 34)
# family, accuracy right after learning, points lost per later task, seconds, trainable share
LEARNERS: dict[str, tuple[str, float, float, float, float]] = {
    "joint": ("baseline", 93, 0.3, 9.0, 1.0), "osft": ("subspace", 90, 2.2, 14.0, 0.7),
    "codyra": ("low-rank", 89, 2.6, 8.0, 0.06), "ncm": ("prototype", 82, 1.2, 0.6, 0.0),
    "lora": ("low-rank", 91, 9.0, 7.0, 0.05), "finetune": ("baseline", 94, 18.0, 6.0, 1.0)}
# family, share of the source error that stays, drift per domain, seconds, backward images per image
ADAPTERS: dict[str, tuple[str, float, float, float, float]] = {
    "source": ("baseline", 1.0, 0.0, 1.0, 0), "bn": ("statistics", 0.68, 0.0, 1.2, 0),
    "tent": ("entropy", 0.62, 0.15, 2.6, 1), "eata": ("entropy", 0.58, 0.02, 2.2, 0.6),
    "psmt": ("teacher", 0.56, -0.05, 6.5, 1)}


def fingerprint(**fields: Any) -> dict[str, Any]:
    """A fingerprint made as the engine makes one: the digest of its fields."""
    values = {"protocol_version": 1, "metrics": "1", "seed_policy": "one seed", "reset": "never", **fields}
    return {"id": hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:12], "fields": values}


def metrics_of_matrix(matrix: AccuracyMatrix) -> dict[str, float | None]:
    """What a record of learning holds as metrics."""
    return metrics_of(matrix, Stream(()), {"scenario": {"kind": "learn"}})


def first_rows(matrix: AccuracyMatrix, rows: int) -> AccuracyMatrix:
    """What a run has measured after so many rows; every column is there from the start."""
    taught = tuple(d if d is not None and d < rows else None for d in matrix.learned or ())
    return AccuracyMatrix(matrix.rows[:rows], matrix.columns, matrix.correct[:rows], matrix.total[:rows], taught)


def metrics_of_stream(stream: Stream) -> dict[str, float | None]:
    """What a record of a test-time stream holds as metrics, without its clean source."""
    return metrics_of(AccuracyMatrix.empty((), ()), stream, {"scenario": {"kind": "stream"}})


def record(scenario: str = "split_digits", method: str = "codyra", seed: int = 0, *, order: int | None = None,
           kind: str = "learn", matrix: AccuracyMatrix | None = None, stream: Stream | None = None,
           status: str = "finished", label: str | None = None, family: str = "low-rank", commit: str = "1a2b3c4d",
           metrics: dict[str, Any] | None = None, seconds: float = 8.0, trainable: int = 18_000,
           backward: int = 40_000, fields: dict[str, Any] | None = None, args: dict[str, Any] | None = None,
           **over: Any) -> dict[str, Any]:
    """One ``run.json`` as a dictionary; every part can be given, the rest is plausible."""
    backbone = "tiny_vit" if kind == "learn" else "tiny_resnet"
    values: dict[str, Any] = {
        "status": status, "error": None, "started": "2026-01-31T10:00:00+00:00",
        "finished": "2026-01-31T10:00:09+00:00" if status == "finished" else None, "suite": "synthetic",
        "scenario": {"name": scenario, "class_path": f"scenarios.{scenario}", "args": {}, "kind": kind},
        "method": {"name": method, "class_path": f"methods.{method}", "args": args or {}, "label": label or method,
                   "family": family, "paper": "Example et al. 2024"},
        "backbone": {"name": backbone, "args": {}, "sha256": "ab" * 32, "preprocess": {"size": 32}, "source": "card"},
        "seed": seed, "order": order,
        "config": {"scenario": scenario, "method": {"name": method, **(args or {"lr": 0.001})}, "seed": seed},
        "fingerprint": fingerprint(**{"scenario": scenario, "weights": "ab" * 4, "test_batch_size": 64, **(fields or {})}),
        "experiences": [], "test_sets": [],
        "matrix": (matrix or AccuracyMatrix.empty((), ())).to_json(), "stream": (stream or Stream(())).to_json(),
        "metrics": metrics or {},
        "cost": {"seconds": {"source": 1.0, "learn": seconds, "adapt": 0.0, "evaluate": 0.5, "total": seconds + 1.5},
                 "busy_seconds": {"source": 1.0, "learn": seconds, "adapt": 0.0, "evaluate": 0.5},
                 "peak_memory_bytes": 300_000_000 + 4_000 * trainable // 10,
                 "parameters": {"total": 310_000, "trainable": trainable}, "forward_images": backward + 10_000,
                 "backward_images": backward, "optimizer_steps": backward // 32,
                 "growth": [{"experience": i + 1, "parameters": trainable * (i + 1) // 5,
                             "state_bytes": 4 * trainable * (i + 1) // 5, "stored_samples": 0} for i in range(5)]},
        "environment": {"python": "3.11.7", "platform": "Linux x86_64", "device": "cpu", "threads": 2,
                        "packages": {"torch": "2.8.0", "timm": "1.0.20"}, "git": {"commit": commit, "dirty": False},
                        "ops_backend": "cpu"},
        "warnings": []}
    return {**values, **over}


def learner_matrix(method: str, seed: int, tasks: int = 5, size: int = 72) -> AccuracyMatrix:
    """A class-incremental accuracy matrix: lower triangle measured, the future not."""
    _, top, loss, _, _ = LEARNERS[method]
    g = np.random.default_rng([seed, sum(map(ord, method))])
    names = tuple(f"classes {2 * i}-{2 * i + 1}" for i in range(tasks))
    correct, total = np.zeros((tasks, tasks), np.int64), np.zeros((tasks, tasks), np.int64)
    for i in range(tasks):
        for j in range(i + 1):
            rate = np.clip(top - 1.2 * i - loss * (i - j) ** 0.9 + g.normal(0, 1.5), 0, 100)
            correct[i, j], total[i, j] = round(size * rate / 100), size
    return AccuracyMatrix(names, names, correct, total, tuple(range(tasks)))


def adapter_stream(method: str, seed: int, visits: int = 2, size: int = 450, collapse: bool = False) -> Stream:
    """A stream of the 15 corruptions, ``visits`` times; ``collapse`` makes the last domains predict one class."""
    _, share, drift, cost, _ = ADAPTERS[method]
    g = np.random.default_rng([seed, sum(map(ord, method))])
    entries = []
    for n in range(visits * len(CORRUPTIONS)):
        k, visit = n % len(CORRUPTIONS), n // len(CORRUPTIONS) + 1
        gone = collapse and n >= visits * len(CORRUPTIONS) - 4
        error = 90.0 if gone else float(np.clip(HARDNESS[k] * share + drift * n + g.normal(0, 1), 0, 100))
        entries.append(StreamEntry(
            f"{CORRUPTIONS[k]} ({visit})", CORRUPTIONS[k], visit, size, round(size * (1 - error / 100)),
            ece=error / 3, top_class_share=0.99 if gone else 0.14, collapsed=gone, seconds=cost / 10,
            unlabelled={"entropy": 0.05 if gone else error / 40, "marginal_entropy": 0.06 if gone else 2.2,
                        "mano": 0.99 if gone else 0.9 - error / 200}))
    return Stream(tuple(entries))


def write(folder: Path, run_id: str, run: dict[str, Any], events: Iterable[dict[str, Any]] = (),
          done: bool = True) -> Path:
    """One run's folder from a record and events."""
    with RunWriter(folder / run_id) as writer:
        for event in events:
            writer.event(**event)
        matrix = AccuracyMatrix.from_json(run["matrix"])
        writer.arrays({"correct": matrix.correct, "total": matrix.total})
        writer.write(run)
        if done:
            writer.done()
    return folder / run_id


def _losses(tasks: Iterable[str], seed: int) -> Iterable[dict[str, Any]]:
    g = np.random.default_rng(seed)
    for n, task in enumerate(tasks):
        yield {"t": float(n), "kind": "experience", "name": task}
        for step in range(0, 60, 3):
            yield {"t": n + step / 60, "kind": "loss", "experience": task, "step": step,
                   "value": float(2 * np.exp(-step / 15) + 0.1 + abs(g.normal(0, 0.05)))}


def write_learner(folder: Path, method: str, seed: int, order: int | None = None, scenario: str = "split_digits",
                  **over: Any) -> Path:
    """One class-incremental run."""
    family, _, _, seconds, share = LEARNERS[method]
    matrix = learner_matrix(method, seed + 100 * (order or 0) + 1000 * sum(map(ord, scenario)))
    name = f"{scenario}-{method}-s{seed}" + ("" if order is None else f"-o{order}")
    run = record(scenario, method, seed, order=order, matrix=matrix, family=family, metrics=metrics_of_matrix(matrix),
                 seconds=seconds * (1 + 0.03 * seed), trainable=int(310_000 * share),
                 backward=0 if method == "ncm" else int(5_000 * seconds), **over)
    return write(folder, name, run, _losses(matrix.rows, seed) if method != "ncm" else ())


def write_adapter(folder: Path, method: str, seed: int, scenario: str = "digits_c", collapse: bool = False,
                  **over: Any) -> Path:
    """One test-time run."""
    family, _, drift, seconds, backward = ADAPTERS[method]
    stream = adapter_stream(method, seed, collapse=collapse)
    g = np.random.default_rng([seed, 7])
    after = 3.1 + (0 if method in ("source", "bn") else 30 * max(drift, 0.01) + abs(float(g.normal(0, 0.3))))
    metrics = {**metrics_of_stream(stream), "source_error_before": 3.1, "source_error_after": after,
               "source_forgetting": after - 3.1}
    clean = AccuracyMatrix.from_rates([[96.9], [100 - after]], size=1000, rows=["source", "after stream"], columns=["clean"],
                                      learned=[None])
    run = record(scenario, method, seed, kind="stream", stream=stream, matrix=clean, family=family, metrics=metrics,
                 seconds=seconds, trainable=0 if backward == 0 else 2_200, backward=int(13_500 * backward), **over)
    events = [{"t": float(n), "kind": "domain", "name": e.name} for n, e in enumerate(stream.entries)]
    return write(folder, f"{scenario}-{method}-s{seed}", run, events)


def write_suite(folder: Path, seeds: int = 5, extra: bool = True) -> Path:
    """What a finished quickstart leaves, on three scenarios; ``extra`` adds a failed, a running and a collapsed run."""
    for seed in range(seeds):
        for method in LEARNERS:
            write_learner(folder, method, seed)
            write_learner(folder, method, seed, scenario="split_glyphs")
        for method in ADAPTERS:
            write_adapter(folder, method, seed)
    if extra:
        write(folder, "split_digits-sema-s0", record(
            method="sema", status="failed", family="modular",
            error="The adapter pattern 'blocks.*' matched no layer: list the layers with cl-bench list layers."))
        full = learner_matrix("lora", 9)
        part = AccuracyMatrix(full.rows, full.columns, np.where(np.arange(5)[:, None] < 2, full.correct, 0),
                              np.where(np.arange(5)[:, None] < 2, full.total, 0), full.learned)
        write(folder, "split_digits-lora-s9", record(method="lora", seed=9, matrix=part, status="running"), done=False)
        write_adapter(folder, "tent", 9, collapse=True, label="tent (lr=0.1)", args={"lr": 0.1})
    return folder
