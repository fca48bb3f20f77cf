"""A run as it is asked for, and the fingerprint of what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..backbones import Backbone
from ..data.digest import digest_of
from ..errors import UserError
from ..heads import Head
from ..identity import is_place, normal, protocol_id
from ..method import Method
from ..scenario import Scenario
from .compute import Compute
from .layout import with_layout
from .source_training import SourceRecipe

__all__ = ["PROTOCOL_VERSION", "Plan", "check_needs", "fingerprint", "head_fits", "needs_source", "protocol_name", "unsuited"]

PROTOCOL_VERSION = 1  # raised when the harness's meaning of a number changes
METRICS = "accuracy of counts; forgetting since best and since learned; online error"
SEED_POLICY = "one seed per run names every draw by its position"


@dataclass
class Plan:
    """Everything a run is made of, built and fitting together; ``config`` is the same as plain data, enough to build it again.

    Attributes:
        build: backbone -> method; ``method`` is its class.
        compute: with the layout that ``auto`` stands for on this backbone in its place.
        checkpoint: keep what it takes to resume; ``checkpoint_every``: seconds between two checkpoints inside of one step,
            at least (writing them takes at most a twentieth of a run).
        tuning: the search that chose the settings, for the record.
        names: what the record calls them: {"scenario": {"name", "class_path", "args"}, "method": ..., "backbone": ...}.

    Raises:
        UserError: where the scenario does not give what the method needs.
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
    checkpoint_every: float = 10.0
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_needs(self.method, self.scenario, self.names)
        self.compute = with_layout(self.compute, self.backbone)
    tuning: dict[str, Any] = field(default_factory=dict)


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What two runs must share to stand in one table: ``id`` (a hash, 12 hex digits), ``name`` (the same to read) and
    ``fields``. No field holds a place: the same files in another folder are the same protocol.

    Raises:
        UserError: where nothing could answer for the classes of a stream.
    """
    s = plan.scenario
    trained = needs_source(plan)
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
        "source_recipe": asdict(plan.recipe) if trained else None,
        "metrics": METRICS,
        "seed_policy": SEED_POLICY,
        **{f"compute.{k}": v for k, v in plan.compute.arithmetic().items()},
        **{f"scenario.{k}": v for k, v in s.protocol().items()},
    }
    if trained and s.source is not None:
        fields["source_data"] = digest_of(s.source.data)
    fields = {k: normal(v) for k, v in fields.items() if not is_place(v)}
    return {"id": protocol_id(fields), "name": protocol_name(fields), "fields": fields}


def protocol_name(fields: Mapping[str, Any]) -> str:
    """A protocol in a few words, from the fields of its fingerprint: ``split_digits B0-Inc2 seen natural glyph_vit@3f0a41``.

    It need not be unique, the id is; equal fields give equal names.
    """
    sizes = fields.get("scenario.increments")
    split = None
    if sizes:
        later = sizes[1] if len(sizes) > 1 else sizes[0]
        split = f"B{0 if sizes[0] == later else sizes[0]}-Inc{later}"
    order = fields.get("scenario.order_policy")
    order = "drawn" if isinstance(order, str) and "RandomState" in order else order
    streams = fields.get("scenario.domains") is not None or fields.get("scenario.arrival") is not None
    parts = [
        fields["scenario"], split, fields["answers"], order, streams and f"batch {fields['test_batch_size']}",
        fields["reset"] != "never" and f"reset per {fields['reset']}",
        fields["stream_speed"] and f"speed {fields['stream_speed']:g}",
        fields["label_delay"] and f"labels {fields['label_delay']} late",
        fields["max_epochs"] and f"{fields['max_epochs']} pass" + ("es" if fields["max_epochs"] > 1 else ""),
        *(f"{k.removeprefix('compute.')} {v}" for k, v in fields.items() if k.startswith("compute.")),
        fields["source_recipe"] and f"source {fields['source_recipe']['epochs']} epochs",
        f"{fields['backbone']}@{str(fields['weights'])[:6]}",
    ]  # fmt: skip
    return " ".join(str(part) for part in parts if part)


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


def unsuited(plan: Plan) -> list[str]:
    """Sentences where the weights cannot know the scenario's kind of image, so that its numbers say little about methods."""
    name, info = plan.names["backbone"]["name"], plan.backbone.info
    if plan.scenario.subject and info.get("knows") == "letters":
        return [f"The weights of {name} know letters alone, and these are {plan.scenario.subject}: compare methods on weights "
                "that were trained on such images (timm_model, torchvision_model, cifar_resnet)."]
    return []


def needs_source(plan: Plan) -> bool:
    """Whether a classifier must be trained on the scenario's source before its stream.

    Raises:
        UserError: where the weights bring no classifier for the stream's classes and there is no source to train one on.
    """
    if head_fits(plan.backbone, plan.scenario) or (plan.backbone.reads_names and plan.scenario.space.names):
        return False
    if plan.scenario.source is not None:
        return True
    own = plan.method.make_head is not Method.make_head or plan.backbone.reads_names
    if own or len(plan.scenario.experiences()):
        return False
    name, known = plan.names["backbone"]["name"], plan.backbone.classes
    why = f"backbone {name} brings no classifier"
    if plan.backbone.head is not None:
        says = "names its classes" if known else "does not say which classes it is for"
        why = f"the classifier of backbone {name} {says} and they are not, by name, the stream's"
    raise UserError(
        f"nothing would answer on scenario {plan.names['scenario']['name']}: {why}, and the scenario gives no source to train "
        "one on; use weights for these classes, tell the scenario what its classes are called (class_list, label_map) or "
        "where its source is, or give the method a make_head of its own."
    )


def head_fits(backbone: Backbone, scenario: Scenario) -> bool:
    """Whether the classifier that came with the weights answers for the scenario's classes: they are its own, by name.

    A scenario that learns never starts from one.
    """
    if backbone.head is None or len(scenario.experiences()):
        return False
    if isinstance(backbone.head, Head):
        return backbone.head.can_answer(scenario.space)
    return backbone.answers_for(scenario.space.ids, scenario.known_as)
