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
from .config import named, preflight
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
        from ..types import Experience, TestSet

        sizes, asked = cls(), sum(len(test.data) for test in scenario.test_sets())
        sizes.source = len(scenario.source.data) if scenario.source is not None else 0
        for step in scenario.timeline():
            if sizes.image is None and isinstance(step, (TestSet, Experience)):
                sizes.image = tuple(getattr(step.data[0][0], "shape", ())) or None
            if isinstance(step, TestSet):
                sizes.streamed += len(step.data)  # type: ignore[arg-type]
            elif isinstance(step, Experience):
                sizes.learned += len(step.data)  # type: ignore[arg-type]
                sizes.measured += asked
        return sizes


def _text(part: Any) -> str:
    return json.dumps(plain(part), sort_keys=True)


class Rehearsal:
    """:func:`preflight` for many configs: each scenario is walked and each method built, once, on the CPU. Files that are
    missing, splits that are impossible and options that a constructor refuses show before the first run."""

    def __init__(self, elsewhere: bool = False) -> None:
        """elsewhere: the runs go to other machines, whose devices are not looked for here."""
        self.elsewhere = elsewhere
        self.seen: set[str] = set()
        self.backbones: dict[str, Any] = {}
        self.sizes: dict[str, Sizes] = {}

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Raises UserError with the sentence that the run itself would end with."""
        if self._new("preflight", {**config, "seed": 0}):
            preflight(config, here=not self.elsewhere)
        if self._new("scenario", config["scenario"]):
            self.sizes[_text(config["scenario"])] = Sizes.of(make(config["scenario"], ROOTS["scenario"]))
        if self._new("method", [config["backbone"], config["method"]]):
            self._build(config)

    def size(self, config: Mapping[str, Any]) -> Sizes:
        """What a config that was rehearsed goes through."""
        return self.sizes.get(_text(config["scenario"]), Sizes())

    def _new(self, kind: str, part: Any) -> bool:
        key = kind + _text(part)
        return key not in self.seen and not self.seen.add(key)  # type: ignore[func-returns-value]

    def _build(self, config: Mapping[str, Any]) -> None:
        key = _text(config["backbone"])
        if key not in self.backbones:
            self.backbones = {key: make(config["backbone"], ROOTS["backbone"])}  # one at a time in memory
        try_method(make(config["method"], ROOTS["method"]), self.backbones[key], named(config, "method")["label"])


def try_method(build: Callable[[Any], Any], backbone: Any, label: str) -> None:
    """Build a method on a copy of ``backbone`` for nothing but to see that its constructor takes its options.

    Raises:
        UserError: with what the constructor says.
    """
    from ..engine.seeding import seeded

    with seeded(0):
        try:
            build(copy.deepcopy(backbone))
        except UserError:
            raise
        except (Exception, SystemExit) as fault:
            why = fault if isinstance(fault, (TypeError, ValueError)) else told(fault)
            raise UserError(f"method {label} cannot be built: {' '.join(str(why).split())}.") from fault


def sources(config: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Of each part of a run: the digest of its source, and whether all of it came with cl-bench."""
    classes = {root: [class_of(path) for path in class_paths(config[root])] for root in ROOTS}
    return {root: (source_digest(*parts), all(map(built_in, parts))) for root, parts in classes.items()}
