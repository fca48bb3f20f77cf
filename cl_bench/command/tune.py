"""``cl-bench tune``: search settings without test labels, then run what was chosen with fresh seeds."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .commands import _one, _tables, _tracker, _writable

__all__ = ["add_commands", "tune"]

HELP = """\
options of the run (--scenario, --method, --seed, ..., as for cl-bench run) follow; --search names those that are tried:
  --search method.rank=4,8,16 --search method.epochs=1..5 --search method.lr=1e-4..1e-1:log

Where the scenario learns, a trial learns the first experiences without a part of their training data and is scored on that
part. Where it only streams, a trial answers the stream without labels and is scored by what the answers say. No trial holds
a test label. What wins is run on the scenario itself with seeds that no trial had.
"""


def add_commands(command: Callable[..., argparse.ArgumentParser], *parents: argparse.ArgumentParser) -> None:
    """The subcommand, by the function that makes the others."""
    made = command("tune", tune, "search settings without test labels, within a budget", *parents, epilog=HELP,
                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--search", action="append", default=[], metavar="OPTION=VALUES", help="an option to search; repeat it")
    made.add_argument("--trials", type=int, default=20, metavar="N", help="the budget: how many configurations (default: 20)")
    made.add_argument("--objective", default="", metavar="NAME", help="a metric of the held-out parts (default: "
                      "average_accuracy), a label-free scorer (default: information_maximisation), or file.py:function, which "
                      "gets a mapping of numbers and returns one, higher being better")
    made.add_argument("--first", type=int, default=2, metavar="N", help="experiences that a trial learns (default: 2)")
    made.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="of their images (default: 0.2)")
    made.add_argument("--no-pruning", action="store_true", help="let every trial end")
    made.add_argument("--final-seeds", type=int, default=5, metavar="N", help="runs of what was chosen (default: 5)")
    made.add_argument("--name", default="", metavar="NAME", help="of the search (default: scenario and method)")


def tune(o: argparse.Namespace, rest: list[str]) -> int:
    """Search, then run."""
    from .config import parse
    from .parts import ROOTS, make
    from .search_space import read_space
    from .tuning import Search, search

    runs = _one(o)
    for option, value, least, most in (("--trials", o.trials, 1, 100_000), ("--first", o.first, 1, 10_000),
                                       ("--final-seeds", o.final_seeds, 1, 1000), ("--held-out", o.held_out, 0.01, 0.9)):
        if not least <= value <= most:
            raise UserError(f"{option} {value}: give a number from {least} to {most}.")
    space, config = read_space(o.search), parse(rest)
    scenario = make(config["scenario"], ROOTS["scenario"])
    learns = bool(len(scenario.experiences()))
    objective, score = _objective(o.objective, learns)
    name = o.name or "-".join(re.sub(r"\W+", "_", config[root]["class_path"].rpartition(".")[2]).lower()
                              for root in ("scenario", "method"))
    if not re.fullmatch(r"\w[\w.-]{0,80}", name):
        raise UserError(f"--name {name[:80]!r} may hold letters, digits, '.', '_' and '-'.")
    _writable(runs)
    seeds = [config["seed"] + 1 + k for k in range(o.final_seeds)]
    plan = Search(name, config, space, o.trials, objective, score, learns, o.first, o.held_out, not o.no_pruning, seeds)
    found = search(plan, runs, _say)
    asked = f"held-out {o.held_out:g} of the first {o.first} experiences" if learns else "the stream without labels"
    told = {"search": name, "objective": objective, "on": asked, "budget": o.trials, "tried": found.tried,
            "space": {a.name: a.to_json() for a in space}, "chosen": found.best, "trial_seed": config["seed"],
            "trials": found.rows}
    print(f"{found.tried} configurations tried; chosen: " + ", ".join(f"{k} = {v}" for k, v in (found.best or {}).items()))
    folders = [_final(plan, found.best or {}, seed, told, runs) for seed in seeds]
    html = runs / f"{name}.html"
    _tables(folders, html=html, title=f"cl-bench: {name}", say_page=False)
    with _tracker(o, runs) as tracker:
        if tracker is not None:
            tracker.sync(folders)
    from ..compare.site.trials import trials_page
    from ..records.results import load

    print(f"page: {html.resolve()}")
    print(f"trials: {trials_page(told, [load(f) for f in folders], runs / f'{name}-trials.html').resolve()}")
    return 0


def _say(row: Mapping[str, Any]) -> None:
    settings = ", ".join(f"{name.removeprefix('method.')} = {value:.4g}" if isinstance(value, float) else
                         f"{name.removeprefix('method.')} = {value}" for name, value in row["settings"].items())
    how = f"{row['value']:.4g}" if row["value"] is not None and not row["why"] else row["why"]
    print(f"[{row['done']}/{row['of']}] {settings}: {how}", flush=True)


def _objective(name: str, learns: bool) -> tuple[str, Callable[[Mapping[str, float]], float]]:
    """An objective by name, or of a user's own."""
    from ..label_free.scorers import SCORERS
    from ..numbers.metrics import all_metrics
    from ..registry import load_path

    if ":" in name:
        own = load_path(name)
        if not callable(own):
            raise UserError(f"--objective {name} is no function of a mapping.")
        return name, own
    ours = {n: m.higher for n, m in all_metrics().items() if m.of and m.higher is not None and "learning" in m.needs}
    known = ours if learns else dict.fromkeys(SCORERS, True)
    name = name or ("average_accuracy" if learns else "information_maximisation")
    if name not in known:
        raise UserError(f"--objective {name[:80]} is none of {', '.join(known)}; or give file.py:function.")

    def score(view: Mapping[str, float]) -> float:
        if name not in view:
            raise UserError(f"{name} was not measured")
        return view[name] if known[name] else -view[name]

    return name, score


def _final(plan: Any, settings: Mapping[str, Any], seed: int, told: Mapping[str, Any], runs: Path) -> Path:
    """The run of what was chosen with one of the fresh seeds; done once, gone on with where it was stopped."""
    from ..records.results import complete, load_all
    from .config import plan_from
    from .processes import execute

    config = plan.with_settings(settings, seed=seed)
    made = plan_from(config, plan.name)
    made.tuning = dict(told)
    mine = [r for r in load_all(runs) if (r.record.get("tuning") or {}).get("search") == plan.name and r.seed == seed
            and (r.record["tuning"]["chosen"], r.record["tuning"]["tried"]) == (told["chosen"], told["tried"])]
    for earlier in mine:
        if complete(earlier.folder):
            return earlier.folder
    return execute(made, runs, resume=mine[-1].folder if mine else None)
