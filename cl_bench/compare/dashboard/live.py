"""The page's data while runs go on: built once per change for all readers, and sent as what is new since a version.

Records are read again only where their files changed. What a table costs to make is dominated by its tests, which are kept
by their values; the whole is built at most so often that it takes a twentieth of a processor.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...records.results import Run, RunList, load, load_all, run_folders, uncollected
from ..comparison import Comparison, compare
from .page import data_json
from .payload import payload

__all__ = ["Live"]

SHARE = 20  # of the time between two builds that one build may take: a twentieth
LISTS = ("groups", "runs")


@dataclass
class _Built:
    """One version: its parts as JSON, and since which version each is what it is."""

    version: int
    comparison: Comparison
    order: dict[str, list[str]]
    parts: dict[str, str]
    since: dict[str, int] = field(default_factory=dict)


class Live:
    """The data of a folder of runs; ``version()`` says which version its files are at."""

    def __init__(self, folder: Path, title: str, version: Callable[[], int]) -> None:
        self.folder, self.title, self.version = folder, title, version
        self.took = 0.0
        self._lock = threading.Lock()
        self._runs: dict[Path, tuple[tuple[int, ...], Run]] = {}
        self._built: _Built | None = None
        self._texts: dict[str, tuple[Any, str]] = {}

    @property
    def pause(self) -> float:
        """Seconds that should pass before the next build."""
        return SHARE * self.took

    def comparison(self) -> Comparison:
        """The tables of what lies in the folder now."""
        return self._now().comparison

    def whole(self) -> dict[str, Any]:
        """All data, as a page holds them."""
        return json.loads(self.text())  # type: ignore[no-any-return]

    def text(self) -> str:
        """JSON of :meth:`whole`, put together from that of its parts."""
        built = self._now()
        lists = [f'"{name}":[{",".join(built.parts[key] for key in built.order[name])}]' for name in LISTS]
        shared = ",".join(f"{json.dumps(key.removeprefix('shared '))}:{built.parts[key]}" for key in built.order["shared"])
        rest = [f"{json.dumps(key)}:{text}" for key, text in built.parts.items() if " " not in key]
        return f'{{{",".join([*rest, *lists])},"shared":{{{shared}}},"at":{built.version}}}'

    def changes(self, since: int) -> str:
        """JSON of the parts that are new since a version, and the order of all; everything for a version that is not known."""
        built = self._now()
        old = since if 0 <= since <= built.version else -1
        new = ",".join(f"{json.dumps(key)}:{text}" for key, text in built.parts.items() if built.since[key] > old)
        return f'{{"at":{built.version},"order":{data_json(built.order)},"parts":{{{new}}}}}'

    def _now(self) -> _Built:
        with self._lock:
            version = self.version()
            if self._built is None or self._built.version != version:
                started = time.process_time()
                if self._built is None:
                    with uncollected():
                        self._built = self._build(version)
                    gc.freeze()  # it stays: the search for garbage need not walk through it at every change
                else:
                    self._built = self._build(version)
                self.took = time.process_time() - started
            return self._built

    def _build(self, version: int) -> _Built:
        runs = self._read()
        made = compare(runs, by="fingerprint") if runs else Comparison([], runs.problems)
        data = payload(made, self.title, self.folder)
        order = {"groups": [f"group {g['title']}#{g['fingerprint']}" for g in data["groups"]],
                 "runs": [f"run {r['id']}" for r in data["runs"]], "shared": [f"shared {k}" for k in data["shared"]]}
        values = {key: value for name in LISTS for key, value in zip(order[name], data[name], strict=True)}
        values |= {f"shared {key}": value for key, value in data["shared"].items()}
        values |= {name: value for name, value in data.items() if name not in (*LISTS, "shared")}
        # What is the same object as in the version before is the same text.
        known = self._texts
        self._texts = {key: (value, known[key][1] if key in known and known[key][0] is value else data_json(value))
                       for key, value in values.items()}
        parts = {key: text for key, (_, text) in self._texts.items()}
        before = self._built
        since = {key: before.since[key] if before is not None and before.parts.get(key) == text else version
                 for key, text in parts.items()}
        return _Built(version, made, order, parts, since)

    def _read(self) -> RunList:
        """Every run of the folder; those whose files are what they were are not read again."""
        kept: dict[Path, tuple[tuple[int, ...], Run]] = {}
        listed = {folder: _signature(folder) for folder in map(Path, run_folders(str(self.folder)))}
        fresh = {folder for folder, signature in listed.items() if self._runs.get(folder, ((), None))[0] != signature}
        if len(fresh) > len(listed) // 2 or len({folder.name for folder in listed}) < len(listed):
            found = load_all(self.folder)
            self._runs = {run.folder: (_signature(run.folder), run) for run in found}
            return found
        problems: list[str] = []
        for folder, signature in listed.items():
            if folder not in fresh:
                kept[folder] = self._runs[folder]
                continue
            try:
                kept[folder] = signature, load(folder)
            except UserError as error:
                problems.append(str(error))
        self._runs = kept
        return RunList(sorted((run for _, run in kept.values()), key=lambda run: run.id), problems)


def _signature(folder: Path) -> tuple[int, ...]:
    out: list[int] = []
    for name in ("run.json", "DONE", "events.jsonl", "arrays.npz"):
        try:
            stat = os.stat(f"{folder}/{name}")
            out += [stat.st_mtime_ns, stat.st_size]
        except OSError:
            out += [0, 0]
    return tuple(out)
