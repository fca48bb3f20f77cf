"""Runs a submitted record again and says how far the two agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, told
from ..records.audit import contradictions, record_digest, uncounted
from ..records.privacy import is_placeholder, places
from ..records.results import COMPUTING, Run, load
from ..records.source_digest import class_paths, same
from ..records.writer import utc_now

__all__ = ["LEVELS", "SEEDS", "Verdict", "filled", "verify"]

LEVELS = {"bits": "every answer and every metric is the same", "counts": "every count is the same",
          "spread": "within the spread over seeds", "not": "does not agree"}
SEEDS = 4  # further seeds whose spread is asked where the answers differ
# What decides the last bit of a run on a CPU.
_DECIDES = ("platform", "processor", "device", "threads", "ops_backend", "code_digest")
_COMPUTE = ("device", "devices", "strategy", "threads", "workers")


@dataclass
class Verdict:
    """How far a record agrees with running it again: one of :data:`LEVELS`, and why; ``record``: its digest."""

    run: str
    record: str
    level: str = "not"
    reasons: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    checked: str = field(default_factory=utc_now)

    @property
    def agrees(self) -> bool:
        return self.level != "not"

    def to_json(self) -> dict[str, Any]:
        """A report, as `cl-bench leaderboard --verified` reads it."""
        return {"format": 1, "agrees": self.agrees, **asdict(self)}


def filled(config: Mapping[str, Any], words: Sequence[str], foreign: bool) -> dict[str, Any]:
    """A record's config with what its record does not tell, by options: places, files of code, device and threads.

    Args:
        foreign: the record comes from an archive; then no place and no code that it names itself is used.

    Raises:
        UserError: for an option that would make another run of it, and a place that is not given.
    """
    from .arguments import options_of
    from .config import _KINDS, parse
    from .task import recorded

    made, compute, given = copy.deepcopy(dict(recorded(config))), list[str](), set[str]()
    for path, word in options_of(words, _KINDS):
        option = f"--{'.'.join(path)}"
        if path[0] == "compute" and path[-1] in _COMPUTE:
            compute += [option, str(word)]
            continue
        where, key = _at(made, path)
        if where is None:
            raise UserError(f"a record is run as it stands, and {option} would change it; only places and "
                            f"{', '.join(f'--{c}' for c in _COMPUTE)} may be given.")
        where[key] = str(word)
        given.add(str(word))
    for at, value in places(made):
        name = ".".join(step for step in at if step != "init_args")
        if value not in given and (is_placeholder(value) or foreign):
            raise UserError(f"the record does not tell where {name} lies; give --{name} PLACE.")
    for root in ("scenario", "method", "backbone"):
        for code in class_paths(made.get(root)):
            if is_placeholder(code):
                raise UserError(f"the code {code.removeprefix('<place>')} is not in the record; give --{root} FILE.py:CLASS.")
            if foreign and code not in given and not _registered(code):
                raise UserError(f"{code} is registered by nothing that is installed here; install what brings it, or give "
                                f"--{root} FILE.py:CLASS.")
    return parse(compute, made)


def _at(config: dict[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any] | None, str]:
    """Where an option stands that the record leaves open: (mapping, key); (None, "") where it leaves none open there."""
    here: Any = config
    for step in path[:-1]:
        here = _inside(here).get(step)
    here = _inside(here) if isinstance(here, dict) else {}
    part = here.get(path[-1])
    if isinstance(part, dict) and is_placeholder(part.get("class_path")):
        return part, "class_path"
    opened = {tuple(s for s in at if s != "init_args") for at, _ in places(config)}
    return (here, path[-1]) if path in opened else (None, "")


def _inside(part: Any) -> dict[str, Any]:
    found = part.get("init_args", part) if isinstance(part, dict) else {}
    return found if isinstance(found, dict) else {}


def _registered(path: str) -> bool:
    from ..registry import entries
    from .parts import ROOTS

    return any(entry.target.replace(":", ".") == path for group in ROOTS.values() for entry in entries(group).values())


def verify(run: Run, config: Mapping[str, Any], runs: Path, *, seeds: int = SEEDS) -> Verdict:
    """Run the record's ``config`` (of :func:`filled`) again into ``runs`` and compare.

    The parts of the record must fit each other and its protocol must be what its config makes here. Where code, packages,
    processor and thread count are those of the record, its answers must be the same. Elsewhere, where they are not, as many
    further ``seeds`` are run, and every metric that the record claims must lie where another run would with 95 %
    probability (all metrics together).
    """
    arrays = run.arrays()
    verdict = Verdict(run.id, record_digest(run.record, arrays))
    if run.status != "finished":
        verdict.reasons = [f"the run is {run.status}; only finished ones can be verified"]
        return verdict
    wrong = contradictions(run, arrays)
    if uncounted(run, arrays):
        wrong.append("it keeps no predictions, so its counts cannot be counted again")
    from ..engine.protocol import fingerprint
    from .config import plan_from

    plan = plan_from({**config, "checkpoint": False})
    wrong = wrong or _other(run, plan.names, config, fingerprint(plan))
    if wrong:
        verdict.reasons = wrong
        return verdict
    again = _again(plan, runs, run)
    verdict.environment = {key: value for key, value in again.record["environment"].items() if key != "git"}
    verdict.level = _level(run, again)
    if verdict.agrees:
        return verdict
    before, now = run.record.get("environment") or {}, again.record["environment"]
    shared = [(c.get("compute") or {}).get("devices", 1) for c in (config, run.record["config"])]
    if shared[0] == shared[1] and _same_machine(before, now) and same(run.source_digest, again.source_digest):
        verdict.reasons = ["code, packages, processor and thread count are the record's, and the answers are not",
                           *_apart(run, again)]
        return verdict
    differs = [k for k in _DECIDES if before.get(k) != now.get(k)] + [
        p for p in COMPUTING if (before.get("packages") or {}).get(p) != now["packages"].get(p)]
    if not same(run.source_digest, again.source_digest):
        differs.append("the method's code")
    others = [_again(plan_from({**config, "checkpoint": False, "seed": run.seed + 1 + k}), runs, run) for k in range(seeds)]
    verdict.reasons = _outside(run, [again, *others])
    if not verdict.reasons:
        verdict.level = "spread"
        verdict.reasons = [f"other than the record's here: {', '.join(differs) or 'nothing that is recorded'}"]
    return verdict


def _again(plan: Any, runs: Path, run: Run) -> Run:
    from .processes import execute

    try:
        return load(execute(plan, runs))
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{run.id} cannot be run again: {told(fault)}.") from fault


def _other(run: Run, names: Mapping[str, Any], config: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How the record's protocol and names differ from what its config makes here."""
    told_, made = run.record["fingerprint"], here
    fields = told_.get("fields") or {}
    out = [f"the protocol's {key} is {_brief(fields.get(key))} in the record and {_brief(made['fields'].get(key))} here"
           for key in sorted({*fields, *made["fields"]}) if fields.get(key) != made["fields"].get(key)]
    if not out and (told_["id"], told_.get("name", made["name"])) != (made["id"], made["name"]):
        out.append(f"the protocol is {told_['id']} {told_.get('name')} in the record and {made['id']} {made['name']} here")
    for root in ("scenario", "method", "backbone"):
        for key in ("name", "label"):
            before, now = (run.record.get(root) or {}).get(key), names[root].get(key)
            if before != now:
                out.append(f"the {root} is called {_brief(before)} and its config makes {_brief(now)}")
    if run.seed != config["seed"]:
        out.append(f"the seed is {run.seed} and that of its config {config['seed']}")
    return out


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


