"""What a network that nothing trains computes: its weights, settings and all that its modules hold, and whose code runs it."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..records.source_digest import UNKNOWN, code_of
from ..state import leaves, own
from .meter import Meter

__all__ = ["glance", "network_code", "trunk_digest"]

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_DRAWS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_MOST_OBJECTS = 100_000
_HELD = ("_parameters", "_buffers")
# Of a module's attributes: what is met by itself, or is told of in another way, or belongs to the one who remembers.
_ELSEWHERE = ("_modules", "_forward_hooks", "_forward_pre_hooks", "_non_persistent_buffers_set", "info", "forward_features")


class _Unclear(Exception):
    """Something that may not do the same twice, or has no end."""


# What an odd object of a user's may raise when it is looked into: then nothing is remembered, and the run goes on.
_UNTOLD = (_Unclear, TypeError, ValueError, RecursionError, AttributeError)


@dataclass
class _Walk:
    """A hash over values, and the classes and functions that were met."""

    hash: Any = field(default_factory=hashlib.sha256)
    code: dict[int, Any] = field(default_factory=dict)
    seen: dict[int, Any] = field(default_factory=dict)  # holds them, so that no other object gets an identity

    def name(self, target: Any) -> str:
        self.code[id(target)] = target
        return f"{getattr(target, '__module__', '')}.{target.__qualname__}"

    def add(self, key: str, value: Any) -> None:
        """A value under a name, with all that it holds."""
        if value is None or isinstance(value, _PLAIN):
            self.hash.update(f"{key} {value!r};".encode())
        elif isinstance(value, Tensor):
            lies = "" if value.is_contiguous() else f" {value.stride()}"  # other kernels, so other last bits
            self.hash.update(f"{key} {value.dtype} {tuple(value.shape)}{lies};".encode())
            self.hash.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif id(value) in self.seen:
            self.hash.update(f"{key} again;".encode())
        else:
            self.seen[id(value)] = value
            if isinstance(value, _DRAWS) or len(self.seen) > _MOST_OBJECTS:
                raise _Unclear(key)
            self.hash.update(f"{key} {self.inside(key, value)};".encode())

    def inside(self, key: str, value: Any) -> str:
        """What a value is called, its parts added before."""
        if isinstance(value, (type, BuiltinFunctionType)):
            return self.name(value)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self.all(key, [*cells, value.__defaults__, value.__kwdefaults__])
            return self.name(value)
        if isinstance(value, MethodType):
            self.add(key, value.__self__)
            return value.__name__
        if isinstance(value, functools.partial):
            self.all(key, [value.func, value.args, value.keywords])
        elif isinstance(value, np.ndarray):
            self.hash.update(np.ascontiguousarray(value).tobytes() + f"{value.dtype} {value.shape}".encode())
        elif isinstance(value, Mapping):
            self.all(key, [part for pair in value.items() for part in pair])
        elif isinstance(value, (list, tuple)):
            self.all(key, value)
        elif isinstance(value, (set, frozenset)):
            self.all(key, sorted(value, key=repr))
        else:
            state = own(value) if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
            slots = {k: getattr(value, k) for cls in type(value).__mro__ for k in getattr(cls, "__slots__", ())
                     if isinstance(k, str) and k != "__weakref__" and hasattr(value, k)}
            for name, part in sorted({**slots, **state}.items()):
                self.add(f"{key}.{name}", part)
        return self.name(type(value))

    def all(self, key: str, values: Iterable[Any]) -> None:
        for k, value in enumerate(values):
            self.add(f"{key}.{k}", value)


@dataclass
class _Glance(_Walk):
    """A walk that does not read tensors."""

    def add(self, key: str, value: Any) -> None:
        super().add(key, _as_it_lies(value) if isinstance(value, Tensor) else value)


def trunk_digest(backbone: Backbone) -> str | None:
    """sha256 over what a trunk computes: classes, settings, weights and buffers of its modules; None where it is trained, in
    training mode, draws at random, or something else hangs on it (hooks that are not the engine's, a forward of its own)."""
    walk = _Walk()
    if "forward_features" in backbone.__dict__ or "preprocess" in backbone.__dict__:
        return None
    if any(p.requires_grad for p in backbone.parameters()):  # told before anything is hashed
        return None
    walk.add("preprocess", backbone.info["preprocess"])
    for module in backbone.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        ours = all(isinstance(getattr(hook, "__self__", None), Meter) for hook in hooks)
        if module.training or "forward" in module.__dict__ or not ours:
            return None
    try:
        for name, module in backbone.named_modules():
            walk.hash.update(f"{name} {walk.name(type(module))};".encode())
            for key, value in sorted(own(module).items()):
                if key not in ("_modules", "training", "info"):
                    if any(t.requires_grad for t in leaves(value) if isinstance(t, Tensor)):
                        return None
                    walk.add(key, value)
    except _UNTOLD:
        return None
    return str(walk.hash.hexdigest())


def glance(backbone: Backbone) -> tuple[Any, ...] | None:
    """What :func:`trunk_digest` covers as cheaply as it can be compared within one process: settings as they are, tensors by
    where they lie, how often they were written to and their sizes (the 1-norm: a write through ``.data`` is not counted).
    Whoever remembers features asks before every look-up, for a method may lend the trunk prompts, scales or adapters while it
    answers. None: nothing to compare."""
    walk, tensors, told = _Glance(), list[Tensor](), list[Any]()
    try:
        for module in backbone.modules():
            told += [id(module), *map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))]
            for key, value in module.__dict__.items():
                if key in _HELD:
                    found = [t for t in value.values() if t is not None]
                    told += [x for t in found for x in _as_it_lies(t)]
                    tensors += found
                elif isinstance(value, _PLAIN) or value is None:
                    told += [key, value]
                elif key not in _ELSEWHERE and not (isinstance(value, dict) and not value):
                    walk.add(key, value)
                    tensors += [t for t in leaves(value) if isinstance(t, Tensor)]
        counted = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
        with torch.no_grad():
            sizes = tuple(float(n) for n in torch._foreach_norm(counted, 1)) if counted else ()
    except (*_UNTOLD, RuntimeError):  # tensors of a kind that has no place in memory or no norm
        return None
    return walk.hash.hexdigest(), tuple(told), sizes


def _as_it_lies(tensor: Tensor) -> tuple[Any, ...]:
    written = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), written, tensor.requires_grad, tuple(tensor.shape), tensor.stride()


def network_code(network: nn.Module, *others: Any) -> str:
    """Digest of the code that a network and other objects run (:func:`cl_bench.records.source_digest.code_of`): of the classes
    of its modules and of what these hold, functions too; ``unknown`` where some of it has no source, cannot be looked into or
    draws at random."""
    walk = _Walk()
    try:
        for module in network.modules():
            walk.name(type(module))
            for key, value in own(module).items():
                if key not in ("_modules", "_parameters", "_buffers"):
                    walk.add(key, value)
        for other in others:
            walk.name(type(other))
    except _UNTOLD:
        return UNKNOWN  # the modules after it were not looked into
    return code_of(walk.code.values())
