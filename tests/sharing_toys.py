"""A small run of learning and one of a stream, made once; and how to edit a record as somebody who cheats would."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cl_bench.records.results import load

LEARN = ["--scenario", "split_digits", "--scenario.per_class", "6", "--method", "finetune", "--method.epochs", "1",
         "--method.lr", "0.01", "--device", "cpu", "--checkpoint", "false"]
STREAM = ["--scenario", "digits_c", "--scenario.corruptions", "[fog]", "--method", "bn", "--source.epochs", "1",
          "--device", "cpu", "--checkpoint", "false"]


def made(argv: list[str], runs: Path) -> Path:
    """The folder of a fresh run."""
    from cl_bench.command.config import parse, plan_from
    from cl_bench.engine.runner import run

    return run(plan_from(parse(argv)), runs)


def edited(folder: Path, to: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> Path:
    """A copy of a run whose record and arrays went through ``change``."""
    copy = to / folder.name
    shutil.copytree(folder, copy)
    record, arrays = json.loads((copy / "run.json").read_text()), dict(load(copy).arrays())
    change(record, arrays)
    (copy / "run.json").write_text(json.dumps(record))
    np.savez_compressed(copy / "arrays.npz", **arrays)
    return copy


def zipped(path: Path, files: dict[str, bytes], runs: dict[str, list[str]] | None = None, **manifest: Any) -> Path:
    """An archive put together by hand: digests are right, whatever the files are."""
    listed: dict[str, dict[str, str]] = {}
    for name, data in files.items():
        run_id, _, file = name.partition("/")
        if runs is None or file in runs.get(run_id, []):
            listed.setdefault(run_id, {})[file] = hashlib.sha256(data).hexdigest()
    told = {"format": 1, "made_with": "by hand", "about": {}, "runs": listed, **manifest}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive.json", json.dumps(told))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a run as an archive names them."""
    names = ("run.json", "events.jsonl", "arrays.npz", "DONE")
    return {f"{folder.name}/{name}": (folder / name).read_bytes() for name in names}


def recounted(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Bring the matrix and the metrics to what the predictions say: a careful cheat's work."""
    from cl_bench.numbers.matrix import AccuracyMatrix, Stream
    from cl_bench.numbers.metrics import metrics_of

    matrix = record["matrix"]
    for i, row in enumerate(matrix["rows"]):
        for j, column in enumerate(matrix["columns"]):
            if matrix["total"][i][j] is not None:
                matrix["correct"][i][j] = int((arrays[f"{row}/{column}"] == arrays[f"truth/{column}"]).sum())
    record["metrics"] = metrics_of(AccuracyMatrix.from_json(matrix), Stream.from_json(record["stream"]), record)
