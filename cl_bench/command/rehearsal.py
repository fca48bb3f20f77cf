"""What can be found wrong with many runs before the first of them starts, and which code they would run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, told
from ..records.results import plain
from ..records.source_digest import built_in, class_paths, source_digest
from .config import plan_from
from .parts import ROOTS, class_of, make

__all__ = ["Rehearsal", "Sizes", "sources", "try_method"]


@dataclass
class Sizes:
    """How many images a scenario teaches, asks for in its stream, asks for again after every step that is learned, and has
    as its source; ``image``: the shape of one."""

    learned: int = 0
    streamed: int = 0
    measured: int = 0
    source: int = 0
    image: tuple[int, ...] | None = None

    @classmethod
    def of(cls, scenario: Any) -> Sizes:
        """Of one scenario, walked from its start to its end."""
        asked = sum(len(test.data) for test in scenario.test_sets())
        for _ in scenario.timeline():
            pass
        learned, streamed = scenario.experiences(), scenario.stream()
        first = next(iter([*learned, *streamed]), None)
        return cls(
            learned=sum(len(e.data) for e in learned), streamed=sum(len(t.data) for t in streamed),
            measured=asked * len(learned), source=len(scenario.source.data) if scenario.source is not None else 0,
            image=None if first is None else tuple(getattr(first.data[0][0], "shape", ())) or None)


def _text(part: Any) -> str:
    return json.dumps(plain(part), sort_keys=True)


class Rehearsal:
    """Many configs, each planned as its run will be, once whatever its seed: each scenario is walked and each method built, on
    the CPU. Missing files, impossible splits and options that a constructor refuses show before the first run."""

    def __init__(self, elsewhere: bool = False, known: Callable[[Mapping[str, Any]], bool] = lambda config: False) -> None:
        """elsewhere: the runs go to other machines, whose devices are not looked for here; known: whether a config was run
        earlier, so that its protocol is asked for (:meth:`protocol`)."""
        self.elsewhere, self.known = elsewhere, known
        self.protocols: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, dict[str, Any]] = {}
        self.seen: set[str] = set()
        self.held: dict[str, tuple[str, Any]] = {}  # the last scenario and the last backbone: one at a time in memory
        self.sizes: dict[str, Sizes] = {}

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Raises UserError with the sentence that the run itself would end with."""
        known = self.known(config) and _text({**config, "seed": 0}) not in self.protocols
        if not self._new("run", {**config, "seed": 0}) and not known:
            return
        from ..engine.compute import Compute, device_for

        if not self.elsewhere:
            device_for(Compute(**dict(config.get("compute") or {})))
        plan = plan_from(config, scenario=self._made(config, "scenario"), backbone=self._made(config, "backbone"))
        if known:
            self.protocols[_text({**config, "seed": 0})] = self._fields(plan, config)
        if self._new("scenario", config["scenario"]):
            self.sizes[_text(config["scenario"])] = Sizes.of(plan.scenario)
        parts = [config["backbone"], config["method"], *([config["scenario"]] if plans(plan.method) else [])]
        if self._new("method", parts):
            try_method(plan)

    def protocol(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the protocol that a known config has today: of the data and weights that lie there now."""
        return self.protocols[_text({**config, "seed": 0})]

    def _fields(self, plan: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        """Of a plan, once for all methods that ask the same: all of the data is read for it."""
        from ..engine.protocol import fingerprint, needs_source

        key = _text([needs_source(plan), *({**config, "method": None, "seed": 0, "label": None}).items()])
        if key not in self.asked:
            self.asked[key] = json.loads(_text(fingerprint(plan)["fields"]))
        return self.asked[key]

    def size(self, config: Mapping[str, Any]) -> Sizes:
        """What a config that was rehearsed goes through."""
        return self.sizes.get(_text(config["scenario"]), Sizes())

    def _new(self, kind: str, part: Any) -> bool:
        key = kind + _text(part)
        return key not in self.seen and not self.seen.add(key)  # type: ignore[func-returns-value]

    def _made(self, config: Mapping[str, Any], root: str) -> Any:
        key, (held, part) = _text(config[root]), self.held.get(root, ("", None))
        if key != held:
            part = make(config[root], ROOTS[root])
            self.held[root] = key, part
        return part


def plans(method: Any) -> bool:
    """Whether a method asks how many experiences there will be."""
    from ..method import Method

    return getattr(method, "plan", None) is not Method.plan


def try_method(plan: Any) -> None:
    """Build a plan's method on a copy of its backbone for nothing but to see that its constructor takes its options, and that
    these fit the scenario.

    Raises:
        UserError: with what the constructor or ``plan`` says.
    """
    from ..engine.seeding import seeded

    with seeded(0):
        try:
            method = plan.build(copy.deepcopy(plan.backbone))
            if plans(type(method)):
                method.plan(len(plan.scenario.experiences()))
        except UserError:
            raise
        except (Exception, SystemExit) as fault:
            why = fault if isinstance(fault, (TypeError, ValueError)) else told(fault)
            raise UserError(f"method {plan.names['method']['label']} cannot be built: {' '.join(str(why).split())}.") from fault


def sources(config: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Of each part of a run: the digest of its source, and whether all of it came with cl-bench."""
    classes = {root: [class_of(path) for path in class_paths(config[root])] for root in ROOTS}
    return {root: (source_digest(*parts), all(map(built_in, parts))) for root, parts in classes.items()}
