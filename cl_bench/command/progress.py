"""Progress: bars in a terminal, one plain line per step or run where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .estimate import Expected, duration

__all__ = ["RunProgress", "SuiteProgress", "result_line"]


def _left(elapsed: float, done: int, of: int | None) -> str:
    """``, about 2 min left``, from the mean of what was done here; nothing where that says nothing."""
    return f", about {duration(elapsed / done * (of - done))} left" if of and 0 < done < of else ""


def result_line(run: Any) -> str:
    """What a finished run came to: ``average accuracy 56.10 %, forgetting 35.42 points, 14 s``."""
    from ..numbers.metrics import all_metrics

    known = all_metrics()
    ranking = [m for m in known.values() if run.kind in m.shown and (m.ranks or m.name == "forgetting")]
    values = [(m, m.read(run.metrics, run.record)) for m in ranking]
    said = [f"{m.label} {m.text(v)} {m.unit}" for m, v in values if v == v][:2]
    seconds = ((run.record.get("cost") or {}).get("seconds") or {}).get("total")
    return ", ".join([*said, *([duration(seconds)] if isinstance(seconds, (int, float)) else [])])


class _Bar:
    def __init__(self, title: str, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"), console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, note="")
        self.clock, self.began = clock, clock()

    def say(self, text: str) -> None:
        """A line above the bar, or in the log; never folded, so that it can be searched."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Any:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class RunProgress(_Bar):
    """Over the steps of one run: a bar, or a line per experience and domain."""

    def __init__(self) -> None:
        super().__init__("starting", None)
        self.total: int | None = None
        self.first: int | None = None

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "start":
            self.total, self.began = int(facts["steps"]), self.clock()
            self.bar.update(self.task, description=f"{facts['scenario']} · {facts['method']}", total=self.total)
            if not self.console.is_terminal:
                self.say(f"{facts['scenario']} {facts['method']}: {self.total} steps")
        elif kind in ("experience", "domain"):
            value = facts.get("accuracy") if kind == "experience" else facts.get("error")
            word = "accuracy" if kind == "experience" else "error"
            note = f"{facts['name']}: {word} {value:.1f} %" if value is not None else str(facts["name"])
            step = int(facts["step"]) + 1
            self.bar.update(self.task, completed=step, note=note)
            if not self.console.is_terminal:
                self.first = step - 1 if self.first is None else self.first  # a resumed run begins in the middle
                took = self.clock() - self.began
                rest = _left(took, step - self.first, self.total and self.total - self.first)
                self.say(f"[{step}/{self.total or '?'}] {note}, {duration(took)}{rest}")
        elif kind == "warning":
            self.console.print(f"[yellow]warning[/yellow] {facts['message']}", highlight=False)


class SuiteProgress(_Bar):
    """Over the runs of a suite: a bar with how many were skipped, failed and are left, and the result of each that ends."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(f"suite {name}" if name else "runs", total)
        self.total = total
        self.counts = dict.fromkeys(("finish", "skip", "error"), 0)
        self.running = 0
        self.since: float | None = None

    def expected(self, plan: Expected) -> None:
        """The expansion and what it takes."""
        for line in plan.lines():
            self.say(line)

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind in self.counts:
            self.counts[kind] += 1
            self.running -= kind != "skip"
            self.bar.update(self.task, completed=sum(self.counts.values()), note=f"{facts['label']} · {self.standing()}")
            if kind == "error":
                self.console.print(f"[red]failed[/red] {escape(str(facts['label']))}: {escape(str(facts.get('message')))}",
                                   highlight=False, soft_wrap=True)
                return
            said = [str(facts["message"])] if facts.get("message") else self._result(facts)
            more = "" if facts.get("message") or self.console.is_terminal else f" ({self.standing()})"
            self.say(f"[{sum(self.counts.values())}/{self.total}] {': '.join([str(facts['label']), *said])}{more}")
        elif kind in ("start", "resume"):
            self.running += 1
            self.since = self.clock() if self.since is None else self.since
            if kind == "resume":
                self.say(f"{facts['label']}: taken up again")

    @staticmethod
    def _result(facts: Mapping[str, Any]) -> list[str]:
        """What a finished run came to, read from its record."""
        if not facts.get("folder"):
            return []
        from ..errors import UserError
        from ..records.results import load

        try:
            return [result_line(load(facts["folder"]))]
        except UserError as fault:  # the table at the end says it too
            return [str(fault)]

    def standing(self) -> str:
        """``2 running, 7 left, 1 failed, 3 skipped, ETA 2 min``; the time by how long the runs of this call took."""
        left = self.total - sum(self.counts.values()) - self.running
        words = [f"{n} {word}" for n, word in ((self.running, "running"), (left, "left"), (self.counts["error"], "failed"),
                                               (self.counts["skip"], "skipped")) if n]
        ended = self.counts["finish"] + self.counts["error"]
        if ended and self.since is not None and left + self.running:
            words.append(f"ETA {duration((self.clock() - self.since) / ended * (left + self.running))}")
        return ", ".join(words) or "none left"
