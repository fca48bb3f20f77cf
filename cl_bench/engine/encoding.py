"""A method's whole state as tensors and plain data: what it takes to go on, in a form that can be read without trust.

A value becomes a tree of plain data, and tensors by key. The tree knows tensors,
modules, optimizers, generators, label spaces and Python's plain containers; aliases stay aliases, so an optimizer goes
on holding the model's own parameters. Nothing is pickled: a file can name classes, but only modules and optimizers of
packages that the run itself uses, and no code of the file's choosing runs.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError
from ..method import Method
from ..rng import Rng
from ..state import own
from ..types import LabelSpace

__all__ = ["Decoder", "class_path", "packages_of", "restore", "snapshot"]

_PACKAGES = ("torch", "torchvision", "timm", "open_clip", "peft", "cl_bench", "cl_bench_methods", "cl_bench_ops")
_CONTAINERS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": defaultdict}


class _Encoder:
    """Walks a value once; every mutable object gets a number, so that a second meeting is a reference."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[int, int] = {}
        self.keep: list[Any] = []  # ids stay unique only while their objects live

    def __call__(self, value: Any, path: str) -> Any:
        if value is None or (isinstance(value, (bool, int, str)) and type(value) in (bool, int, str)):
            return value
        if isinstance(value, float) and type(value) is float:
            return value if math.isfinite(value) else {"t": "float", "v": repr(value)}
        if id(value) in self.numbers:
            return {"t": "ref", "n": self.numbers[id(value)]}
        return self.fresh(value, path)

    def number(self, value: Any) -> int:
        self.numbers[id(value)] = len(self.numbers)
        self.keep.append(value)
        return self.numbers[id(value)]

    def tensor(self, value: Tensor) -> str:
        key = f"t{len(self.tensors)}"
        self.tensors[key] = value.detach().cpu().contiguous().clone()
        return key

    def fresh(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            n = self.number(value)
            return {"t": "tensor", "n": n, "v": self.tensor(value), "parameter": isinstance(value, nn.Parameter),
                    "grad": value.requires_grad, "device": str(value.device)}
        if isinstance(value, nn.Module):
            return self.module(value, path)
        if isinstance(value, torch.optim.Optimizer):
            n = self.number(value)
            groups = [self(dict(g), f"{path}.param_groups") for g in value.param_groups]
            state = [[self(p, path), self(dict(s), f"{path}.state")] for p, s in value.state.items()]
            return {"t": "optimizer", "n": n, "class": class_path(type(value)), "groups": groups, "state": state,
                    "defaults": self(dict(value.defaults), f"{path}.defaults")}
        if isinstance(value, Rng):
            n = self.number(value)
            return {"t": "rng", "n": n, "v": self(value.get_state(), path)}
        if isinstance(value, torch.Generator):
            n = self.number(value)
            return {"t": "generator", "n": n, "v": self(value.get_state(), path), "device": str(value.device)}
        if isinstance(value, LabelSpace):
            return {"t": "space", "ids": list(value.ids), "names": list(value.names), "templates": list(value.templates)}
        if isinstance(value, (list, deque)):
            n = self.number(value)
            most = value.maxlen if isinstance(value, deque) else None
            return {"t": "deque" if isinstance(value, deque) else "list", "n": n, "most": most,
                    "v": [self(v, f"{path}[{k}]") for k, v in enumerate(value)]}
        if isinstance(value, (tuple, set, frozenset)) and type(value) in (tuple, set, frozenset, torch.Size):
            items = value if isinstance(value, tuple) else sorted(value, key=repr)
            kind = "tuple" if isinstance(value, tuple) else type(value).__name__
            return {"t": kind, "v": [self(v, f"{path}[{k}]") for k, v in enumerate(items)]}
        if isinstance(value, dict) and type(value).__name__ in _CONTAINERS:
            n = self.number(value)
            pairs = [[self(k, path), self(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return {"t": "dict", "n": n, "class": type(value).__name__, "v": pairs}
        if isinstance(value, np.ndarray):
            return {"t": "array", "v": self.tensor(torch.from_numpy(np.ascontiguousarray(value)))}
        if isinstance(value, np.generic):
            return self(value.item(), path)
        if isinstance(value, Enum):
            return {"t": "enum", "class": class_path(type(value)), "v": value.name}
        if is_dataclass(value) and not isinstance(value, type):
            parts = {f.name: self(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value)}
            return {"t": "dataclass", "class": class_path(type(value)), "v": parts}
        if isinstance(value, torch.dtype):
            return {"t": "dtype", "v": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"t": "device", "v": str(value)}
        raise UserError(
            f"{path} is a {type(value).__qualname__}, which a checkpoint cannot hold; keep a method's state in tensors, "
            "modules, optimizers, numbers, strings and plain containers, or run with --checkpoint false."
        )

    def module(self, value: nn.Module, path: str) -> dict[str, Any]:
        n = self.number(value)
        owner = type(value).__mro__[1] if parametrize.is_parametrized(value) else type(value)
        state: dict[str, Any] = {}
        for key, item in own(value).items():
            objects, tensors = dict(self.numbers), dict(self.tensors)
            try:
                state[key] = self(item, f"{path}.{key}")
            except UserError:
                if isinstance(value, Method):
                    raise
                self.numbers, self.tensors = objects, tensors  # nothing may refer into what was not written
                state[key] = {"t": "keep"}  # wiring of a library's layer (a function, a config): built, not learned
        return {"t": "module", "n": n, "class": class_path(owner), "parametrized": owner is not type(value), "v": state}


def class_path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


class Decoder:
    """Rebuilds the tree, filling objects that exist already at the same place rather than making new ones."""

    def __init__(self, tensors: dict[str, Tensor], packages: tuple[str, ...], device: torch.device | None,
                 into: Any = None) -> None:
        self.tensors, self.packages, self.device = tensors, packages, device
        self.made: dict[int, Any] = {}
        self.built: dict[type, dict[str, Any]] = {}  # one freshly built layer per class, for the wiring of its copies
        for module in into.modules() if isinstance(into, nn.Module) else ():
            self.built.setdefault(type(module), dict(module.__dict__))

    def __call__(self, node: Any, there: Any = None) -> Any:
        if isinstance(node, list):
            raise UserError("the checkpoint's tree is malformed; it was not written by cl-bench.")
        if not isinstance(node, dict):
            return node
        kind = node.get("t")
        make = getattr(self, f"_{kind}", None)
        if make is None:
            raise UserError(f"the checkpoint holds an unknown kind of value ({kind!r}); it is from a newer cl-bench.")
        return make(node, there)

    def place(self, saved: str) -> torch.device:
        """Where what lay on ``saved`` goes: a run that goes on on its own kind of device keeps its tensors' places."""
        here = torch.device(saved)
        moves = self.device is not None and here.type not in ("cpu", self.device.type)
        return self.device if moves and self.device is not None else here

    def _ref(self, node: Any, there: Any) -> Any:
        return self.made[node["n"]]

    def _float(self, node: Any, there: Any) -> float:
        return float(node["v"])

    def _tensor(self, node: Any, there: Any) -> Tensor:
        value = self.tensors[node["v"]].clone().to(self.place(node["device"]))
        if node["parameter"]:
            value = nn.Parameter(value, requires_grad=node["grad"])
        else:
            value.requires_grad_(node["grad"])
        self.made[node["n"]] = value
        return value

    def _array(self, node: Any, there: Any) -> np.ndarray:
        return self.tensors[node["v"]].numpy().copy()

    def _dtype(self, node: Any, there: Any) -> torch.dtype:
        value = getattr(torch, node["v"])
        if not isinstance(value, torch.dtype):
            raise UserError("the checkpoint names a dtype that torch has not.")
        return value

    def _device(self, node: Any, there: Any) -> torch.device:
        return torch.device(node["v"])

    def _enum(self, node: Any, there: Any) -> Any:
        return self._class(node["class"], Enum)[node["v"]]  # type: ignore[index]

    def _dataclass(self, node: Any, there: Any) -> Any:
        cls = self._class(node["class"], object)
        if not is_dataclass(cls):
            raise UserError(f"the checkpoint names {node['class']}, which is no dataclass here; resume with the same code.")
        value = object.__new__(cls)
        for name in (f.name for f in fields(cls)):
            object.__setattr__(value, name, self(node["v"][name]))
        return value

    def _space(self, node: Any, there: Any) -> LabelSpace:
        return LabelSpace(tuple(node["ids"]), tuple(node["names"]), tuple(node.get("templates", ())))

    def _rng(self, node: Any, there: Any) -> Rng:
        value = self.made[node["n"]] = Rng()
        value.set_state(self(node["v"]))
        return value

    def _generator(self, node: Any, there: Any) -> torch.Generator:
        value = self.made[node["n"]] = torch.Generator(self.place(node["device"]))
        value.set_state(self(node["v"]).cpu())
        return value

    def _list(self, node: Any, there: Any) -> Any:
        value: Any = deque(maxlen=node["most"]) if node["t"] == "deque" else []
        self.made[node["n"]] = value
        old = list(there) if isinstance(there, (list, deque)) else []
        for k, item in enumerate(node["v"]):
            value.append(self(item, old[k] if k < len(old) else None))
        return value

    _deque = _list

    def _tuple(self, node: Any, there: Any) -> Any:
        old = there if isinstance(there, tuple) else ()
        return tuple(self(v, old[k] if k < len(old) else None) for k, v in enumerate(node["v"]))

    def _set(self, node: Any, there: Any) -> Any:
        return {self(v) for v in node["v"]}

    def _frozenset(self, node: Any, there: Any) -> Any:
        return frozenset(self(v) for v in node["v"])

    def _dict(self, node: Any, there: Any) -> Any:
        cls = _CONTAINERS.get(node["class"], dict)
        if isinstance(there, defaultdict):
            value: Any = defaultdict(there.default_factory)
        else:
            value = cls()
        self.made[node["n"]] = value
        for key, item in node["v"]:
            k = self(key)
            value[k] = self(item, there.get(k) if isinstance(there, dict) else None)
        return value

    def _class(self, path: str, base: type) -> type:
        module, _, name = path.partition(":")
        if module.partition(".")[0] not in self.packages:
            raise UserError(f"the checkpoint names {path}, which this run does not use; resume with the same method.")
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part, None)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise UserError(f"the checkpoint names {path}, which is no {base.__name__} here; resume with the same code.")
        return cls

    def _module(self, node: Any, there: Any) -> nn.Module:
        cls = self._class(node["class"], nn.Module)
        # Asked before anything is filled in: a plain layer must get a class of its own, or all layers would change.
        was = isinstance(there, nn.Module) and parametrize.is_parametrized(there)
        found = type(there).__mro__[1] if was else type(there)
        value: Any = there if found is cls else object.__new__(cls)
        if value is not there:
            nn.Module.__init__(value)
        self.made[node["n"]] = value
        old = dict(value.__dict__)
        for key in own(value).keys() - node["v"].keys():
            value.__dict__.pop(key, None)
        for key, item in node["v"].items():
            if isinstance(item, dict) and item.get("t") == "keep":
                if key not in old and key in self.built.get(cls, {}):
                    value.__dict__[key] = self.built[cls][key]
                elif key not in old:
                    raise UserError(f"{node['class']}.{key} is neither in the checkpoint nor in a freshly built method.")
                continue
            value.__dict__[key] = self(item, old.get(key))
        if node["parametrized"] and not (value is there and was):
            parametrize._inject_new_class(value)
        if node["parametrized"]:
            for name in value.__dict__["_modules"]["parametrizations"]:
                if not isinstance(getattr(type(value), name, None), property):
                    parametrize._inject_property(value, name)
        return value

    def _optimizer(self, node: Any, there: Any) -> torch.optim.Optimizer:
        cls = self._class(node["class"], torch.optim.Optimizer)
        groups = [self(g) for g in node["groups"]]
        value: Any = object.__new__(cls)
        torch.optim.Optimizer.__init__(value, [{"params": g["params"]} for g in groups], self(node["defaults"]))
        value.__setstate__({"state": value.state, "param_groups": groups, "defaults": value.defaults})
        value.state = defaultdict(dict, {self(p): self(s) for p, s in node["state"]})
        self.made[node["n"]] = value
        return value


def packages_of(value: Any) -> tuple[str, ...]:
    """The packages whose classes a tree may name, where it is read into ``value``."""
    return _PACKAGES if value is None else (*_PACKAGES, type(value).__module__.partition(".")[0])


def snapshot(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A value as (tree of plain data, tensors by key).

    Raises:
        UserError: if a method keeps something that cannot be written down; the sentence names the attribute.
    """
    encoder = _Encoder()
    return encoder(value, type(value).__name__), encoder.tensors


def restore(tree: Any, tensors: dict[str, Tensor], into: Any = None, device: torch.device | None = None) -> Any:
    """The inverse of :func:`snapshot`; modules of ``into`` are filled in place where their class is the same."""
    return Decoder(tensors, packages_of(into), device, into)(tree, into)
