"""The classifier that a test stream starts from: the one in the weights, or one trained on the scenario's source."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..backbones import Backbone
from ..heads import LinearHead
from ..method import Method
from ..ranges import Amount, Count, Whole, bounded
from ..scenario import Scenario
from ..types import Experience
from .compute import Compute, resolve_device
from .fit import fit
from .seeding import derive

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


def ready_backbone(backbone: Backbone, scenario: Scenario, recipe: SourceRecipe, compute: Compute, seed: int, *,
                   fits: bool, cache: Path) -> Backbone:
    """A copy of ``backbone`` with the head that a run starts from.

    Its own head where that answers for the scenario (``fits``); else none, for a scenario with experiences; else one
    trained on the scenario's source with the run's seed. Training is kept in ``cache`` under a hash of all that
    determines it, so that the methods of a table start from the same bits and pay for them once.
    """
    ready = copy.deepcopy(backbone)
    if fits:
        return ready
    ready.head = None
    source = scenario.source
    if source is None or len(scenario.experiences()):
        return ready
    device = resolve_device(compute.device)
    file = cache / f"source-{_key(backbone, source, recipe, compute, device, seed)}.safetensors"
    head = LinearHead(ready.num_features)
    head.grow(source.space)
    if file.is_file():
        state = load_file(file)
    else:
        trained = _SourceTraining(ready, lr=recipe.lr, epochs=recipe.epochs, batch_size=recipe.batch_size)
        fit(trained, source, replace(compute, optimizers="torch"), derive(seed, "source"))
        pairs: dict[str, torch.nn.Module] = {"backbone": trained.backbone, "head": trained.head}
        state = {f"{k}.{name}": v.detach().cpu().contiguous() for k, m in pairs.items() for name, v in m.state_dict().items()}
        cache.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{uuid.uuid4().hex[:8]}")
        save_file(state, fresh)
        os.replace(fresh, file)
    ready.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("backbone.")})
    head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})
    ready.head = head
    return ready.eval()


def _key(backbone: Backbone, source: Experience, recipe: SourceRecipe, compute: Compute, device: torch.device,
         seed: int) -> str:
    data = source.data
    facts = {
        "weights": backbone.info["sha256"], "preprocess": backbone.info["preprocess"], "recipe": asdict(recipe),
        "data": data.digest() if hasattr(data, "digest") else repr(source.name), "size": len(data),  # type: ignore[arg-type]
        "space": source.space.ids, "seed": seed, "device": str(device), "threads": compute.threads,
        "precision": compute.precision, "torch": torch.__version__, "augment": repr(source.augment),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
