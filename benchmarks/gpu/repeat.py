"""A run on the device, interrupted and resumed, beside the uninterrupted one; and the same run twice.

Exact repetition is promised on a CPU. Here is what holds on this device: whether every count, metric and prediction of
the two records is the same. cuDNN is deterministic in every run; a row says what differs where something does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Part

from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.records.results import load

SPLIT = ["--scenario", "split_digits", "--backbone", "glyph_vit"]
STREAM = ["--scenario", "digits_c", "--backbone", "glyph_resnet", "--scenario.corruptions",
          "[gaussian_noise, contrast, fog, jpeg_compression]", "--source.epochs", "2"]
RUNS = {
    "finetune": [*SPLIT, "--method", "finetune", "--method.epochs", "2"],
    "tent": [*STREAM, "--method", "tent"],
    "codyra": [*SPLIT, "--method", "codyra", "--method.epochs", "2"],
    "roid": [*STREAM, "--method", "roid"],
    "cotta": [*STREAM, "--method", "cotta", "--method.augmentations", "4"],
    "derpp": [*SPLIT, "--method", "derpp", "--method.epochs", "2"],
    "psmt": [*STREAM, "--method", "psmt"],
}


def interrupting(after: int) -> Any:
    """A listener that stops the run at its second experience or domain."""
    seen = []

    def listen(kind: str, facts: Mapping[str, Any]) -> None:
        if kind in ("experience", "domain"):
            seen.append(kind)
            if len(seen) > after:
                raise KeyboardInterrupt

    return listen


def stopped_and_resumed(argv: list[str], runs: Path) -> Any:
    """The record of a run that was stopped after its first checkpoint and went on."""
    try:
        run(plan_from(parse(argv)), runs, listen=interrupting(1))
    except KeyboardInterrupt:
        pass
    else:
        raise RuntimeError("the run was not interrupted")
    (folder,) = [f for f in runs.iterdir() if not f.name.startswith(".")]
    if not (folder / "checkpoint").is_dir():
        raise RuntimeError("the interrupted run left no checkpoint")
    return load(run(plan_from(load(folder).record["config"]), runs, resume=folder))


def differences(a: Any, b: Any) -> dict[str, Any]:
    """How far two records of one run lie apart."""
    one, two = a.arrays(), b.arrays()
    differ = sum(int((one[k] != two[k]).sum()) for k in one) if one.keys() == two.keys() else -1
    counts = [(r.record["matrix"], [(e["name"], e["correct"]) for e in r.record["stream"]]) for r in (a, b)]
    losses = [[e["value"] for e in r.events() if e["kind"] == "loss"] for r in (a, b)]
    same_losses = len(losses[0]) == len(losses[1]) and bool(np.array_equal(losses[0], losses[1]))
    return {"same counts": counts[0] == counts[1], "answers that differ": differ,
            "of": sum(int(v.size) for v in one.values()), "same losses": same_losses}


def main() -> None:
    """One row per method and question."""
    part = Part("repeat", __doc__ or "")
    names = list(RUNS) if part.full else ["finetune", "tent"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            argv = [*RUNS[name], "--device", part.options.device, "--seed", "1"]
            if not part.full:
                argv += (["--scenario.per_class", "12"] if "split_digits" in argv else
                         ["--scenario.corruptions", "[fog, contrast]"])

            def measure(name: str = name, argv: list[str] = argv) -> None:
                home = Path(folder) / name
                whole = load(run(plan_from(parse(argv)), home / "whole"))
                again = load(run(plan_from(parse(argv)), home / "again"))
                cut = stopped_and_resumed(argv, home / "cut")
                part.row(method=name, question="same seed twice", **differences(whole, again))
                part.row(method=name, question="stopped and resumed", **differences(whole, cut))

            part.attempt(name, measure, needs=6)


if __name__ == "__main__":
    main()
