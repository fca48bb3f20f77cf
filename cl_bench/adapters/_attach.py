"""Attaching adapters by name pattern, and the handle on all of them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError
from ..registry import find
from ._base import Adapter, BiasSite, LayerSite, Site, WeightSite
from ._low_rank import LowRankLinear

__all__ = ["FUSED4", "AdapterSet", "attach", "layer_names", "trunk_of"]

# The four linears of a timm block: ViT, Swin; ConvNeXt has the last two.
FUSED4 = r"(.*\.)?blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"

_THIRDS = {"q": 0, "k": 1, "v": 2}


def trunk_of(backbone: nn.Module) -> nn.Module:
    """The network whose layer names a pattern is matched against: a Backbone's ``model``, or the module itself."""
    model = getattr(backbone, "model", None)
    return model if isinstance(model, nn.Module) else backbone


def layer_names(backbone: nn.Module) -> dict[str, str]:
    """Layer names as they were before anything was attached, each with its name now."""
    names: dict[str, str] = {}
    for now, _ in trunk_of(backbone).named_modules():
        if now and not re.search(r"(^|\.)(parametrizations|bank)(\.|$)", now):
            names.setdefault(re.sub(r"\.layer(?=\.|$)", "", now) if _wrapped(backbone, now) else now, now)
    return names


def _wrapped(backbone: nn.Module, name: str) -> bool:
    module = trunk_of(backbone)
    for part in name.split("."):
        if isinstance(module, LayerSite):
            return True
        module = getattr(module, part)
    return False


