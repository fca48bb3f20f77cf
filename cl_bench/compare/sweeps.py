"""Settings of one method: their names tell what differs, and what the differences do.

A record's label names the arguments that were changed. Beside runs with another value, one at its default says so too:
a parameter in which rows differ is in every row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..identity import is_place, told_arguments
from ..records.results import Run
from .memo import kept

__all__ = ["arguments_of", "given_label", "swept", "told_apart"]


def given_label(run: Run) -> str:
    """The label that a user gave the run, empty where it has none."""
    return str((run.record.get("config") or {}).get("label") or "")


def arguments_of(run: Run) -> dict[str, Any]:
    """The arguments of a run's method as the record holds them, defaults too, parts within parts flattened
    (``adapter.rank``); a part is called as its class is; places are left out."""
    out: dict[str, Any] = {}

    def walk(given: Mapping[str, Any], before: str) -> None:
        for key, value in given.items():
            if key not in told_arguments({key: 0}):
                continue  # called like a place
            if isinstance(value, Mapping) and "class_path" in value:
                out[before + key] = str(value["class_path"]).replace(":", ".").rpartition(".")[2]
                walk(value.get("init_args") or {}, f"{before}{key}.")
            elif isinstance(value, Mapping):
                walk(value, f"{before}{key}.")
            elif not is_place(value):
                out[before + key] = value

    walk(run.record["method"].get("args") or {}, "")
    return out


def _key(value: Any) -> str:
    return repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else repr(value)


def swept(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Per method's name the arguments in which its runs differ, in the records' order; one that only some records know (a
    newer version's) does not count."""
    found: dict[str, dict[str, set[str]]] = {}
    counts: dict[str, list[int]] = {}
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        name = str(run.record["method"]["name"])
        counts.setdefault(name, []).append(1)
        for key, value in kept([run], "arguments", lambda run=run: arguments_of(run)).items():  # type: ignore[misc]
            found.setdefault(name, {}).setdefault(key, set()).add(_key(value))
            seen.setdefault(name, {})[key] = seen.setdefault(name, {}).get(key, 0) + 1
    return {name: [key for key, values in keys.items() if len(values) > 1 and seen[name][key] == len(counts[name])]
            for name, keys in found.items()}


def _split(label: str) -> tuple[str, list[str]]:
    """``tent(lr=0.1, x=[1, 2])`` as its name and its arguments; the text as a whole where it has another form."""
    name, bracket, rest = label.partition("(")
    if not bracket or not rest.endswith(")"):
        return label, []
    parts, depth, start = [], 0, 0
    for k, c in enumerate(rest[:-1]):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append(rest[start:k].strip())
            start = k + 1
    return name, [*parts, rest[start:-1].strip()]


def _named(run: Run, differing: Sequence[str]) -> str:
    """The label of a run with every argument in ``differing``."""
    name, parts = _split(run.method)
    if given_label(run) or not differing or name.strip() != run.record["method"]["name"]:
        return run.method  # a label that somebody chose stays as it is
    known = {part.partition("=")[0] for part in parts}
    values = arguments_of(run)
    more = [f"{key}={values[key]}" for key in differing if key.partition(".")[0] not in known and key not in known]
    return f"{name}({', '.join([*parts, *more])})" if more else run.method


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of a method in several settings under names that say every setting."""
    differing = swept(runs)
    out = []
    for run in runs:
        label = _named(run, differing.get(str(run.record["method"]["name"]), ()))
        out.append(run if label == run.method else kept([run], ("label", label), lambda run=run, label=label: (  # type: ignore[misc]
            dataclasses.replace(run, record={**run.record, "method": {**run.record["method"], "label": label}}))))
    return out