def _level(run: Run, again: Run) -> str:
    counts = run.matrix.to_json() == again.matrix.to_json() and _counted(run) == _counted(again)
    if not counts:
        return "not"
    mine, other = run.arrays(), again.arrays()
    answers = mine.keys() == other.keys() and all(np.array_equal(mine[k], other[k]) for k in mine)
    return "bits" if answers and run.record["metrics"] == again.record["metrics"] else "counts"


def _counted(run: Run) -> list[Any]:
    return [(e.name, e.domain, e.visit, e.correct, e.total) for e in run.stream.entries]


def _same_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    packages = before.get("packages") or {}
    return (str(now["device"]) == "cpu" and all(before.get(k) is not None and before.get(k) == now[k] for k in _DECIDES)
            and all(packages.get(p) == now["packages"].get(p) for p in COMPUTING))


def _apart(run: Run, again: Run) -> list[str]:
    claimed, made = run.metrics, again.metrics
    return [f"{name} is {claimed[name]:.2f} in the record and {made[name]:.2f} here" for name in _asked(run)
            if claimed.get(name) is not None and made.get(name) is not None and claimed[name] != made[name]]


def _asked(run: Run) -> list[str]:
    """The metrics that tables of this kind of run show, costs aside."""
    from ..numbers.metrics import all_metrics

    return [name for name, m in all_metrics().items() if run.kind in m.shown and m.of is not None and m.higher is not None]


def _outside(run: Run, made: Sequence[Run]) -> list[str]:
    """Metrics outside of where one more run would lie (prediction interval of Student's t, Bonferroni over the metrics)."""
    from scipy.stats import t

    names = [name for name in _asked(run) if run.metrics.get(name) is not None]
    sizes = [n for n in run.matrix.total.ravel().tolist() if n] + [e.total for e in run.stream.entries if e.total]
    least = 100.0 / min(sizes, default=1)  # one answer in every test set is no difference between runs
    out = []
    for name in names:
        values = [v for r in made if (v := r.metrics.get(name)) is not None]
        n, claimed = len(values), run.metrics[name]
        if claimed is None or n == 0:
            out.append(f"{name} is {claimed} in the record and not measured here")
            continue
        factor = float(t.ppf(1 - 0.025 / len(names), n - 1)) * math.sqrt(1 + 1 / n) if n > 1 else 0.0
        width = max(least, factor * float(np.std(values, ddof=1))) if n > 1 else least
        if abs(claimed - float(np.mean(values))) > width:
            out.append(f"{name} is {claimed:.2f} in the record and {np.mean(values):.2f} ± {width:.2f} here, over {n} "
                       f"seed{'s' if n > 1 else ''}")
    return out
