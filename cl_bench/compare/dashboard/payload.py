"""Everything the page shows as one JSON object: the page is also the data.

Numbers that stand in a table are formatted here, by the same code as the exports; curves are means with bands; what
many runs share (config parts, protocol, environment) is stored once and referred to by number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ... import __version__
from ...label_free.scorers import LABELS
from ...numbers.metrics import COST, all_metrics
from ...numbers.statistics import (
    BOOTSTRAP_FROM,
    bca_interval,
    cliques,
    compare_pair,
    holm,
    main_effects,
    pair,
    t_quantile,
)
from ...records.results import Run, plain, utc_now
from ..anatomy import anatomy
from ..comparison import Comparison, Group, Key, value_of, values_of
from ..images import BY_IMAGE, group_evidence
from ..memo import kept
from ..overall import aggregates, ranking
from ..selection import choices
from ..sheets import FORMATS, sheets
from ..style import DARK, LIGHT, slots
from ..sweeps import arguments_of, swept
from ..tables import cell_text
from ..verdict import command_of, verdict
from .curves import learn_curves, rounded, stream_curves

__all__ = ["payload"]

POINTS = 90  # of a training curve
TAIL = 12  # lines of the log
MOST_PAIRED = 40  # methods that are tested pair by pair: of a sweep over a thousand settings the pairs are half a million
FILES = ("run.json", "events.jsonl", "arrays.npz")


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
    """Per metric the paired tests of all methods, of more than :data:`MOST_PAIRED` the best: a - b above the diagonal only
    (the page mirrors them)."""
    out: dict[str, Any] = {}
    for name in [*group.metrics, *group.variants]:
        rows = [row for row in group.rows if row.cells[name].n]
        if name in COST or (higher := all_metrics()[name].higher) is None or len(rows) < 2:
            continue
        every = len(rows)
        if every > MOST_PAIRED:
            best = sorted(range(every), key=lambda k: (-1 if higher else 1) * rows[k].cells[name].mean)[:MOST_PAIRED]
            rows = [rows[k] for k in sorted(best)]
        pairs = list(combinations(rows, 2))
        tests = [compare_pair(a.values[name], b.values[name]) for a, b in pairs]
        boot = [_bootstrap(a.values[name], b.values[name]) for a, b in pairs]
        sign, wilcoxon = holm([t.p_sign_flip for t in tests]), holm([t.p_wilcoxon for t in tests])
        out[name] = {"methods": [methods[row.method] for row in rows], "of": every, "tests": [
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
    """Where lost images went, per method (of many, of the leading ones alone); and the names of the experiences."""
    found = {methods[row.method]: a for row in group.rows[:MOST_PAIRED] if (a := anatomy(list(row.runs.values()))) is not None}
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
    made = kept(group.runs, "choices", lambda: choices(group))
    return [{"among": c.among, "candidates": c.candidates, "gated": c.gated, "scorer": LABELS[c.selection.scorer],
             "chosen": None if c.selection.chosen is None else methods[c.selection.chosen],
             "oracle": None if c.selection.oracle is None else methods[c.selection.oracle],
             "chosen_error": _num(100 - c.selection.chosen_accuracy), "oracle_error": _num(100 - c.selection.oracle_accuracy),
             "gap": _num(c.selection.gap), "correlation": _num(c.selection.spearman),
             "refused": [methods[m] for m in c.selection.refused]} for c in made]


def _ranks(groups: list[Group], methods: dict[str, int]) -> list[dict[str, Any]]:
    """Ranks and aggregates over the scenarios of each kind, on the methods that all of them have."""
    out = []
    for primary in ("average_accuracy", "mean_error"):
        every = [g for g in groups if g.primary == primary]
        if not every:
            continue
        found = ranking(every, primary)
        entry: dict[str, Any] = {"metric": primary, "scenarios": [g.title for g in found.groups],
                                 "methods": [methods[m] for m in found.methods], "left_out": found.left_out}
        if (test := found.test) is not None:
            entry |= {"ranks": rounded(test.ranks), "difference": _num(test.critical_difference),
                      "chi_square": _num(test.chi_square), "p": _num(test.p), "f": _num(test.f_statistic),
                      "p_f": _num(test.p_f),
                      "cliques": [list(c) for c in cliques(test.ranks, test.critical_difference)]}
        if (of := aggregates(found, primary)) is not None:
            entry["aggregate"] = {"iqm": rounded(of.iqm), "low": rounded(of.low), "high": rounded(of.high), "runs": of.runs,
                                  "thresholds": rounded(of.thresholds, 2), "profile": rounded(of.profile), "better": rounded(
                                      of.better)}
        out.append(entry)
    return out


def _sweeps(group: Group, methods: dict[str, int], differing: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Per method that stands here in several settings: its parameters, and how much of each metric's spread between the
    settings each parameter explains."""
    settings: dict[str, dict[str, dict[str, Any]]] = {}
    for run in group.runs:
        settings.setdefault(str(run.record["method"]["name"]), {}).setdefault(run.method, arguments_of(run))
    rows = {row.method: row for row in group.rows}
    out = []
    for name, of in settings.items():
        here = [k for k in differing.get(name, ()) if len({repr(args.get(k)) for args in of.values()}) > 1]
        if not here:
            continue
        levels = [[repr(args.get(k)) for k in here] for args in of.values()]
        shares = {metric: [_num(v, 3) for v in main_effects(levels, [rows[label].cells[metric].mean for label in of])]
                  for metric in group.metrics if all_metrics()[metric].family != "cost"}
        full = math.prod(len({level[k] for level in levels}) for k in range(len(here))) == len(set(map(tuple, levels)))
        out.append({"base": name, "parameters": here, "full": full, "methods": [methods[label] for label in of],
                    "values": [[args.get(k) for k in here] for args in of.values()], "importance": shares})
    return out


