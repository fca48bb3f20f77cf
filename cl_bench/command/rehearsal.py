"""What can be found wrong with many runs before the first of them starts, and which code they would run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError, told
from ..records.results import plain
from ..records.source_digest import built_in, class_paths, source_digest
from .config import _named, preflight
from .parts import ROOTS, class_of, make

__all__ = ["Rehearsal", "sources", "try_method"]


class Rehearsal:
    """:func:`preflight` for many configs: each scenario is walked and each method built, once, on the CPU. Files that are
    missing, splits that are impossible and options that a constructor refuses show before the first run."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.backbones: dict[str, Any] = {}

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Raises UserError with the sentence that the run itself would end with."""
        if self._new("preflight", {**config, "seed": 0}):
            preflight(config)
        if self._new("scenario", config["scenario"]):
            scenario = make(config["scenario"], ROOTS["scenario"])
            scenario.test_sets()
            for _ in scenario.timeline():
                pass
        if self._new("method", [config["backbone"], config["method"]]):
            self._build(config)

    def _new(self, kind: str, part: Any) -> bool:
        key = kind + json.dumps(plain(part), sort_keys=True)
        return key not in self.seen and not self.seen.add(key)  # type: ignore[func-returns-value]

    def _build(self, config: Mapping[str, Any]) -> None:
        key = json.dumps(plain(config["backbone"]), sort_keys=True)
        if key not in self.backbones:
            self.backbones = {key: make(config["backbone"], ROOTS["backbone"])}  # one at a time in memory
        try_method(make(config["method"], ROOTS["method"]), self.backbones[key], _named(config, "method")["label"])


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
