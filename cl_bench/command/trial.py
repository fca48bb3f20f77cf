"""`cl-bench suite NAME --check` and `--dry-run`: a suite looked at, and a suite rehearsed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .suites import Suite

__all__ = ["trial"]


def trial(suite: Suite, file: Path, overrides: Sequence[str], check_only: bool) -> int:
    """Check what a suite needs, or run it on synthetic data; prints a line for each thing and returns the exit code."""
    if check_only:
        from .published import check, facts_of

        facts = facts_of(file)
        print(f"{suite.name}: {suite.about}")
        if facts.get("source"):
            print(f"numbers to reach: {facts['source']}")
        whole = True
        for need in check(suite.jobs, facts, overrides):
            whole = whole and need.there
            print(f"[{'ok' if need.there else 'missing'}] {need.kind}: {need.said}", flush=True)
        return 0 if whole else 1

    from .dry_run import dry_run

    def say(label: str, error: str | None) -> None:
        print(f"[{'ok' if error is None else 'failed'}] {label}" + (f": {error}" if error else ""), flush=True)

    failures = dry_run(suite.jobs, overrides, say)
    print(f"{suite.name}: dry run of {len(suite.jobs)} runs, {len(failures)} failed; its numbers mean nothing")
    return 1 if failures else 0
