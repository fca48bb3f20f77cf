"""The promises of a scenario: lazy, re-iterable, deterministic, honest about what it gives."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.tensor import TensorData, labels_of
from ..errors import UserError
from ..scenario import Scenario
from ..types import Experience, TestSet
from .report import WORDS, Finding, Report
from .world import opened

__all__ = ["check_scenario"]

_ANSWERS = ("seen", "task", "all")
_RESETS = ("never", "domain", "batch")


def check_scenario(scenario: type[Scenario] | Scenario | Callable[[], Scenario], *, name: str = "") -> Report:
    """Ask every promise of the contract; a class is built from its defaults, twice.

    A scenario whose files the user has not is reported as skipped, with its own sentence.
    """
    label = name or getattr(scenario, "__name__", type(scenario).__name__)
    report = Report(label)
    exempt = dict(getattr(scenario, "exempt", {}))
    missing = _undefaulted(scenario)
    if missing:
        report.findings.append(Finding("builds from its defaults", "skipped", f"needs {', '.join(missing)}"))
        return report
    make = (lambda: scenario) if isinstance(scenario, Scenario) else scenario
    built: list[Scenario] = []
    lacks: list[str] = []

    def lazy() -> str | None:
        before = _generators()
        try:
            files = opened(lambda: built.append(make()))  # type: ignore[arg-type, func-returns-value]
        except UserError as fault:
            lacks.append(str(fault))
            return None
        if files:
            return f"constructing reads {files[0]}"
        return None if before == _generators() else "constructing draws random numbers"

    report.run("constructing reads no data and draws no random number", lazy, exempt)
    if lacks:
        report.findings[:] = [Finding("has its data", "skipped", lacks[0])]
    if not built:
        return report
    s = built[0]
    before = _generators()
    try:
        parts = _parts(s)
    except UserError as fault:
        report.findings.append(Finding("has its data", "skipped", str(fault)))
        return report
    except Exception as fault:
        report.findings.append(Finding("can be walked", "failed", f"{type(fault).__name__}: {fault}"))
        return report
    report.run("gives words that a method can need", lambda: _words(s), exempt)
    report.run("has something to learn or to answer", lambda: None if parts else "no experience and no test set", exempt)
    report.run("names are unique", lambda: _unique(s), exempt)
    report.run("labels lie in the space of their part", lambda: _labels(parts), exempt)
    digest = _digest(parts)
    report.run("walking it draws from no global generator",
               lambda: None if before == _generators() else "a global generator moved", exempt)
    report.run("a second walk gives the same", lambda: None if _digest(_parts(s)) == digest else "data differ", exempt)
    if not isinstance(scenario, Scenario):
        report.run("a second object gives the same",
                   lambda: None if _digest(_parts(make())) == digest else "data differ", exempt)  # type: ignore[operator]
    report.run("train and test are disjoint", lambda: _disjoint(s), exempt)
    report.run("protocol is plain and constant", lambda: _protocol(s), exempt)
    return report


def _undefaulted(scenario: Any) -> list[str]:
    if isinstance(scenario, Scenario):
        return []
    return [n for n, p in inspect.signature(scenario).parameters.items()
            if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def _parts(s: Scenario) -> list[Experience | TestSet]:
    source = s.source
    return [*s.experiences(), *s.test_sets(), *s.stream(), *([source] if source is not None else [])]


def _words(s: Scenario) -> str | None:
    strange = sorted(set(s.gives) - WORDS)
    if strange:
        return f"{', '.join(strange)}: known are {', '.join(sorted(WORDS))}"
    if s.answers not in _ANSWERS or s.reset not in _RESETS:
        return f"answers is {s.answers!r}, reset {s.reset!r}"
    if "source" in s.gives and s.source is None:
        return "says it gives its source but has none"
    return None if s.test_batch_size > 0 else "test_batch_size must be positive"


def _unique(s: Scenario) -> str | None:
    for what, names in (("experiences", [e.name for e in s.experiences()]), ("test sets", [t.name for t in s.test_sets()]),
                        ("stream", [t.name for t in s.stream()])):
        if len(set(names)) != len(names):
            return f"{what} repeat a name"
    return None


def _labels(parts: list[Experience | TestSet]) -> str | None:
    for part in parts:
        outside = set(labels_of(part.data).unique().tolist()) - set(part.space.ids)
        if outside:
            return f"{part.name} holds labels {sorted(outside)[:5]} outside its space"
    return None


def _images(data: Dataset, most: int = 500) -> list[bytes]:
    n = len(data)  # type: ignore[arg-type]
    rows = range(n) if n <= most else np.linspace(0, n - 1, most).astype(int).tolist()
    if isinstance(data, TensorData):
        return [hashlib.sha1(data.x[i].contiguous().numpy().tobytes()).digest() for i in rows]
    return [hashlib.sha1(np.ascontiguousarray(torch.as_tensor(data[i][0]).numpy()).tobytes()).digest() for i in rows]


def _digest(parts: list[Experience | TestSet]) -> str:
    h = hashlib.sha256()
    for part in parts:
        h.update(repr((part.name, part.space.ids, len(part.data))).encode())  # type: ignore[arg-type]
        h.update(labels_of(part.data).numpy().tobytes())
        for image in _images(part.data, 50):
            h.update(image)
    return h.hexdigest()


def _disjoint(s: Scenario) -> str | None:
    source = s.source
    seen = {i for e in [*s.experiences(), *([source] if source is not None else [])] for i in _images(e.data)}
    shared = sum(i in seen for t in s.test_sets() for i in _images(t.data))
    return f"{shared} test images are also training images" if shared else None


def _protocol(s: Scenario) -> str | None:
    try:
        one, two = (json.dumps(dict(s.protocol()), sort_keys=True) for _ in range(2))
    except TypeError as fault:
        return f"protocol() is not plain data: {fault}"
    return None if one == two else "protocol() changes from call to call"


def _generators() -> tuple[Any, ...]:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
