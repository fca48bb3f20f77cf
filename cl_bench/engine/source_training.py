"""The classifier that a test stream starts from: the one in the weights, or one trained on the scenario's source."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..backbones import Backbone
from ..heads import LinearHead
from ..method import Method
from ..ranges import Amount, Count, Whole, bounded
from ..records.source_digest import UNKNOWN
from ..scenario import Scenario
from ..types import Experience
from .compute import Compute, resolve_device
from .content import data_digest, object_digest, tensors_digest
from .fit import fit
from .kept import Kept
from .seeding import derive
from .trunk import network_code

__all__ = ["SourceRecipe", "ready_backbone"]


@bounded
@dataclass(frozen=True)
class SourceRecipe:
    """How a source classifier is trained where the weights bring none: AdamW on all parameters, cross-entropy.

    Attributes:
        epochs: passes over the source data.
        lr: learning rate.
        batch_size: images per step.
    """

    epochs: Whole = 10
    lr: Amount = 1e-3
    batch_size: Count = 64


class _SourceTraining(Method):
    """The working default of a method, trained for nothing but the source."""


def answers_by_name(backbone: Backbone, scenario: Scenario) -> bool:
    """Whether class names alone make a classifier of ``backbone``: it has a text side, and the classes have names."""
    return backbone.reads_names and bool(scenario.space.names)


def ready_backbone(backbone: Backbone, scenario: Scenario, recipe: SourceRecipe, compute: Compute, seed: int, *,
                   fits: bool, cache: Path) -> Backbone:
    """A copy of ``backbone`` with the head that a run starts from.

    Its own head where that answers for the scenario (``fits``); else none, for a scenario with experiences; else one
    trained on the scenario's source with the run's seed, whose ``info["trained"]`` holds the digest of its tensors.
    Training is kept in ``cache`` under a hash of all that determines it, so that the methods of a table start from the
    same bits and pay for them once; what is found there is used only if its digest is the one that was written.
    """
    ready = copy.deepcopy(backbone)
    if fits:
        return ready
    ready.head = None
    source = scenario.source
    if source is None or len(scenario.experiences()) or answers_by_name(ready, scenario):
        return ready
    kept = _kept(cache, ready, source, recipe, compute, seed)
    head = LinearHead(ready.num_features)
    head.grow(source.space)
    state, note = None if kept is None else kept.read(), ""
    if state is None:
        if kept is not None and kept.fault:
            note = f"the trained source in {kept.file.name} {kept.fault} and was trained again"
        trained = _SourceTraining(copy.deepcopy(ready), lr=recipe.lr, epochs=recipe.epochs, batch_size=recipe.batch_size)
        fit(trained, source, replace(compute, optimizers="torch"), derive(seed, "source"))
        pairs: dict[str, torch.nn.Module] = {"backbone": trained.backbone, "head": trained.head}
        state = {f"{k}.{name}": v.detach().cpu().contiguous() for k, m in pairs.items() for name, v in m.state_dict().items()}
        if kept is not None and (why := kept.write(state)):
            note = f"the trained source could not be kept in {kept.file.parent} ({why})"
    ready.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("backbone.")})
    head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})
    ready.head = head
    ready.info = {**ready.info, "trained": {"sha256": tensors_digest(state), "note": note}}
    return ready.eval()


def _kept(cache: Path, backbone: Backbone, source: Experience, recipe: SourceRecipe, compute: Compute,
          seed: int) -> Kept | None:
    """The file of one trained source; None where something that determines it cannot be told."""
    device, augment, code = resolve_device(compute.device), object_digest(source.augment), network_code(backbone)
    if augment is None or code == UNKNOWN:
        return None
    return Kept(cache, "source", {
        "backbone": [backbone.info["name"], backbone.info["args"]], "weights": tensors_digest(backbone.state_dict()),
        "preprocess": backbone.info["preprocess"], "recipe": asdict(recipe), "data": data_digest(source.data),
        "space": source.space.ids, "augment": augment, "seed": seed, "precision": compute.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "code": code,
    })
