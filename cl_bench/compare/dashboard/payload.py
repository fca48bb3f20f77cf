"""Everything the page shows as one JSON object: the page is also the data.

Numbers that stand in a table are formatted here, by the same code as the exports; curves are means with bands; what
many runs share (config parts, protocol, environment) is stored once and referred to by number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ... import __version__
from ...label_free.scorers import LABELS
from ...numbers.metrics import COST, all_metrics
from ...numbers.statistics import BOOTSTRAP_FROM, bca_interval, cliques, compare_pair, friedman, holm, pair
from ...records.results import Run, utc_now
from ..anatomy import anatomy
from ..comparison import Comparison, Group, Key, value_of
from ..images import BY_IMAGE, group_evidence
from ..memo import kept
from ..selection import choices
from ..style import DARK, LIGHT, slots
from ..tables import cell_text, to_csv, to_latex, to_markdown
from ..verdict import verdict
from .curves import learn_curves, rounded, stream_curves

__all__ = ["payload"]

POINTS = 90  # of a training curve
TAIL = 12  # lines of the log


def _num(value: float, digits: int = 4) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _row(group: Group, number: int, methods: dict[str, int]) -> dict[str, Any]:
    row = group.rows[number]
    cells = {}
    for name in dict.fromkeys([*group.metrics, *group.variants, *group.costs]):
        text = cell_text(row, name).split(" ± ")
        c = row.cells[name]
        cells[name] = [text[0], text[1] if len(text) > 1 else "", _num(c.mean), _num(c.low), _num(c.high)]
    return {"method": methods[row.method], "n": row.n, "failed": row.failed, "unfinished": row.unfinished, "cells": cells,
            "standings": {name: [s.word, None if s.p is None else _num(s.p)] for name, s in row.standings.items()},
            "flags": [[flag.badge, flag.sentence] for flag in row.flags]}


def _pairs(group: Group, methods: dict[str, int]) -> dict[str, Any]:
    """Per metric the paired tests of all methods: a - b above the diagonal only (the page mirrors them)."""
    out: dict[str, Any] = {}
    for name in [*group.metrics, *group.variants]:
        rows = [row for row in group.rows if row.cells[name].n]
        if name in COST or all_metrics()[name].higher is None or len(rows) < 2:
            continue
        pairs = list(combinations(rows, 2))
        tests = [compare_pair(a.values[name], b.values[name]) for a, b in pairs]
        boot = [_bootstrap(a.values[name], b.values[name]) for a, b in pairs]
        sign, wilcoxon = holm([t.p_sign_flip for t in tests]), holm([t.p_wilcoxon for t in tests])
        out[name] = {"methods": [methods[row.method] for row in rows], "tests": [
            [t.n, _num(t.difference.mean), _num(t.difference.low), _num(t.difference.high), _num(s), _num(w),
             _num(t.delta), _num(t.smallest_p, 6), *b] for t, s, w, b in zip(tests, sign, wilcoxon, boot, strict=True)]}
    return out


def _bootstrap(a: Mapping[Key, float], b: Mapping[Key, float]) -> list[float | None]:
    """Ends of the BCa interval of the paired difference; none where too few pairs would make it too short."""
    x, y = pair(a, b)
    if x.size < BOOTSTRAP_FROM:
        return [None, None]
    interval = bca_interval(x - y)
    return [_num(interval.low), _num(interval.high)]


def _images(group: Group, methods: dict[str, int]) -> dict[str, Any]:
    """Per metric the tests of pairs of methods over test images and runs, p adjusted by Holm over the pairs."""
    out: dict[str, Any] = {}
    for name in BY_IMAGE:
        if name not in group.metrics and name not in group.variants:
            continue
        found = group_evidence(group, name)
        given, new = holm([e.test.p_given for e in found]), holm([e.test.p_new for e in found])
        if found:
            out[name] = [[methods[e.a], methods[e.b], *(_num(v) for v in (
                e.test.mean, *e.test.given, g, *e.test.new, n, e.test.above, e.test.from_runs)), e.test.runs, e.test.images]
                for e, g, n in zip(found, given, new, strict=True)]
    return out


def _anatomy(group: Group, methods: dict[str, int]) -> dict[str, Any] | None:
    """Where lost images went, per method; and the names of the experiences."""
    found = {methods[row.method]: a for row in group.rows if (a := anatomy(list(row.runs.values()))) is not None}
    if not found:
        return None
    first = next(run for row in group.rows for run in row.runs.values())
    widest = max(a.to.shape[1] for a in found.values())
    names = [str(e.get("name", k + 1)) for k, e in enumerate(first.record.get("experiences") or ())]
    return {"experiences": names if len(names) == widest else [f"experience {k + 1}" for k in range(widest)],
            "methods": {m: {"to": rounded(a.to, 2), "after": rounded(a.after, 2), "back": rounded(a.back, 2), "n": a.n}
                        for m, a in found.items() if a.to.shape[1] == widest}}


def _choices(group: Group, methods: dict[str, int]) -> list[dict[str, Any]]:
    """What label-free scorers choose among the group's runs, and the gap to the oracle."""
    return [{"among": c.among, "candidates": c.candidates, "gated": c.gated, "scorer": LABELS[c.selection.scorer],
             "chosen": None if c.selection.chosen is None else methods[c.selection.chosen],
             "oracle": None if c.selection.oracle is None else methods[c.selection.oracle],
             "chosen_error": _num(100 - c.selection.chosen_accuracy), "oracle_error": _num(100 - c.selection.oracle_accuracy),
             "gap": _num(c.selection.gap), "correlation": _num(c.selection.spearman),
             "refused": [methods[m] for m in c.selection.refused]} for c in choices(group)]