class AdapterSet(nn.Module):
    """All adapters of one ``attach``, under names. The first set is called ``default`` and is in use.

    ``parameters()`` and ``state_dict()`` hold adapters only, keyed by site (dots written as slashes).
    """

    def __init__(self, kind: type[Adapter], settings: dict[str, Any]) -> None:
        super().__init__()
        # By name and not by object, so that a checkpoint can hold it.
        self.kind_path, self.settings = f"{kind.__module__}:{kind.__qualname__}", settings
        self.banks = nn.ModuleDict()
        self.sites: dict[str, Site] = {}
        self.layers: dict[str, nn.Module] = {}
        self.names: list[str] = []
        self.grams: dict[str, Tensor] = {}

    @property
    def kind(self) -> type[Adapter]:
        """The class of the adapters."""
        module, _, name = self.kind_path.partition(":")
        return getattr(importlib.import_module(module), name)

    # ------------------------------------------------------------------ banks
    def add(self, name: str) -> None:
        """One more adapter at every site, trainable, not yet in use.

        Raises:
            UserError: if the name is taken.
        """
        if name in self.names:
            raise UserError(f"there is already an adapter {name!r}; take another name.")
        for index, (at, site) in enumerate(self.sites.items()):
            if isinstance(site, WeightSite):
                gram = {"gram": self.grams[at]} if at in self.grams else {}
                weight = self.weight(at)
                parts = [self.kind(m, **gram, **self.settings).to(weight) for m in site.matrices(weight)]
                site.bank[name] = nn.ModuleList(parts)
            elif isinstance(site, LayerSite):
                made = self.kind(site.layer, index, len(self.sites), **self.settings)
                site.bank[name] = made.to(next(site.layer.parameters()))
            site.bank[name].train(self.layers[at].training)
        self.names.append(name)

    def weight(self, at: str) -> Tensor:
        """The frozen weight at a site, as the layer came."""
        return _original(self.layers[at], _tensor_of(self.layers[at]))

    def use(self, *names: str) -> None:
        """Let these take part from now on; their updates follow one another. None at all: the frozen backbone.

        Raises:
            UserError: for an unknown name, or several of a kind that wraps layers.
        """
        for name in names:
            if name not in self.names:
                raise UserError(f"no adapter is called {name!r}; there are {', '.join(self.names)}.")
        if len(names) > 1 and self.kind.level == "layer":
            raise UserError(f"{self.kind.__name__} wraps whole layers: use one adapter at a time.")
        for site in self.sites.values():
            site.active = list(names)

    @property
    def used(self) -> list[str]:
        """The adapters in use."""
        return list(next(iter(self.sites.values())).active)

    def train_only(self, *names: str) -> None:
        """Make these trainable and freeze the other adapters."""
        for name in self.names:
            for _, adapter in self.each(name):
                adapter.requires_grad_(name in names)

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        for site in self.sites.values():
            del site.bank[name]
            site.active = [n for n in site.active if n != name]
        self.names.remove(name)

    def each(self, name: str | None = None) -> Iterator[tuple[str, Adapter]]:
        """(site, adapter) of one name, or of all in use; with row groups a site comes once per group."""
        for at, site in self.sites.items():
            for n in site.active if name is None else [name]:
                for adapter in site.adapters(n):
                    yield at, adapter

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the backbone answers as if nothing were attached."""
        before = {at: site.enabled for at, site in self.sites.items()}
        for site in self.sites.values():
            site.enabled = False
        try:
            yield
        finally:
            for at, site in self.sites.items():
                site.enabled = before[at]

    # ------------------------------------------------------------------ training
    def aux_loss(self) -> Tensor:
        """What the adapters in use add to the loss: the sum over sites, or the mean where that is what was published."""
        parts = [adapter.aux_loss() for _, adapter in self.each()]
        if not parts:
            return torch.zeros(())
        return torch.stack(parts).mean() if self.kind.mean_loss else torch.stack(parts).sum()

    def after_backward(self) -> None:
        """Projections of gradients; call it between backward and the optimizer's step."""
        for _, adapter in self.each():
            adapter.after_backward()

    def after_step(self, step: int = 0, total: int = 0) -> None:
        """Proximal steps and projections; call it after every optimizer step. Kinds with a schedule (CoDyRA's threshold,
        AdaLoRA's budget) follow it where the number of the ``step`` (from 1) of ``total`` is said."""
        adapters = [adapter for _, adapter in self.each()]
        if total and adapters:
            self.kind.steer(adapters, step, total)
        for adapter in adapters:
            adapter.after_step()

    # ------------------------------------------------------------------ merging
    def delta(self, at: str, name: str | None = None) -> Tensor | None:
        """The update of the weight at site ``at`` (shape of the weight), None where the kind cannot be merged."""
        site = self.sites[at]
        if not isinstance(site, WeightSite) or not self.kind.mergeable:
            return None
        keep = site.active
        site.active = keep if name is None else [name]
        try:
            return site(self.weight(at)) - self.weight(at)
        finally:
            site.active = keep

    def deltas(self, name: str | None = None) -> dict[str, Tensor]:
        """The updates of all sites by the adapters in use (or ``name``), detached.

        Raises:
            UserError: for a kind that is no change of weights.
        """
        found = {at: self.delta(at, name) for at in self.sites}
        if not all(isinstance(delta, Tensor) for delta in found.values()):
            raise UserError(f"{self.kind.__name__} is no change of weights; there is nothing to combine.")
        return {at: delta.detach() for at, delta in found.items() if delta is not None}

    @torch.no_grad()
    def apply_(self, deltas: Mapping[str, Tensor]) -> None:
        """Add updates to the frozen weights, whatever they come from (:func:`cl_bench.adapters.combine`); adapters stay.

        Raises:
            UserError: for a site that is not here, or an update of another shape; nothing is changed then.
        """
        for at, delta in deltas.items():
            if at not in self.sites:
                raise UserError(f"there is no site {at!r} to update; there are {', '.join(list(self.sites)[:5])} ...")
            if delta.shape != self.weight(at).shape:
                raise UserError(f"the update of {at} is {tuple(delta.shape)} and its weight {tuple(self.weight(at).shape)}.")
        for at, delta in deltas.items():
            self.weight(at).add_(delta.to(self.weight(at)))

    def merge_(self, name: str | None = None) -> None:
        """Put the adapters in use (or ``name``) into the weights; afterwards they are no-ops that start from there.

        Raises:
            UserError: for a kind that is no change of weights.
        """
        if not self.kind.mergeable:
            raise UserError(f"{self.kind.__name__} cannot be merged into weights; keep it attached.")
        for at, site in self.sites.items():
            layer = self.layers[at]
            bias = _tensor_of(layer).replace("weight", "bias")
            for n in list(site.active) if name is None else [name]:
                assert isinstance(site, WeightSite)
                site.merge(n, self.weight(at), _original(layer, bias) if self.kind.moves_bias else None)


