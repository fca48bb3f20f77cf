"""Forgetting, transfer and averages of 300 random accuracy matrices, ours against five libraries' own functions.

    python benchmarks/parity_cl_metrics.py --checkouts DIR              # writes results/parity/cl_metrics.md

Matrices have 2 to 8 tasks; cells that a definition does not need are missing at random, and so is an upper triangle that no
run measured. What a library does with a cell that it needs and has not got stands in rows of its own.
"""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from official import checkouts
from official.checkouts import Row, importable

from cl_bench.numbers.matrix import AccuracyMatrix

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl_metrics.md"
COUNT, IMAGES, BOUND = 300, 40, 1e-12
Rates = Any  # float (T, T) in percent, NaN where not measured


def cases(needed: Callable[[int], Any], seed: int = 0) -> Iterator[tuple[AccuracyMatrix, Rates]]:
    """Random matrices in which cells outside ``needed(T)`` (bool (T, T)) are missing with probability one half."""
    draw = np.random.default_rng(seed)
    for _ in range(COUNT):
        tasks = int(draw.integers(2, 9))
        correct = draw.integers(0, IMAGES + 1, (tasks, tasks))
        there = needed(tasks) | (draw.random((tasks, tasks)) < 0.5)
        total = np.where(there, IMAGES, 0)
        names = tuple(f"task {k}" for k in range(tasks))
        yield (AccuracyMatrix(names, names, np.where(there, correct, 0), total, tuple(range(tasks))),
               np.where(there, 100.0 * correct / IMAGES, np.nan))


def lower(tasks: int) -> Any:
    return np.tril(np.ones((tasks, tasks), dtype=bool))


def ends(tasks: int) -> Any:
    """The diagonal and the last row."""
    needed = np.eye(tasks, dtype=bool)
    needed[-1] = True
    return needed


def above(tasks: int) -> Any:
    """The cells right above the diagonal."""
    return np.eye(tasks, k=1, dtype=bool)


def most(pairs: Iterator[tuple[float, float]]) -> float:
    """The largest difference; a number against none is infinite."""
    worst = 0.0
    for ours, theirs in pairs:
        if math.isnan(ours) and math.isnan(theirs):
            continue
        worst = max(worst, math.inf if math.isnan(ours) != math.isnan(theirs) else abs(ours - float(theirs)))
    return worst


def avalanche(tree: Path) -> list[Row]:
    """Its Forgetting, BWT and ForwardTransfer metrics."""
    module = importlib.import_module("avalanche.evaluation.metrics.forgetting_bwt")
    forward = importlib.import_module("avalanche.evaluation.metrics.forward_transfer")

    def lost(r: Rates) -> float:
        metric = module.Forgetting()
        for i, row in enumerate(r):
            for j in range(i + 1):
                if not np.isnan(row[j]):
                    metric.update(j, row[j], initial=i == j)
        return float(np.mean(list(metric.result().values())))

    def gained(r: Rates) -> float:
        metric = forward.ForwardTransfer()
        for j in range(len(r)):
            metric.update(j, 10.0, initial=True)
        for j in range(1, len(r)):
            metric.update(j, r[j - 1, j])
        return float(np.mean(list(metric.result().values())))

    return [
        Row("Avalanche `Forgetting`", "`forgetting(learned)`",
            most((m.forgetting("learned"), lost(r)) for m, r in cases(ends)), BOUND),
        Row("Avalanche `ForwardTransfer`", "`forward_transfer(10)`",
            most((m.forward_transfer(10.0), gained(r)) for m, r in cases(above)), BOUND),
    ]


def mammoth(tree: Path) -> list[Row]:
    """utils/metrics.py; it pads what a row lacks with 0."""
    with importable(tree, (), ("utils",)):
        module = importlib.import_module("utils.metrics")

    def padded(r: Rates) -> list[list[float]]:
        return [[float(v) for v in np.nan_to_num(row)] for row in r]

    def rows(r: Rates) -> list[list[float]]:
        return [[float(v) for v in row[: k + 1]] for k, row in enumerate(r)]

    def random(r: Rates) -> list[list[float]]:
        return [[7.0] for _ in r]

    def lost(r: Rates) -> float:
        return float(module.forgetting(padded(np.where(lower(len(r)), r, 0.0))))

    return [
        Row("Mammoth `forgetting`", "`forgetting(best_any)`, earlier cells missing (its padding is 0)",
            most((m.forgetting("best_any"), lost(r)) for m, r in cases(ends)), BOUND),
        Row("Mammoth `backward_transfer`", "`backward_transfer()`",
            most((m.backward_transfer(), module.backward_transfer(rows(r))) for m, r in cases(ends)), BOUND),
        Row("Mammoth `forward_transfer`", "`forward_transfer(7)`",
            most((m.forward_transfer(7.0), module.forward_transfer(r.tolist(), random(r))) for m, r in cases(above)), BOUND),
        Row("Mammoth `forgetting`", "the last row's cell missing: ours is not a number, theirs counts it as 0 right",
            _without_last(lost), 0.0,
            "a cell that was not measured is no accuracy of 0"),
    ]


