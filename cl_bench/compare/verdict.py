"""What a table shows, in sentences: who is best and how surely, what it cost, what ails, and how many runs would decide."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..numbers.metrics import Metric, all_metrics
from ..numbers.statistics import pair, seeds_to_decide
from ..numbers.statistics.images import ImageTest
from ..records.results import Run
from ..registry import GROUPS, entries
from .comparison import Group, Row
from .images import BY_IMAGE, evidence

__all__ = ["Sentence", "command_of", "image_words", "verdict"]

MOST_SEEDS = 30  # beyond, the difference is too small for seeds to be worth it


@dataclass(frozen=True)
class Sentence:
    """One sentence of a verdict; ``command``: what to paste where it says what to run."""

    text: str
    command: str = ""


def verdict(group: Group) -> list[Sentence]:
    """The verdict of one table; empty where fewer than two competitors were measured."""
    known = all_metrics()
    leading = [group.primary, *(n for n in ("forgetting",) if n in group.metrics and n != group.primary)]
    out: list[Sentence] = []
    to_decide: list[tuple[Row, Row, str]] = []
    for name in leading:
        rows = sorted((r for r in group.rows if r.cells[name].n and not r.reference),
                      key=lambda r: r.cells[name].mean * (-1 if known[name].higher else 1))
        if len(rows) < 2:
            continue
        best, second = rows[0], rows[1]
        text, decided = _best(known[name], best, second, name)
        out.append(Sentence(text + (_price(group, best, rows) if known[name].family == "forgetting" else "")))
        if not decided:
            to_decide.append((best, second, name))
    if not out:
        return []
    ailing = [row for row in group.rows if row.flags]
    if ailing:
        told = "; ".join(f"{row.method} ({', '.join(f.badge for f in row.flags)})" for row in ailing)
        out.append(Sentence(f"Trouble: {told}."))
    for best, second, name in to_decide[:1]:
        out += _more(best, second, known[name])
    return out


def _best(metric: Metric, best: Row, second: Row, name: str) -> tuple[str, bool]:
    """The sentence on the best two, and whether new runs would keep their order beyond doubt."""
    word = "Highest" if metric.higher else "Lowest"
    text = f"{word} {metric.label}: {best.method}, {metric.text(best.cells[name].mean)} {metric.unit}"
    found = evidence(best, second, name) if name in BY_IMAGE else None
    unit = "points" if metric.unit == "%" else metric.unit
    x, y = pair(best.values[name], second.values[name])
    gap = float((x - y).mean()) if x.size else best.cells[name].mean - second.cells[name].mean
    text += f"; {abs(gap):.{metric.decimals}f} {unit} {'more' if gap > 0 else 'less'} than {second.method}"
    if found is not None:
        text += f", {image_words(found.test, bool(metric.higher))}."
        low, high = found.test.new
        return text, math.isfinite(low) and (low > 0 or high < 0)
    place = second.standings.get(name)
    if place is not None and place.word == "undecided":
        return text + f", which {x.size} pair{'s' if x.size != 1 else ''} of runs cannot tell from chance.", False
    if place is not None and place.p is not None:
        return text + f" (paired sign-flip over runs, p = {place.p:.3g} after Holm).", place.p <= 0.05
    return text + ".", False


def image_words(test: ImageTest, higher: bool) -> str:
    """``95 % [2.1, 6.0] given these runs and [-1.0, 9.0] over new ones, P(better) = 0.98``: sizes as in the sentence before."""
    sign, digits = (1 if test.mean >= 0 else -1), (1 if abs(test.mean) >= 1 else 2)

    def ends(interval: tuple[float, float]) -> str:
        low, high = sorted(sign * v for v in interval)
        return f"[{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")

    better = test.above if higher else 1 - test.above
    text = f"95 % {ends(test.given)} given these runs"
    if math.isfinite(test.new[0]):
        text += f" and {ends(test.new)} over new ones, P(better) = {min(max(better, 0.0), 1.0):.2f}"
    return text + f" ({test.images} images × {test.runs} run{'s' if test.runs != 1 else ''})"


def _price(group: Group, best: Row, rows: list[Row]) -> str:
    """What the least forgetting cost in plasticity, against the competitor that has most of it."""
    plastic = max((r for r in rows if r.cells["plasticity"].n), key=lambda r: r.cells["plasticity"].mean, default=None)
    if plastic is None or plastic is best or not best.cells["plasticity"].n:
        return " No competitor learned new test sets better." if plastic is best else ""
    lost = plastic.cells["plasticity"].mean - best.cells["plasticity"].mean
    return f" It learns new test sets {lost:.1f} points worse than {plastic.method}, which forgets " \
           f"{plastic.cells['forgetting'].mean:.1f}."


def _more(best: Row, second: Row, metric: Metric) -> list[Sentence]:
    """How many more seeds would tell the two apart, from the spread of their differences, with the command."""
    x, y = pair(best.values[metric.name], second.values[metric.name])
    needed = seeds_to_decide(x - y)
    if needed is None:
        return []
    if needed > MOST_SEEDS:
        return [Sentence(f"{best.method} and {second.method} differ too little in {metric.label} for seeds to tell: more than "
                         f"{MOST_SEEDS} of each would be needed.")]
    more = max(1, needed - x.size)
    used = {run.seed for row in (best, second) for run in row.runs.values()}
    fresh = [seed for seed in range(max(used) + 1, max(used) + 1 + more)]
    lines = [f"for seed in {' '.join(map(str, fresh))}; do"]
    for row in (best, second):
        lines.append(f"  {command_of(next(iter(row.runs.values())), seed='$seed')}")
    return [Sentence(f"Run {more} more seed{'s' if more != 1 else ''} of {best.method} and {second.method} to decide between "
                     f"them in {metric.label}:", "\n".join([*lines, "done"]))]


# -- the command that repeats a run -----------------------------------------------------------------------------------


def command_of(run: Run, seed: str | None = None) -> str:
    """The command line that repeats a run, every argument given; ``seed``: another one, put in as it is."""
    config, words = run.record.get("config") or {}, ["cl-bench", "run"]
    for root in ("scenario", "method", "backbone"):
        part = config.get(root)
        if isinstance(part, Mapping):
            words += _part(f"--{root}", part, root, str((run.record.get(root) or {}).get("name", "")))
        elif part is not None:
            words += [f"--{root}", str(part)]
    for key in ("label", "checkpoint", "checkpoint_every"):
        if config.get(key) not in (None, {"checkpoint": True, "checkpoint_every": 10.0}.get(key)):
            words += [f"--{key}", _value(config[key])]
    for section, prefix in (("compute", "--"), ("source", "--source.")):
        for key, value in sorted((config.get(section) or {}).items()):
            if value is not None:
                words += [prefix + key, _value(value)]
    return shlex.join(words) + f" --seed {run.seed if seed is None else seed}"


def _part(option: str, part: Mapping[str, Any], root: str, name: str) -> list[str]:
    module, _, attribute = str(part.get("class_path", "")).rpartition(".")
    target = f"{module}:{attribute}"
    known = next((e.name for e in entries(GROUPS[f"{root}s"]).values() if e.target == target), None)
    words = [option, known or (name if module.startswith("cl_bench_user_") else target)]
    for key, value in (part.get("init_args") or {}).items():
        if isinstance(value, Mapping) and "class_path" in value:
            words += _part(f"{option}.{key}", value, root, "")
        elif value is not None:
            words += [f"{option}.{key}", _value(value)]
    return words


def _value(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)