def attach(
    backbone: nn.Module,
    kind: str | type[Adapter],
    at: str,
    *,
    rows: Sequence[str] | None = None,
    grams: Mapping[str, Tensor] | None = None,
    freeze: bool = True,
    **settings: Any,
) -> AdapterSet:
    """Attach one adapter to every layer whose whole name matches ``at``, and freeze everything else.

    Args:
        backbone: a Backbone (names are its ``model``'s) or any module; changed in place.
        kind: a registered kind ("lora", ...; ``cl-bench list adapters``), ``module:Class``, or a subclass of Adapter.
        at: a regular expression that must match a layer's full name (``blocks\\.\\d+\\.attn\\.qkv``).
        rows: groups of a fused projection, each with an adapter of its own, from ``q``, ``k``, ``v``; other layers
            that match are adapted whole. None adapts a fused projection as one matrix, which is a different model.
        grams: for kinds that need it, per site the inputs' second moment (i, i), from :func:`input_grams`.
        freeze: False leaves ``requires_grad`` of the backbone as it is.
        settings: the kind's own keywords.

    Raises:
        UserError: if the pattern matches nothing, a matched layer has no weight, or settings do not fit the kind.
    """
    cls = find("cl_bench.adapters", kind) if isinstance(kind, str) else kind
    known = list(inspect.signature(cls.__init__).parameters)[2:]
    if unknown := [s for s in settings if s not in known]:
        raise UserError(f"{cls.__name__} has no setting {unknown[0]!r}; it takes {', '.join(known) or 'none'}.")
    trunk, names = trunk_of(backbone), layer_names(backbone)
    matched = _match(at, names)
    if cls.needs_gram and grams is None:
        raise UserError(f"{cls.__name__} is built from the inputs' statistics: pass grams=input_grams(...).")
    if freeze:
        trunk.requires_grad_(False)
    handle = AdapterSet(cls, dict(settings))
    for name in matched:
        site: Site
        if cls.level == "layer":
            parent, _, leaf = names[name].rpartition(".")
            owner = trunk.get_submodule(parent) if parent else trunk
            site = LayerSite(getattr(owner, leaf))
            handle.layers[name] = site.layer
            setattr(owner, leaf, site)
        else:
            handle.layers[name] = trunk.get_submodule(names[name])
            site = _on_weight(handle.layers[name], name, cls, rows)
        handle.sites[name] = site
        handle.banks[name.replace(".", "/")] = site.bank
    handle.grams = {n: g for n, g in (grams or {}).items() if n in handle.sites}
    handle.add("default")
    handle.use("default")
    return handle


def _match(at: str, names: Mapping[str, str]) -> list[str]:
    try:
        pattern = re.compile(at)
    except re.error as fault:
        raise UserError(f"at={at!r} is not a regular expression: {fault}.") from fault
    matched = [n for n in names if pattern.fullmatch(n)]
    if not matched:
        plain = re.sub(r"\\d\+|\[0-9\]\+", "0", at).replace("\\", "")
        near = difflib.get_close_matches(plain, names, n=4, cutoff=0.3) or list(names)[:4]
        raise UserError(f"at={at!r} matches no layer of this backbone; layers are called like {', '.join(near)}.")
    return matched


def _tensor_of(layer: nn.Module) -> str:
    """Which tensor of a layer is adapted: the packed projection of ``nn.MultiheadAttention``, else the weight."""
    return "in_proj_weight" if getattr(layer, "in_proj_weight", None) is not None else "weight"


def _original(layer: nn.Module, tensor: str) -> Tensor:
    """A tensor as it is without parametrizations."""
    held: Any = getattr(layer, "parametrizations", {})
    return held[tensor].original if tensor in held else getattr(layer, tensor)


def _on_weight(owner: nn.Module, name: str, cls: type[Adapter], rows: Sequence[str] | None) -> WeightSite:
    tensor = _tensor_of(owner)
    weight = getattr(owner, tensor, None)
    if not isinstance(weight, Tensor):
        raise UserError(f"{name} ({type(owner).__name__}) has no weight to adapt; match linear or convolution layers.")
    o = len(weight)
    groups = [(0, o)]
    if rows is not None and (tensor == "in_proj_weight" or name.endswith("qkv")):
        if unknown := [r for r in rows if r not in _THIRDS]:
            raise UserError(f"rows names {unknown}: use some of q, k, v.")
        groups = [(k * o // 3, (k + 1) * o // 3) for k in sorted(_THIRDS[r] for r in rows)]
    site = WeightSite(groups)
    if cls.moves_bias:
        bias = tensor.replace("weight", "bias")
        if getattr(owner, bias, None) is None:
            owner.register_parameter(bias, nn.Parameter(weight.new_zeros(o), requires_grad=False))
        parametrize.register_parametrization(owner, bias, BiasSite(site))
    if type(owner) is nn.Linear:
        owner.__class__ = LowRankLinear
    parametrize.register_parametrization(owner, tensor, site)
    return site