def _without_last(theirs: Callable[[Rates], float]) -> float:
    """How many of 300 matrices whose last row lacks a cell get a number from the library and none from us."""
    told = 0
    for m, r in cases(ends, seed=1):
        r = r.copy()
        r[-1, 0] = np.nan
        ours = m.with_cell(len(r) - 1, 0, 0, 0)
        told += math.isnan(ours.forgetting("best_any")) and not math.isnan(theirs(r))
    return float(told)


def pilot(tree: Path) -> list[Row]:
    """The statements of trainer.py under ``print_forget``."""
    block = next(node for node in ast.walk(ast.parse((tree / "trainer.py").read_text()))
                 if isinstance(node, ast.If) and "print_forget" in ast.unparse(node.test))
    code = compile(ast.Module([block.body[0]], []), "trainer.py", "exec")

    def forgotten(r: Rates) -> float:
        lines = [[float(v) for v in np.nan_to_num(row[: k + 1])] for k, row in enumerate(r)]
        names: dict[str, Any] = {"np": np, "cnn_matrix": lines, "task": len(r) - 1, "args": {"print_forget": True},
                                 "logging": _Silent(), "print": lambda *a: None}
        exec(code, names)
        return float(names["forgetting"])

    return [Row("PILOT trainer.py", "`forgetting(best_any)`, earlier cells missing (its table starts at 0)",
                most((m.forgetting("best_any"), forgotten(r)) for m, r in cases(ends)), BOUND),
            Row("PILOT trainer.py", "the last row's cell missing: ours is not a number, theirs counts it as 0 right",
                _without_last(forgotten), 0.0, "a cell that was not measured is no accuracy of 0")]


class _Silent:
    def info(self, *args: Any) -> None:
        return None


def libcontinual(tree: Path) -> list[Row]:
    """core/utils/utils.py."""
    wanted = ("compute_bwt", "compute_frgt")
    body = [node for node in ast.parse((tree / "core/utils/utils.py").read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names: dict[str, Any] = {"np": np}
    exec(compile(ast.Module(body, []), "utils.py", "exec"), names)  # type: ignore[arg-type]

    def pairs(kind: str) -> Iterator[tuple[float, float]]:
        for m, r in cases(lower):
            if len(r) < 3:
                continue  # below three tasks it answers 0 without looking
            ours = m.backward_transfer("libcontinual") if kind == "compute_bwt" else m.forgetting("libcontinual")
            yield ours, names[kind](np.nan_to_num(r), np.nan_to_num(r[-1]), len(r) - 1)

    return [Row("LibContinual `compute_bwt`", "`backward_transfer(libcontinual)`", most(pairs("compute_bwt")), BOUND),
            Row("LibContinual `compute_frgt`", "`forgetting(libcontinual)`", most(pairs("compute_frgt")), BOUND)]


def continuum(tree: Path) -> list[Row]:
    """continuum/metrics/metrics.py, which wants every answer of every image."""
    with importable(tree, (), ("continuum", "continuum.metrics")):
        module = importlib.import_module("continuum.metrics.metrics")

    def told(r: Rates) -> tuple[list[Any], list[Any], list[Any]]:
        preds, targets, tasks = [], [], []
        for row in r:
            there = [j for j, v in enumerate(row) if not np.isnan(v)]
            right = [np.arange(IMAGES) < round(row[j] * IMAGES / 100) for j in there]
            preds.append(np.concatenate(right).astype(int))
            targets.append(np.ones(IMAGES * len(there), dtype=int))
            tasks.append(np.repeat(there, IMAGES))
        return preds, targets, tasks

    def refused() -> float:
        count = 0
        for m, r in cases(lower, seed=1):
            r = r.copy()
            r[-1, 0] = np.nan
            ours = m.with_cell(len(r) - 1, 0, 0, 0)
            try:
                module.forgetting(*told(r))
            except ValueError:
                count += math.isnan(ours.forgetting("best"))
        return float(COUNT - count)

    asked: list[tuple[str, str, Callable[[AccuracyMatrix], float], Any]] = [
        ("forgetting", "`forgetting(best)`", lambda m: m.forgetting("best"), lower),
        ("backward_transfer", "`backward_transfer(all_pairs)`", lambda m: m.backward_transfer("all_pairs"), lower),
        ("accuracy_A", "`average_lower_triangle()`", lambda m: m.average_lower_triangle(), lower),
        ("forward_transfer", "`forward_transfer(0)`", lambda m: m.forward_transfer(0.0),
         lambda t: above(t) | np.eye(t, dtype=bool)),
    ]
    rows = [Row(f"Continuum `{name}`", here,
                most((of(m), 100 * getattr(module, name)(*told(r))) for m, r in cases(needed)), BOUND)
            for name, here, of, needed in asked]
    return [*rows, Row("Continuum `forgetting`",
                       "matrices lacking a needed cell where not both decline (it raises, ours is not a number)",
                       refused(), 0.0)]


KINDS = {"avalanche": avalanche, "mammoth": mammoth, "pilot": pilot, "libcontinual": libcontinual, "continuum": continuum}
HEAD = f"""
# Metrics against five libraries

Made by `python benchmarks/parity_cl_metrics.py --checkouts DIR`: {COUNT} random accuracy matrices of 2 to 8 tasks with
{IMAGES} images per cell, in percentage points. Cells that a definition does not need are missing with probability one half.
Each library's own function is called; the difference shown is the largest of the {COUNT}.
"""

if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD))
