"""Which parameters a test-time method adapts: NORM, NORM-SAR and ALL of the field's benchmarks."""

from __future__ import annotations

import re

from torch import nn

from .norm import norm_layers

__all__ = ["all_parameters", "norm_parameters", "shallow_norm_parameters"]


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """NORM: weight and bias of all normalisation layers."""
    return _affine(norm_layers(model))


def shallow_norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """NORM-SAR: norm layers outside the fourth stage of a ResNet, the last quarter of a transformer's blocks, and its
    final norm.

    The original (mr-eggplant/SAR) matches timm's names (``layer4``, ``blocks.9``-``blocks.11``, ``norm``); here it is
    a rule on indices, so that other namings and depths do not silently change the method: stage 4 of 4, the last 3 of
    12 blocks. Three-stage CIFAR networks have no fourth stage and keep all layers, as in the original.
    """
    layers = norm_layers(model)
    deep = _deep_prefixes(model)
    return _affine({n: m for n, m in layers.items() if not any(n == d or n.startswith(d + ".") for d in deep)})


def all_parameters(model: nn.Module) -> list[nn.Parameter]:
    """ALL: every parameter called ``weight`` or ``bias`` (class tokens and position embeddings stay as they are)."""
    return [p for name, p in model.named_parameters() if name.rpartition(".")[2] in ("weight", "bias")]


def _affine(layers: dict[str, nn.Module]) -> list[nn.Parameter]:
    found = [getattr(m, leaf, None) for m in layers.values() for leaf in ("weight", "bias")]
    return list(dict.fromkeys(p for p in found if isinstance(p, nn.Parameter)))


def _deep_prefixes(model: nn.Module) -> list[str]:
    """Names of the modules that hold a network's deepest layers."""
    names = dict(model.named_modules())
    stages: dict[str, list[str]] = {}  # parent -> its numbered stages ("layer1".."layer4")
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if re.fullmatch(r"layer\d+", leaf):
            stages.setdefault(parent, []).append(name)
    deep = [found[3] for found in stages.values() if len(found) == 4]
    for name, module in names.items():
        leaf = name.rpartition(".")[2]
        children = [child for child in (f"{name}.{c}" if name else c for c, _ in module.named_children()) if child in names]
        if leaf in ("stages", "layers") and len(children) == 4 and not _blocks(names, children):
            deep.append(children[3])
        elif _blocks(names, children) and not any(name.startswith(d + ".") for d in deep):
            deep += children[len(children) - round(len(children) / 4) :]
            owner = name.rpartition(".")[0]  # the norm after the last block stands beside the blocks
            deep += [n for n in _siblings(names, owner) if n.rpartition(".")[2] in ("norm", "fc_norm", "ln", "ln_post")]
    return deep


def _blocks(names: dict[str, nn.Module], children: list[str]) -> bool:
    """Whether these are transformer blocks: two or more modules of one class that hold LayerNorms themselves."""
    if len(children) < 2 or len({type(names[c]) for c in children}) != 1:
        return False
    return all(sum(isinstance(m, nn.LayerNorm) for m in names[c].children()) >= 2 for c in children)


def _siblings(names: dict[str, nn.Module], owner: str) -> list[str]:
    found = [n for n in names if n.rpartition(".")[0] == owner and n]
    outer = owner.rpartition(".")[0]  # open_clip keeps ln_post one level above the blocks' owner
    return found + [n for n in names if n.rpartition(".")[0] == outer and n and owner]
