"""A search over settings within a budget, on what may be looked at: never on test labels.

Each trial is a run on :class:`cl_bench.engine.held_out.HeldOut` or :class:`~cl_bench.engine.held_out.Blind` of the scenario,
in a folder of its own that no table reads. An objective gets a mapping of plain numbers of that run, and nothing else. What
was chosen is then run on the scenario itself with seeds that no trial had, and every record of it holds the whole search.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from ..records.source_digest import UNKNOWN, code_digest, source_digest
from .search_space import Axis

__all__ = ["Objective", "Search", "Trials", "search"]

Objective = Callable[[Mapping[str, float]], float]
STARTUP = 5  # trials before any is pruned
HIDDEN = ".tune"  # beside the records, where no table looks
_PARTS = "cl_bench.engine.held_out"


@dataclass(frozen=True)
class Search:
    """What is searched: ``config`` as :func:`.config.parse` gives it, within ``trials`` runs.

    Attributes:
        objective: by name (a metric of the held-out parts, a label-free scorer) or a user's ``file.py:function``.
        first, share: of :class:`cl_bench.engine.held_out.HeldOut`.
        seeds: of the final runs; none is the trials' own.
    """

    name: str
    config: Mapping[str, Any]
    space: Sequence[Axis]
    trials: int
    objective: str
    score: Objective
    learns: bool
    first: int = 2
    share: float = 0.2
    prune: bool = True
    seeds: Sequence[int] = ()

    def digest(self) -> str:
        """What must be the same for a search to be gone on with: its options, the code of its parts and of cl-bench, data and
        weights; the budget may grow. Code that cannot be told equals nothing."""
        from ..engine.protocol import fingerprint
        from .config import plan_from
        from .rehearsal import sources

        code = [code_digest(), *(digest for digest, _ in sources(self.config).values()),
                *([source_digest(self.score)] if ":" in self.objective else [])]
        told_ = {"config": self.config, "space": [(a.name, a.to_json()) for a in self.space], "objective": self.objective,
                 "first": self.first, "share": self.share, "prune": self.prune,
                 "code": uuid.uuid4().hex if UNKNOWN in code else code, "protocol": fingerprint(plan_from(self.config))["id"]}
        return hashlib.sha256(json.dumps(told_, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def scenario(self) -> dict[str, Any]:
        """The scenario of a trial, as part of a config."""
        if self.learns:
            return {"class_path": f"{_PARTS}.HeldOut", "init_args": {
                "of": self.config["scenario"], "first": self.first, "share": self.share}}
        return {"class_path": f"{_PARTS}.Blind", "init_args": {"of": self.config["scenario"]}}

    def with_settings(self, settings: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """A run's config with the searched options at ``settings``."""
        from .config import parse

        words = [word for name, value in settings.items() for word in (f"--{name}", _word(value))]
        return parse(words, {**self.config, **changes})


