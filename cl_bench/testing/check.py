"""``cl-bench check``: look the targets up, ask each its questions, print what was found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import UserError
from ..registry import GROUPS, entries, find
from .report import Report

__all__ = ["check_targets"]


def check_targets(targets: Sequence[str], *, everything: bool = False) -> bool:
    """Check and print; True where nothing failed. Names are looked up among methods, then scenarios."""
    from rich.console import Console
    from rich.markup import escape

    console, good = Console(), True
    todo = [_lookup(t) for t in targets]
    if everything:
        for group in ("methods", "scenarios"):
            todo += [(group, name, entry.load) for name, entry in entries(GROUPS[group]).items()]
    for group, name, load in todo:
        started = time.perf_counter()
        report = _check(group, name, load())
        report.seconds = time.perf_counter() - started
        good &= report.ok
        _show(console, report, escape)
    loud = _imports_quietly([t for t in targets if ":" in t]) if targets else _imports_quietly([], everything)
    for sentence in loud:
        console.print(f"[red]failed[/red] {escape(sentence)}", highlight=False)
    return good and not loud


def _lookup(target: str) -> tuple[str, str, Callable[[], Any]]:
    if ":" in target:
        cls = find(GROUPS["methods"], target)
        from ..scenario import Scenario

        group = "scenarios" if isinstance(cls, type) and issubclass(cls, Scenario) else "methods"
        return group, target, lambda: cls
    for group in ("methods", "scenarios"):
        if target in entries(GROUPS[group]):
            return group, target, entries(GROUPS[group])[target].load
    find(GROUPS["methods"], target)  # says what was meant
    raise UserError(f"nothing is called {target!r}.")


def _check(group: str, name: str, target: Any) -> Report:
    from .method_checks import check_method
    from .scenario_checks import check_scenario

    return check_method(target, name=name) if group == "methods" else check_scenario(target, name=name)


def _show(console: Any, report: Report, escape: Callable[[str], str]) -> None:
    colour = "green" if report.ok else "red"
    passed = sum(f.state == "passed" for f in report.findings)
    skipped = all(f.state == "skipped" for f in report.findings)
    head = "skipped" if skipped else "passed" if report.ok else "failed"
    console.print(f"[{colour}]{head}[/{colour}] {escape(report.name)}  "
                  f"[dim]{passed} checks, {report.seconds:.1f} s[/dim]", highlight=False)
    for f in report.findings:
        if f.state != "passed":
            console.print(f"   {f.state:7} {escape(f.check)}: {escape(f.note)}", highlight=False, soft_wrap=True)
        elif f.note:
            console.print(f"   [dim]{escape(f.check)}: {escape(f.note)}[/dim]", highlight=False, soft_wrap=True)


_PROBE = """
import json, logging, os, random, sys
import numpy, torch
import cl_bench.testing, cl_bench.adaptation  # what cl-bench itself brings along is not the target's doing
from cl_bench.registry import GROUPS, entries, load_path
targets, everything = json.loads(sys.argv[1])
if everything:
    targets = [e.target for g in ("methods", "scenarios") for e in entries(GROUPS[g]).values()]
def state():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), os.getcwd(),
            torch.is_grad_enabled(), list(logging.getLogger().handlers), logging.getLogger().level,
            torch.get_default_dtype(), torch.get_num_threads())
names = ("Python's random state", "NumPy's random state", "torch's random state", "the working directory", "grad mode",
         "the root logger's handlers", "the root logger's level", "the default dtype", "the thread count")
before, loud = state(), []
for target in targets:
    load_path(target)
    after = state()
    loud += [f"importing {target} changes {n}" for n, a, b in zip(names, before, after) if a != b]
    before = after
print(json.dumps(loud))
"""


def _imports_quietly(targets: Iterable[str], everything: bool = False) -> list[str]:
    """What importing the targets changes in a fresh process; [] where nothing."""
    names = list(targets)
    if not names and not everything:
        return []
    ran = subprocess.run([sys.executable, "-c", _PROBE, json.dumps([names, everything])], capture_output=True, text=True)
    if ran.returncode:
        return [f"importing in a fresh process failed: {ran.stderr.strip().splitlines()[-1]}"]
    return list(json.loads(ran.stdout.strip().splitlines()[-1]))
