"""What speaks against taking a run's numbers at their word: said in every table and view that they enter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..numbers.chance import learned_anything
from ..numbers.metrics import dig
from ..records.results import Run
from .memo import kept

__all__ = ["Flag", "flags_of", "mixed_hosts", "overlapping", "run_flags", "unlearned"]

WORDS = {  # kind -> (badge, what it says of runs)
    "unlearned": ("nothing learned", "answered by chance right after learning: there is nothing that they could forget"),
    "nonfinite": ("not finite", "had losses or answers that were not finite"),
    "collapsed": ("collapsed", "gave one class 95 % of the answers of a domain"),
    "missed": ("too slow", "missed images that came too fast"),
    "mixed code": ("mixed code", "were made by different code of the method"),
}


@dataclass(frozen=True)
class Flag:
    """One thing that ails ``n`` of ``of`` finished runs of a method."""

    kind: str
    n: int
    of: int

    @property
    def badge(self) -> str:
        """Two words for a table: ``2 collapsed``."""
        return WORDS[self.kind][0] if self.n == self.of else f"{self.n} of {self.of} {WORDS[self.kind][0]}"

    @property
    def sentence(self) -> str:
        """What follows a method's name: ``2 of 3 runs had losses ...``."""
        return f"{self.n} of {self.of} run{'s' if self.of != 1 else ''} {WORDS[self.kind][1]}"


def unlearned(run: Run) -> bool:
    """Whether a run of learning was no better than chance right after learning."""
    return kept([run], "unlearned", lambda: run.kind != "stream" and not learned_anything(run.matrix.so_far(), run.record))


def run_flags(run: Run) -> list[str]:
    """The kinds of trouble of one run."""
    counts = [dig(run.record, "cost", "nonfinite_losses"), dig(run.record, "cost", "nonfinite"), run.metrics.get("nonfinite")]
    # Records that kept no count of losses said it in a sentence.
    told = any("not finite" in str(sentence) for sentence in run.record.get("warnings") or ())
    found = {"unlearned": unlearned(run), "nonfinite": told or any(counts),
             "collapsed": bool(run.metrics.get("collapsed_domains")), "missed": bool(run.metrics.get("missed"))}
    return [kind for kind, there in found.items() if there]


def flags_of(runs: Sequence[Run]) -> list[Flag]:
    """What ails a method's finished runs, the gravest first."""
    kinds = [run_flags(run) for run in runs]
    found = [Flag(kind, sum(kind in of for of in kinds), len(runs)) for kind in WORDS if any(kind in of for of in kinds)]
    digests = {run.record["method"].get("source_digest") for run in runs}
    return found + ([Flag("mixed code", len(runs), len(runs))] if len(digests) > 1 else [])


def mixed_hosts(runs: Iterable[Run]) -> list[str]:
    """The kinds of machine that runs were made on, where there is more than one: times of different ones say nothing."""
    kinds = set()
    for run in runs:
        e = run.record.get("environment") or {}
        parts = [str(e[key]) for key in ("host", "processor", "platform", "device", "card") if e.get(key)]
        kinds.add(", ".join([*parts, f"{e.get('threads')} threads"]))
    return sorted(kinds) if len(kinds) > 1 else []


def overlapping(runs: Iterable[Run]) -> int:
    """How many of the runs shared their time with another of them by more than a second: their wall times are contended."""
    spans = []
    for run in runs:
        try:
            start, end = (datetime.fromisoformat(str(run.record.get(key))).timestamp() for key in ("started", "finished"))
        except ValueError:
            continue
        spans.append((start, end))
    spans.sort()
    shared = set()
    latest = -1
    for k, (start, end) in enumerate(spans):
        if latest >= 0 and start + 1 < spans[latest][1]:
            shared |= {k, latest}
        if latest < 0 or end > spans[latest][1]:
            latest = k
    return len(shared)