def _rankable(tables: list[Group], primary: str) -> tuple[list[Group], list[str]]:
    """The tables that can be ranked together and the competitors that all of them have: one table per scenario and
    backbone (two protocols of one scenario are not two scenarios: the one with more methods stays), those with two
    measured methods or more, and while these share fewer than two, the one with the fewest is left out."""
    measured = {g.title: [r.method for r in g.rows if r.cells[primary].n and not r.reference] for g in tables}
    widest: dict[tuple[str, str], Group] = {}
    for g in tables:
        other = widest.setdefault((g.scenario, g.backbone), g)
        if len(measured[g.title]) > len(measured[other.title]):
            widest[g.scenario, g.backbone] = g
    left = [g for g in widest.values() if len(measured[g.title]) > 1]
    while True:
        shared = [m for m in (measured[left[0].title] if left else []) if all(m in measured[g.title] for g in left)]
        if len(shared) > 1 or len(left) < 2:
            return left, shared
        left.remove(min(left, key=lambda g: len(measured[g.title])))


def _ranks(groups: list[Group], methods: dict[str, int]) -> list[dict[str, Any]]:
    """Friedman and Nemenyi over the scenarios of each kind, on the methods that all of them have."""
    out = []
    for primary in ("average_accuracy", "mean_error"):
        every = [g for g in groups if g.primary == primary]
        if not every:
            continue
        tables, shared = _rankable(every, primary)
        gone = [g.title for g in every if g not in tables]
        others = sorted({r.method for g in tables for r in g.rows if r.cells[primary].n and not r.reference} - set(shared))
        entry: dict[str, Any] = {"metric": primary, "scenarios": [g.title for g in tables],
                                 "methods": [methods[m] for m in shared], "left_out": [
                                     *gone, *(f"{m} (not on all scenarios)" for m in others if len(tables) > 1)]}
        if len(tables) > 1 and len(shared) > 1:
            means = [[next(r for r in g.rows if r.method == m).cells[primary].mean for m in shared] for g in tables]
            test = friedman(means, bool(all_metrics()[primary].higher))
            entry |= {"ranks": rounded(test.ranks), "difference": _num(test.critical_difference),
                      "chi_square": _num(test.chi_square), "p": _num(test.p), "f": _num(test.f_statistic),
                      "p_f": _num(test.p_f), "cliques": [list(c) for c in cliques(test.ranks,
                                                                                 test.critical_difference)]}
        out.append(entry)
    return out


