"""A run as it is asked for, and the fingerprint of what its numbers mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..backbones import Backbone
from ..errors import UserError
from ..method import Method
from ..records.results import plain
from ..scenario import Scenario
from .compute import Compute
from .source_training import SourceRecipe

__all__ = ["PROTOCOL_VERSION", "Plan", "check_needs", "fingerprint", "head_fits", "needs_source"]

PROTOCOL_VERSION = 1  # raised when the harness's meaning of a number changes


@dataclass
class Plan:
    """Everything a run is made of, built; ``config`` is the same as plain data, enough to build it again.

    Attributes:
        build: backbone -> method; ``method`` is its class, whose ``needs`` are checked before any work.
        names: what the record calls them: {"scenario": {"name", "class_path", "args"}, "method": ..., "backbone": ...}.
    """

    scenario: Scenario
    backbone: Backbone
    method: type[Method]
    build: Callable[[Backbone], Method]
    names: dict[str, dict[str, Any]]
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    recipe: SourceRecipe = field(default_factory=SourceRecipe)
    suite: str | None = None
    checkpoint: bool = True
    config: dict[str, Any] = field(default_factory=dict)


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What two runs must share to stand in one table, and its hash (12 hex digits)."""
    s = plan.scenario
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "scenario": plan.names["scenario"]["name"],
        "weights": plan.backbone.info["sha256"],
        "backbone": plan.names["backbone"]["name"],
        "preprocess": plan.backbone.info["preprocess"],
        "answers": s.answers,
        "reset": s.reset,
        "test_batch_size": s.test_batch_size,
        "max_epochs": s.max_epochs,
        "stream_speed": s.stream_speed,
        "label_delay": s.label_delay,
        "source_recipe": asdict(plan.recipe) if needs_source(plan) else None,
        "metrics": "accuracy of counts; forgetting since best and since learned; online error",
        "seed_policy": "one seed per run names every draw by its position",
        **{f"scenario.{k}": v for k, v in s.protocol().items()},
    }
    fields = plain(fields)
    text = json.dumps(fields, sort_keys=True)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:12], "fields": fields}


def check_needs(method: type[Method], scenario: Scenario, names: dict[str, dict[str, Any]]) -> None:
    """Refuse a method on a scenario that does not reveal what it needs.

    Raises:
        UserError: naming what is lacking.
    """
    lacking = method.needs - scenario.gives
    if lacking:
        raise UserError(
            f"method {names['method']['name']} needs {', '.join(sorted(lacking))}, which scenario "
            f"{names['scenario']['name']} does not give (it gives {', '.join(sorted(scenario.gives)) or 'nothing'}); "
            "choose another scenario or method."
        )


def needs_source(plan: Plan) -> bool:
    """Whether a classifier must be trained on the scenario's source before its stream."""
    return plan.scenario.source is not None and not head_fits(plan.backbone, plan.scenario)


def head_fits(backbone: Backbone, scenario: Scenario) -> bool:
    """Whether the classifier that came with the weights answers for the scenario's classes."""
    if backbone.head is None or len(scenario.experiences()):
        return False
    space, classes = scenario.space, backbone.classes
    if space.names and classes:
        return all(i < len(classes) and classes[i] == n for i, n in zip(space.ids, space.names, strict=True))
    weight = getattr(backbone.head, "weight", None)
    return weight is not None and max(space.ids) < len(weight)
