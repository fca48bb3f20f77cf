"""Progress bars in the terminal; plain lines where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    """One bar over the runs of a suite."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(f"suite {name}", total)
        self.count, self.total = 0, total

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind in ("finish", "skip", "error"):
            self.count += 1
            self.bar.update(self.task, completed=self.count, note=str(facts["label"]))
            if kind == "error":
                self.console.print(f"[red]failed[/red] {facts['label']}: {facts.get('message')}", highlight=False)
            elif not self.console.is_terminal or kind == "skip":
                why = f": {facts['message']}" if facts.get("message") else ""
                self.console.print(f"[{self.count}/{self.total}] {facts['label']}{why}", highlight=False, markup=False)
        elif kind == "resume":
            self.console.print(f"{facts['label']}: taken up again", highlight=False, markup=False)