def _events(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Training curves, thinned to about POINTS points each, and the last lines of the log that are not losses."""
    path = run.folder / "events.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}, []
    losses = [line for line in lines if b'"loss"' in line]
    others = [line for line in lines if b'"kind": "loss"' not in line][-TAIL:]
    curves: dict[str, tuple[list[Any], list[Any]]] = {}
    step = max(1, len(losses) // (POINTS * 6))
    for line in losses[::step]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        value = event.get("value")
        if event.get("kind") == "loss" and isinstance(value, (int, float)):
            x, y = curves.setdefault(str(event.get("experience", "")), ([], []))
            x.append(event.get("step", len(x)))
            y.append(float(f"{value:.4g}"))
    thin = {name: [v[::max(1, len(v) // POINTS)] for v in xy] for name, xy in curves.items()}
    return thin, [line[:400].decode("utf-8", "replace") for line in others]


class _Shared:
    """Objects stored once."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def add(self, value: Any) -> str:
        """The name of a value, made from what it is, so that it is the same in every version of the page."""
        key = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
        self.objects.setdefault(key, value)
        return key


def _run(run: Run, group: int, primary: str, method: int, root: Path | None) -> tuple[dict[str, Any], _Shared]:
    """One run as the page holds it, and what it refers to."""
    r, shared = run.record, _Shared()
    losses, tail = _events(run)
    out = {"id": run.id, "group": group, "method": method, "seed": run.seed, "order": run.order,
           "status": run.status, "error": r.get("error"), "started": r.get("started"), "finished": r.get("finished"),
           "primary": all_metrics()[primary].text(value_of(run, primary)), "seconds": all_metrics()["seconds_total"].text(
               value_of(run, "seconds_total")),
           "config": {k: shared.add(v) for k, v in sorted((r.get("config") or {}).items())},
           "parts": {k: shared.add(r.get(k)) for k in ("scenario", "method", "backbone", "fingerprint", "environment")},
           "metrics": {k: (None if v is None else round(v, 4)) for k, v in sorted(run.metrics.items())},
           "cost": r.get("cost") or {}, "warnings": r.get("warnings") or [], "losses": losses, "tail": tail}
    if root is not None and run.folder.resolve().is_relative_to(root):
        out["file"] = quote(f"files/{run.folder.resolve().relative_to(root).as_posix()}/run.json")
    if run.matrix.total.any():
        out["matrix"] = {"rows": run.matrix.rows, "columns": run.matrix.columns, "r": rounded(run.matrix.percent, 2)}
    if len(run.stream):
        out["stream"] = [[e.name, _num(e.error, 2), int(e.collapsed)] for e in run.stream.entries]
    return out, shared


def _methods(groups: Iterable[Group]) -> list[dict[str, str]]:
    """Every method's label, a short name for charts (its own name, with the arguments in which it differs from others
    of that name), and what the label says beyond it. In an order that does not depend on results."""
    family: dict[str, str] = {}
    reference: dict[str, str] = {}
    facts: dict[str, tuple[str, dict[str, Any]]] = {}
    for group in groups:
        family |= {row.method: row.family for row in group.rows}
        reference |= {row.method: row.reference for row in group.rows}
        facts |= {run.method: (str(run.record["method"]["name"]), run.record["method"].get("args") or {})
                  for run in group.runs}
    out = []
    for label in sorted(family, key=lambda m: (bool(reference[m]), m)):
        name, args = facts[label]
        others = [a for other, (n, a) in facts.items() if n == name and other != label]
        differing = {k: v for k, v in args.items() if any(other.get(k) != v for other in others)}
        told = ", ".join(f"{k}={v}" for k, v in differing.items())
        # A label that somebody gave the record, and arguments that are parts with arguments of their own, stay whole.
        whole = not label.startswith(name) or any(isinstance(v, (dict, list)) for v in differing.values())
        short = label if whole else name + (f" ({told})" if told else "")
        detail = "" if whole else label[len(name):].strip(" ()")
        out.append({"name": label, "short": short, "family": family[label], "reference": reference[label],
                    "detail": detail if detail != told else ""})
    for method in out:
        if sum(m["short"] == method["short"] for m in out) > 1:
            method |= {"short": method["name"], "detail": ""}
    return out


def payload(comparison: Comparison, title: str, root: Path | None = None) -> dict[str, Any]:
    """The page's data. ``root``: the page is served from this (real) folder and follows the runs in it."""
    named = _methods(comparison.groups)
    methods = {method["name"]: i for i, method in enumerate(named)}
    places = slots([(m["name"], bool(m["reference"])) for m in named],
                   [[methods[row.method] for row in group.rows] for group in comparison.groups])
    shared = _Shared()
    groups, runs = [], []
    for number, group in enumerate(comparison.groups):
        learn, stream = learn_curves(group), stream_curves(group)
        for curves in (learn, stream):
            if curves:
                curves["methods"] = {methods[m]: v for m, v in curves["methods"].items()}
        groups.append({
            "title": group.title, "scenario": group.scenario, "backbone": group.backbone, "apart": group.apart,
            "kind": group.kind, "fingerprint": group.fingerprint, "primary": group.primary, "metrics": group.metrics,
            "costs": group.costs, "times": group.times, "notes": group.notes, "warnings": group.warnings,
            "rows": [_row(group, i, methods) for i in range(len(group.rows))], "learn": learn, "stream": stream,
            "pairs": _pairs(group, methods), "images": _images(group, methods),
            "anatomy": _anatomy(group, methods),
            "verdict": [[s.text, s.command] for s in verdict(group)], "choices": _choices(group, methods)})
        for run in group.runs:
            what = ("page", number, group.primary, methods[run.method], root)
            shown, refers = kept([run], what, lambda w=what, run=run: _run(run, w[1], w[2], w[3], w[4]))  # type: ignore[misc]
            runs.append(shown)
            shared.objects.update(refers.objects)
    metrics = {m.name: {"label": m.label, "unit": m.unit, "arrow": m.arrow, "higher": m.higher, "decimals": m.decimals,
                        "note": m.note, "cost": m.name in COST, "timed": m.timed} for m in all_metrics().values()}
    return {"title": title, "made": utc_now(), "version": __version__, "live": root is not None, "metrics": metrics,
            "palette": {"light": LIGHT, "dark": DARK},
            "methods": [{**m, "slot": slot} for m, slot in zip(named, places, strict=True)], "groups": groups,
            "ranks": _ranks(comparison.groups, methods), "runs": runs, "shared": shared.objects,
            "problems": comparison.problems, "numpy": np.__version__,
            "exports": {"csv": to_csv(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}}
