"""Progress bars in the terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .estimate import Expected, duration

__all__ = ["RunProgress", "SuiteProgress"]


class _Bar:
    def __init__(self, title: str, total: int | None) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"), console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, note="")

    def __enter__(self) -> Any:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class RunProgress(_Bar):
    """One bar over the steps of one run."""

    def __init__(self) -> None:
        super().__init__("starting", None)

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "start":
            self.bar.update(self.task, description=f"{facts['scenario']} · {facts['method']}", total=facts["steps"])
        elif kind in ("experience", "domain"):
            value = facts.get("accuracy") if kind == "experience" else facts.get("error")
            word = "accuracy" if kind == "experience" else "error"
            note = f"{facts['name']}: {word} {value:.1f} %" if value is not None else str(facts["name"])
            self.bar.update(self.task, completed=int(facts["step"]) + 1, note=note)
        elif kind == "warning":
            self.console.print(f"[yellow]warning[/yellow] {facts['message']}", highlight=False)


class SuiteProgress(_Bar):
    """One bar over the runs of a suite, and how many were skipped, failed, run and are left."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(f"suite {name}" if name else "runs", total)
        self.total = total
        self.counts = dict.fromkeys(("finish", "skip", "error"), 0)
        self.running = 0
        self.began: float | None = None

    def expected(self, plan: Expected) -> None:
        """The expansion and what it takes."""
        for line in plan.lines():
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind in self.counts:
            self.counts[kind] += 1
            self.running -= kind != "skip"
            self.bar.update(self.task, completed=sum(self.counts.values()), note=f"{facts['label']} · {self.standing()}")
            if kind == "error":
                self.console.print(f"[red]failed[/red] {escape(str(facts['label']))}: {escape(str(facts.get('message')))}",
                                   highlight=False, soft_wrap=True)
            elif not self.console.is_terminal or kind == "skip":
                why = f": {facts['message']}" if facts.get("message") else f" ({self.standing()})"
                self.console.print(f"[{sum(self.counts.values())}/{self.total}] {facts['label']}{why}", highlight=False,
                                   markup=False, soft_wrap=True)
        elif kind in ("start", "resume"):
            self.running += 1
            self.began = time.monotonic() if self.began is None else self.began
            if kind == "resume":
                self.console.print(f"{facts['label']}: taken up again", highlight=False, markup=False, soft_wrap=True)

    def standing(self) -> str:
        """``2 running, 7 left, 1 failed, 3 skipped, ETA 2 min``; the time by how long the runs of this call took."""
        left = self.total - sum(self.counts.values()) - self.running
        words = [f"{n} {word}" for n, word in ((self.running, "running"), (left, "left"), (self.counts["error"], "failed"),
                                               (self.counts["skip"], "skipped")) if n]
        ended = self.counts["finish"] + self.counts["error"]
        if ended and self.began is not None and left + self.running:
            words.append(f"ETA {duration((time.monotonic() - self.began) / ended * (left + self.running))}")
        return ", ".join(words) or "none left"
