"""A suite executed on small synthetic copies of its data, with a tiny network in the place of its weights.

Every run goes its whole way, one for all that differ in seed and order alone: the layout is read, the method trains or adapts,
the record is written. Its numbers mean nothing.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from ..registry import GROUPS, name_of
from .parts import NESTED, class_of
from .suites import Job

__all__ = ["Copies", "cut", "dry_run"]

STAND_INS = "cl_bench.backbones.stand_ins"
# What makes a run long, by the option's name: the most that a dry run does of it.
_MOST: tuple[tuple[str, int], ...] = (
    (r"(.*_)?epochs", 1), (r"milestone|freeze_epochs", 0), (r"iterations|warmup|(.*_)?steps", 2), (r"batch_size|scan_size", 25),
    (r"m|samples|memory|pool|replay|fisher_samples|references|sentences|hidden", 20),
    (r"views|augmentations|frequency|experts", 4), (r"rank|r|descriptor", 8),
)


def dry_run(jobs: Sequence[Job], overrides: Sequence[str] = (), say: Callable[[str, str | None], None] | None = None,
            done: set[str] | None = None) -> list[str]:
    """Run every job cut down, and return a sentence for each that failed.

    Args:
        overrides: options appended to every run.
        say: told of each run when it has ended: its label, and why it failed or None.
        done: keys of runs that were tried before, which are not tried again; those of this call are added.
    """
    from ..engine.runner import run
    from .config import parse, plan_from

    tell = say or (lambda label, error: None)
    tried, failures = set() if done is None else done, []
    with tempfile.TemporaryDirectory(prefix="cl-bench-dry-run-") as folder:
        copies = Copies(Path(folder))
        for job in jobs:
            error = None
            try:
                config = cut(parse(list(overrides), job.config), copies)
                key = json.dumps({**config, "seed": 0}, sort_keys=True, default=str).replace(folder, "")
                if key in tried:
                    continue
                tried.add(key)
                run(plan_from(config), Path(folder) / "runs")
            except Exception as fault:
                error = str(fault) if isinstance(fault, UserError) else told(fault)
                failures.append(f"{job.label}: {error}")
            tell(job.label, error)
    return failures


class Copies:
    """The synthetic data sets of a dry run, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, dict[str, Any]] = {}

    def of(self, scenario: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that name the copy of a scenario's data."""
        from ..data.layouts import synthetic

        domains = options.get("order") if options.get("split") == "domain" else None
        key = f"{scenario} {options.get('corruptions')} {options.get('severity')} {options.get('split')} {domains}"
        if key not in self.made:
            self.made[key] = synthetic(scenario, self.folder / f"data{len(self.made)}", options)
        return self.made[key]


def cut(config: Mapping[str, Any], copies: Copies) -> dict[str, Any]:
    """A run's config on a synthetic copy of its data, with few classes, one epoch and a tiny network.

    Raises:
        UserError: a scenario whose layout no copy is made of.
    """
    compute = {**dict(config.get("compute") or {}), "device": "cpu", "workers": 0, "precision": "32-true"}
    return {**config, "scenario": _scenario(config["scenario"], copies), "method": _shortened(config["method"]),
            "backbone": _stand_in(config), "compute": compute, "checkpoint": False}


def _scenario(part: Mapping[str, Any], copies: Copies) -> dict[str, Any]:
    from ..data.layouts import classes_of

    given = dict(part.get("init_args") or {})
    if isinstance(given.get("of"), Mapping):
        return {**part, "init_args": {**given, "of": _scenario(given["of"], copies)}}
    name = name_of(GROUPS["scenarios"], class_of(part["class_path"]))
    if type(given.get("order")) is int:
        given["order"] = 1993  # a suite's orders are draws of one policy: one of them is tried
    if "increment" in given and given.get("split") != "domain":
        half = classes_of(name) // 2
        given |= {"base": half if given.get("base") else 0, "increment": half, "per_class": 0}
    if "corruptions" in given:
        given["corruptions"] = ["gaussian_noise", "fog"]
    if given.get("size"):
        given |= {"size": 32, **({"resize": 36} if "resize" in given else {})}
    found = copies.of(name, given)
    return {**part, "init_args": {**given, **{k: v for k, v in found.items() if given.get(k)}}}


def _shortened(part: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(part.get("init_args") or {})
    for option, value in given.items():
        if option in NESTED and isinstance(value, Mapping):
            given[option] = _shortened(value)
        elif type(value) is int:
            given[option] = min(value, *(most for pattern, most in _MOST if re.fullmatch(pattern, option)), value)
    return {**part, "init_args": given}


def _stand_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network of the same kind as the config's; with a head where the stream is answered by that of the weights."""
    from ..data.layouts import heads_of

    part, scenario = config["backbone"], config["scenario"]
    while isinstance(inner := (scenario.get("init_args") or {}).get("of"), Mapping):
        scenario = inner
    said = " ".join(map(str, [part["class_path"], *(part.get("init_args") or {}).values()])).lower()
    if "open_clip" in part["class_path"]:
        return {"class_path": f"{STAND_INS}.tiny_clip", "init_args": {"size": 32, "seed": 0}}
    stream = class_of(scenario["class_path"])
    classes = list(heads_of(name_of(GROUPS["scenarios"], stream))) if stream.family == "test-time stream" else None
    return {"class_path": f"{STAND_INS}.{'tiny_vit' if 'vit' in said else 'tiny_resnet'}",
            "init_args": {"size": 32, "classes": classes, "seed": 0}}