def _events(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Training curves, thinned to about POINTS points each, and the last lines of the log that are not losses."""
    path = run.folder / "events.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}, []
    losses = [line for line in lines if b'"loss"' in line]
    others = list(islice((line for line in reversed(lines) if b'"kind": "loss"' not in line), TAIL))[::-1]
    curves: dict[str, tuple[list[Any], list[Any]]] = {}
    step = max(1, len(losses) // (POINTS * 6))
    for event in _parsed(losses[::step]):
        value = event.get("value") if isinstance(event, dict) else None
        if value is not None and event.get("kind") == "loss" and isinstance(value, (int, float)):
            x, y = curves.setdefault(str(event.get("experience", "")), ([], []))
            x.append(event.get("step", len(x)))
            y.append(float(f"{value:.4g}"))
    thin = {name: [v[::max(1, len(v) // POINTS)] for v in xy] for name, xy in curves.items()}
    return thin, [line[:400].decode("utf-8", "replace") for line in others]


def _parsed(lines: list[bytes]) -> list[Any]:
    """Lines of JSON; those that are none are left out."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # in one call: a page reads a hundred lines of every run
    except (ValueError, RecursionError):
        found = []
    if len(found) == len(lines):
        return list(found)
    each = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            each.append(json.loads(line))
    return each


class _Shared:
    """Objects stored once."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def add(self, value: Any) -> str:
        """The name of a value, made from what it is, so that it is the same in every version of the page."""
        key = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
        self.objects.setdefault(key, value)
        return key


def _at(folder: Path, base: tuple[str, Path] | None) -> str | None:
    """Where a page finds the files of a run: below its own address, or nowhere."""
    if base is None or not (there := folder.resolve()).is_relative_to(base[1]):
        return None
    inside = there.relative_to(base[1]).as_posix()
    return quote(base[0] + (f"{inside}/" if inside != "." else ""))


def _run(run: Run, group: int, primary: str, method: int, base: tuple[str, Path] | None) -> tuple[dict[str, Any], _Shared]:
    """One run as the page holds it, and what it refers to."""
    r, shared = run.record, _Shared()
    losses, tail = _events(run)
    out = {"id": run.id, "group": group, "method": method, "seed": run.seed, "order": run.order,
           "status": run.status, "protocol": run.fingerprint,
           "error": r.get("error"), "started": r.get("started"), "finished": r.get("finished"),
           "primary": all_metrics()[primary].text(value_of(run, primary)), "seconds": all_metrics()["seconds_total"].text(
               value_of(run, "seconds_total")),
           "command": shared.add(command_of(run, seed="SEED")),
           "config": {k: shared.add(v) for k, v in sorted((r.get("config") or {}).items())},
           "parts": {k: shared.add(r.get(k)) for k in ("scenario", "method", "backbone", "fingerprint", "environment")},
           "metrics": {name: round(value, 5) for name, value in values_of(run).items() if math.isfinite(value)},
           "cost": r.get("cost") or {}, "warnings": r.get("warnings") or [], "losses": losses, "tail": tail}
    if (at := _at(run.folder, base)) is not None:
        out["at"], out["has"] = at, [name for name in FILES if os.path.exists(f"{run.folder}/{name}")]
    if run.matrix.total.any():
        m = run.matrix
        frame = {"rows": m.rows, "columns": m.columns, "learned": m.learned, "total": m.total.tolist()}
        out["matrix"] = {"frame": shared.add(plain(frame)), "correct": m.correct.tolist()}
    if len(run.stream):
        entries = run.stream.entries
        frame_of = shared.add([[e.name, e.total, e.domain, e.visit] for e in entries])
        out["stream"] = {"frame": frame_of, "correct": [e.correct for e in entries],
                         "collapsed": [k for k, e in enumerate(entries) if e.collapsed]}
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


def payload(comparison: Comparison, title: str, root: Path | None = None, beside: Path | None = None,
            pictures: dict[str, Any] | None = None) -> dict[str, Any]:
    """The page's data. ``root``: the page is served from this (real) folder and follows the runs in it; ``beside``: the page
    is a file in this folder, and finds the records that lie below it."""
    base = ("files/", root) if root is not None else ("", beside.resolve()) if beside is not None else None
    differing = swept(run for group in comparison.groups for run in group.runs)
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
            "verdict": [[s.text, s.command] for s in verdict(group)], "choices": _choices(group, methods),
            "sweeps": _sweeps(group, methods, differing),
            "lost": [{**entry, "method": methods[entry["method"]]} for entry in (pictures or {}).get(
                f"{group.title}#{group.fingerprint}", [])]})
        for run in group.runs:
            what = ("page", number, group.primary, methods[run.method], base)
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
            "quantiles": [_num(t_quantile(n), 6) for n in range(1, 60)],
            "exports": {kind: {"tables": [sheet.plain() for sheet in sheets(comparison, kind)], "overall": [
                sheet.plain() for sheet in sheets(comparison, kind, over=True)]} for kind in FORMATS}}