@dataclass
class Trials:
    """What a search found: ``rows`` as records keep them, ``best`` the settings that are run in the end, and its seed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    @property
    def tried(self) -> int:
        return len(self.rows)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Pruned(Exception):
    pass


def search(plan: Search, runs: Path, say: Callable[[Mapping[str, Any]], None] = lambda row: None) -> Trials:
    """Try settings until the budget is spent, going on where an earlier call of the same search was stopped.

    Raises:
        UserError: where Optuna is missing, a value of the space is none that the method takes, another search has the
            name, or no trial ended well.
    """
    optuna = _optuna()
    folder = runs / HIDDEN / plan.name
    for axis in plan.space:
        for value in axis.ends():  # a mistake is told before the first trial
            plan.with_settings({axis.name: value})
    folder.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if plan.prune else optuna.pruners.NopPruner()
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name=plan.name, direction="maximize",
                                pruner=pruner, load_if_exists=True)
    digest = plan.digest()
    if study.user_attrs.get("search", digest) != digest:
        raise UserError(f"another search is called {plan.name}: its options, code or data differ; give this one another "
                        "--name.")
    study.set_user_attr("search", digest)
    again = [t for t in study.trials if t.state == optuna.trial.TrialState.RUNNING]  # killed in the midst of it
    for trial in again:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    gone = {t.number for t in again} | set(study.user_attrs.get("interrupted", []))
    study.set_user_attr("interrupted", sorted(gone))
    reference = None if plan.learns else _reference(plan, folder)
    while (done := len(_over(study, optuna, gone))) < plan.trials:
        study.sampler = optuna.samplers.TPESampler(seed=int(plan.config["seed"]) + done)  # the same trials after a stop
        row = _try(plan, study, optuna, folder, reference)
        say({**row, "done": done + 1, "of": plan.trials})
    return _told(study, optuna, gone, plan)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as fault:
        raise UserError("cl-bench tune searches with Optuna, which is not installed: pip install 'cl-bench[tune]'.") from fault
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _over(study: Any, optuna: Any, gone: set[int]) -> list[Any]:
    states = optuna.trial.TrialState
    return [t for t in study.trials if t.number not in gone and t.state in (states.COMPLETE, states.PRUNED, states.FAIL)]


def _try(plan: Search, study: Any, optuna: Any, folder: Path, reference: Any) -> dict[str, Any]:
    """One trial: a run, its score, and what became of it."""
    states = optuna.trial.TrialState
    trial, started = study.ask(), time.monotonic()
    settings = {axis.name: axis.ask(trial) for axis in plan.space}
    value, state, why = None, states.FAIL, ""
    try:
        watch = _Watch(plan, trial, folder / "trials") if plan.prune else None
        value = float(plan.score(_view(plan, _run(plan, settings, folder, watch), reference)))
        state = states.COMPLETE if math.isfinite(value) else states.FAIL
        why = "" if math.isfinite(value) else "its score is not finite"
    except _Pruned:
        state, why = states.PRUNED, "pruned: worse so far than half of the others"
    except (UserError, Exception) as fault:
        why = str(fault) if isinstance(fault, UserError) else told(fault)
    trial.set_user_attr("why", why)
    trial.set_user_attr("seconds", round(time.monotonic() - started, 2))
    study.tell(trial, value if state == states.COMPLETE else None, state=state)
    return {"number": trial.number, "settings": settings, "value": value, "state": state.name.lower(), "why": why}


def _run(plan: Search, settings: Mapping[str, Any], folder: Path, watch: Any = None, **changes: Any) -> Any:
    from ..records.results import load
    from .config import plan_from
    from .processes import execute

    config = plan.with_settings(settings, scenario=plan.scenario(), checkpoint=False, **changes)
    return load(execute(plan_from(config, f"trials of {plan.name}"), folder / "trials", listen=watch))


def _view(plan: Search, run: Any, reference: Any) -> dict[str, float]:
    """The numbers of a trial that an objective may see: of held-out parts, or of answers without labels."""
    from ..label_free.scorers import SCORERS, is_diverse

    if plan.learns:
        return {name: value for name, value in run.metrics.items() if value is not None}
    said = [entry.unlabelled for entry in run.stream.entries]
    if not said or not all(said):
        raise UserError("its answers were not finite throughout")
    if reference is not None and not all(is_diverse(own, other) for own, other in zip(said, reference, strict=True)):
        raise UserError("collapsed: its answers lack diversity beside the source model's")
    scores = {name: sum(scorer(u) for u in said) / len(said) for name, scorer in SCORERS.items()}
    return {**{key: sum(u[key] for u in said) / len(said) for key in said[0]}, **scores}


def _reference(plan: Search, folder: Path) -> Any:
    """What the model that does not adapt says of the stream, by which collapsed trials are known; None without one."""
    from ..registry import GROUPS, entries

    if "source" not in entries(GROUPS["methods"]):
        return None
    run = _run(replace(plan, space=()), {}, folder, method="source")
    return [entry.unlabelled for entry in run.stream.entries]


class _Watch:
    """Tells Optuna of a trial after each step, and ends it where it falls behind; an objective of another kind is known
    only when the run is over."""

    def __init__(self, plan: Search, trial: Any, trials: Path) -> None:
        self.plan, self.trial, self.trials, self.step = plan, trial, trials, 0

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        from ..label_free.scorers import SCORERS

        if self.plan.learns and kind == "experience" and self.plan.objective == "average_accuracy":
            self._report(facts.get("accuracy"), self.step + 1)
        elif not self.plan.learns and kind == "domain" and self.plan.objective in SCORERS:
            record = json.loads((self.trials / str(facts["id"]) / "run.json").read_bytes())  # up to the domain before
            said = [entry["unlabelled"] for entry in record["stream"] if entry.get("unlabelled")]
            if len(said) > self.step:
                self._report(sum(SCORERS[self.plan.objective](u) for u in said) / len(said), len(said))

    def _report(self, value: float | None, step: int) -> None:
        self.step = step
        if value is not None and math.isfinite(value):
            self.trial.report(float(value), step)
            if self.trial.should_prune() and not (self.plan.learns and step >= self.plan.first):
                raise _Pruned


def _told(study: Any, optuna: Any, gone: set[int], plan: Search) -> Trials:
    over = _over(study, optuna, gone)
    rows = [{"number": t.number, "settings": dict(t.params), "value": t.value if t.state.name == "COMPLETE" else None,
             "state": t.state.name.lower(), "why": t.user_attrs.get("why", ""), "seconds": t.user_attrs.get("seconds")}
            for t in over]
    well = [row for row in rows if row["value"] is not None]
    if not well:
        whys = next((row["why"] for row in rows if row["why"]), "no trial ended")
        raise UserError(f"none of the {len(rows)} trials ended well: {whys}")
    best = max(well, key=lambda row: (row["value"], -row["number"]))
    return Trials(rows, dict(best["settings"]))
