"""Suite files: scenarios x methods x seeds x class orders x the cells of a grid, as a list of runs."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import brief, read_yaml
from .grid import MOST, Axis, axes_of, cells, seeds_of

__all__ = ["Job", "Suite", "read_suite"]

_KEYS = {"name", "about", "published", "seeds", "orders", "grid", "runs", "compute", "source"}
_ROW_KEYS = {"scenario", "backbone", "methods", "seeds", "orders", "grid", "source", "compute"}


@dataclass(frozen=True)
class Job:
    """One run of a suite: what :func:`cl_bench.command.config.parse` takes."""

    label: str
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the config, by which a finished run is recognised."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """A named list of jobs; ``about`` says what it should reach and in what time, ``swept`` which options a grid goes over."""

    name: str
    about: str
    jobs: tuple[Job, ...]
    swept: tuple[str, ...] = ()


def read_suite(path: Path, grid: Mapping[str, Any] | None = None) -> Suite:
    """A suite file: ``name``, ``seeds`` and ``runs``, each a scenario, a backbone and a list of methods.

    ``orders`` gives the scenario its class order: a list (each with every seed), or ``seed`` (each seed its own); ``grid`` goes
    over options of the runs, of all or of a row's.

    Args:
        grid: axes given beside the file, which win over its own axis by axis.

    Raises:
        UserError: for a missing or unknown key, or a grid that goes over no option.
    """
    data = read_yaml(path)
    rows = data.get("runs") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is no suite: it needs a list `runs` of scenario, backbone and methods.")
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"runs in {path} must list mappings, each with a scenario and methods.")
    for where, keys in ((data, _KEYS), *((row, _ROW_KEYS) for row in rows)):
        for key in where:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                raise UserError(f"{path} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else
                                f"; known are {', '.join(sorted(keys))}."))
    jobs: list[Job] = []
    common, given = axes_of(data.get("grid"), f"grid in {path}"), axes_of(grid or None, "--grid")
    swept: dict[str, None] = {}
    for row in rows:
        if "scenario" not in row or not isinstance(row.get("methods"), list) or not row["methods"]:
            raise UserError(f"every entry of runs in {path} needs a scenario and a list of methods.")
        axes = dict([*common, *axes_of(row.get("grid"), f"grid in {path}"), *given])
        seeds = seeds_of(axes.pop("seed", row.get("seeds", data.get("seeds", [0]))), f"seeds in {path}")
        orders = _orders(row.get("orders", data.get("orders")), path)
        scenarios = [(s, _ordered(row["scenario"], o, path)) for o, s in _pairs(orders, seeds)]
        swept.update(dict.fromkeys(axes))
        for method in row["methods"]:
            config = {"scenario": None, "method": method}
            for key in ("backbone", "source", "compute"):
                if (value := row.get(key, data.get(key))) is not None:
                    config[key] = value
            jobs += _crossed(config, list(axes.items()), scenarios)
            if len(jobs) > MOST:
                raise UserError(f"{path} has more than {MOST:,} runs; take fewer values, or run its rows in turn.")
    return Suite(_name(data.get("name", path.stem), path), str(data.get("about", "")), tuple(jobs), tuple(swept))


def _crossed(config: Mapping[str, Any], axes: Sequence[Axis], scenarios: Sequence[tuple[int, Any]]) -> Iterator[Job]:
    """Every cell of a grid with every (seed, scenario)."""
    for cell in cells(axes):
        for seed, scenario in scenarios:
            whole = _with({**config, "scenario": scenario, "seed": seed}, cell)
            more = ", ".join(f"{k}={v}" for k, v in cell if k.partition(".")[0] not in ("scenario", "method"))
            label = f"{_short(whole['scenario'])} {_short(whole['method'])} seed {seed}"
            yield Job(label + (f" [{more}]" if more else ""), whole)


def _with(config: dict[str, Any], cell: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A config with the options of a cell, as if they had been typed."""
    if not cell:
        return config
    from .arguments import merged, options_of
    from .parts import NESTED, ROOTS, same_class

    options: list[Any] = []
    for key, value in cell:
        (path, _), = options_of([f"--{key}=x"], {})
        if (path[-1] in (*NESTED, "class_path") or path in [(root,) for root in ROOTS]) and not isinstance(value, str):
            raise UserError(f"the grid's {key} must list names, not {brief(value)}.")
        options.append((path, value))
    return merged(config, options, NESTED, ROOTS, same_class)


def _orders(given: Any, path: Path) -> Any:
    if given is None or given == "seed":
        return given
    try:
        return seeds_of(given, "")
    except UserError as fault:
        raise UserError(f"orders in {path} must be `seed` or a list of whole numbers, not {brief(given)}.") from fault


def _name(name: Any, path: Path) -> str:
    """A suite's page is called after it, and stands in the folder of its runs."""
    if isinstance(name, str) and re.fullmatch(r"\w[^/\\\0\n]{0,99}", name):
        return name
    raise UserError(f"name in {path} must begin with a letter or digit and hold no / and no \\, not {brief(name)}.")


def _pairs(orders: Any, seeds: list[int]) -> list[tuple[int | None, int]]:
    """(order, seed) of every run; no order where the suite gives none."""
    if orders == "seed":
        return [(seed, seed) for seed in seeds]
    return [(order, seed) for order in (orders or [None]) for seed in seeds]


def _ordered(scenario: Any, order: int | None, path: Path) -> Any:
    """The scenario with its class order; in a wrapper, that of the scenario within."""
    if order is None:
        return scenario
    whole = dict(scenario) if isinstance(scenario, Mapping) else {"class_path": scenario}
    if not isinstance(given := whole.get("init_args") or {}, Mapping):
        return scenario  # refused as every other run of it
    args = dict(given)
    if "of" in args:
        args["of"] = _ordered(args["of"], order, path)
    elif "order" in args:
        raise UserError(f"{_short(scenario)} in {path} has an order of its own beside `orders`; leave one of them out.")
    else:
        args["order"] = order
    return {**whole, "init_args": args}


def _short(part: Any) -> str:
    """What a line of progress calls a scenario or method: its name and, where the suite gives any, its settings."""
    if not isinstance(part, Mapping):
        return str(part).rpartition(":")[2].rpartition(".")[2]
    given = part.get("init_args")
    settings = ", ".join(f"{k}={_short(v)}" if isinstance(v, Mapping) else f"{k}={v}" for k, v in (
        given.items() if isinstance(given, Mapping) else ()))
    return _short(part.get("class_path", "?")) + (f"({settings})" if settings else "")
