"""What belongs to the whole process and to nobody's method: its state, and the code that scores."""

from __future__ import annotations

import atexit
import gc
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

from .walk import own_classes, own_modules

__all__ = ["changed", "code", "opened", "own_state", "patched", "undone", "unharmed", "unusual", "world"]


def _logger() -> tuple[Any, ...]:
    root = logging.getLogger()
    return list(root.handlers), list(root.filters), root.level, root.manager.disable


def _set_logger(state: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    root.handlers[:], root.filters[:] = state[0], state[1]
    root.setLevel(state[2])
    root.manager.disable = state[3]


def _hooks() -> dict[str, dict[Any, Any]]:
    where = {k: v for k, v in vars(nn.modules.module).items() if k.startswith("_global_") and isinstance(v, Mapping)}
    where.update(pre=optim._global_optimizer_pre_hooks, post=optim._global_optimizer_post_hooks)
    return {k: dict(v) for k, v in where.items()}


def _set_hooks(state: dict[str, dict[Any, Any]]) -> None:
    where: dict[str, Any] = {**vars(nn.modules.module), "pre": optim._global_optimizer_pre_hooks,
                             "post": optim._global_optimizer_post_hooks}
    for name, hooks in state.items():
        where[name].clear()
        where[name].update(hooks)


def _set_saved(state: Any) -> None:
    while torch._C._autograd._top_saved_tensors_default_hooks(False) not in (None, state):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("KMP_")}  # libraries set these when first imported


def _set_environment(state: dict[str, str]) -> None:
    for key in _environment().keys() - state.keys():
        del os.environ[key]
    os.environ.update(state)


def _set_path(state: tuple[list[Any], ...]) -> None:
    sys.path[:], sys.meta_path[:], sys.path_hooks[:] = state


def _set_streams(state: tuple[Any, ...]) -> None:
    sys.stdout, sys.stderr, sys.stdin = state


def _set_interpreter(state: tuple[Any, ...]) -> None:
    sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook = state[:4]
    gc.callbacks[:] = state[4]
    (gc.enable if state[5] else gc.disable)()


def _set_filters(state: list[Any]) -> None:
    warnings.filters[:] = state  # type: ignore[index]


def _set_tracing(state: tuple[Any, ...]) -> None:
    sys.settrace(state[0])
    sys.setprofile(state[1])


def _set_signals(state: dict[int, Any]) -> None:
    for number, handler in state.items():
        if signal.getsignal(number) is not handler and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), cudnn.deterministic,
            cudnn.benchmark, cudnn.enabled, torch.is_anomaly_enabled())


def _set_switches(state: tuple[Any, ...]) -> None:
    torch.use_deterministic_algorithms(state[0])
    torch.set_float32_matmul_precision(state[1])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled = state[2:5]
    torch.autograd.set_detect_anomaly(state[5])


_Fact = tuple[Callable[[], Any], Callable[[Any], Any]]
_FACTS: dict[str, _Fact] = {
    "Python's random state": (random.getstate, random.setstate),
    "NumPy's random state": (lambda: np.random.get_state(legacy=False), np.random.set_state),  # noqa: NPY002
    "torch's random state": (torch.get_rng_state, torch.set_rng_state),
    "the working directory": (os.getcwd, os.chdir),
    "the environment": (_environment, _set_environment),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "the thread count": (torch.get_num_threads, torch.set_num_threads),
    "torch's switches": (_switches, _set_switches),
    "hooks of all modules and optimizers": (_hooks, _set_hooks),
    "hooks of saved tensors": (lambda: torch._C._autograd._top_saved_tensors_default_hooks(False), _set_saved),
    "the root logger": (_logger, _set_logger),
    "the warning filters": (lambda: list(warnings.filters), _set_filters),
    "signal handlers": (lambda: {s: signal.getsignal(s) for s in signal.valid_signals()}, _set_signals),
    "functions called at exit": (atexit._ncallbacks, lambda v: None),
    "the interpreter's hooks": (lambda: (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook,
                                         list(gc.callbacks), gc.isenabled()), _set_interpreter),
    "tracing": (lambda: (sys.gettrace(), sys.getprofile()), _set_tracing),
    "the import path": (lambda: (list(sys.path), list(sys.meta_path), list(sys.path_hooks)), _set_path),
    "standard output": (lambda: (sys.stdout, sys.stderr, sys.stdin), _set_streams),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "NumPy's error state": (np.geterr, lambda v: np.seterr(**v)),
    "running threads": (lambda: set(threading.enumerate()), lambda v: None),
}


def world() -> dict[str, Any]:
    """The state of the process by name; :func:`changed` compares two."""
    return {name: get() for name, (get, _) in _FACTS.items()}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two :func:`world` states; a thread that ended is no change."""
    threads = "running threads"
    out = [name for name, old in before.items() if name != threads and not _same(old, after[name])]
    return out + ([threads] if after[threads] - before[threads] else [])


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    return repr(one) == repr(two) if isinstance(one, dict) and "bit_generator" in one else bool(one == two)


@contextmanager
def undone() -> Iterator[None]:
    """What changes in the process inside the block is undone after it, where it can be."""
    before = world()
    try:
        yield
    finally:
        for name in changed(before, world()):
            _FACTS[name][1](before[name])


@contextmanager
def unharmed(cls: type) -> Iterator[None]:
    """As :func:`undone`; what ``cls`` replaces of the harness and of libraries is put back as well."""
    known = code(cls)
    try:
        with undone():
            yield
    finally:
        for name in patched(known, code(cls)):
            owner, _, attribute = name.rpartition(".")
            if name in known:
                setattr(_named(owner), attribute, known[name])
            else:
                delattr(_named(owner), attribute)


def _named(path: str) -> Any:
    """The module or class called ``path``."""
    if path in sys.modules:
        return sys.modules[path]
    owner, _, attribute = path.rpartition(".")
    return getattr(_named(owner), attribute)


class unusual:
    """Random states that nobody would set on purpose, inside a block: a method that seeds a generator is seen doing so."""

    def __enter__(self) -> None:
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(918_273_645)
        np.random.seed(918_273_645)  # noqa: NPY002
        torch.manual_seed(918_273_645)

    def __exit__(self, *fault: object) -> None:
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])  # noqa: NPY002
        torch.set_rng_state(self.states[2])


# ---------------------------------------------------------------------------- code
_WATCHED = ("torch", "torch.nn", "torch.nn.functional", "torch.nn.modules.module", "torch.nn.init", "torch.optim",
            "torch.autograd", "torch.random", "torch.linalg", "torch.utils.data", "numpy", "numpy.random", "numpy.linalg",
            "random", "builtins", "os", "time", "json", "copy", "hashlib", "pytorch_lightning")
_DOORS = (("torch", "Tensor"), ("torch.nn", "Module"), ("torch.nn", "Linear"), ("torch.nn", "Parameter"),
          ("pytorch_lightning", "Trainer"), ("pytorch_lightning", "LightningModule"))
_PLAIN = (int, float, str, bytes, bool, tuple, frozenset)


def code(cls: type) -> dict[str, Any]:
    """Every function, class and constant of the harness and of the libraries' doors, by name. What belongs to the
    author of ``cls`` is not among them; values that may change by themselves (caches) are left out."""
    mine = {m.__name__ for m in own_modules(cls)}
    out: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        ours = name == "cl_bench" or name.startswith("cl_bench.")
        if not isinstance(module, types.ModuleType) or name in mine or name.startswith("cl_bench.testing"):
            continue
        if not ours and name not in _WATCHED:
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("__") or (isinstance(value, types.ModuleType)):
                continue
            if isinstance(value, type) and value.__module__ == name and (ours or name != "builtins"):
                out.update({f"{name}.{key}.{k}": v for k, v in list(vars(value).items()) if _steady(k, v)})
            if _steady(key, value):
                out[f"{name}.{key}"] = value
    for name, door in _DOORS:
        out.update({f"{name}.{door}.{k}": v for k, v in list(vars(getattr(sys.modules[name], door)).items()) if _steady(k, v)})
    return out


def _steady(name: str, value: Any) -> bool:
    callable_ = callable(value) or isinstance(value, (staticmethod, classmethod, property))
    return (callable_ or isinstance(value, _PLAIN)) and name not in ("__doc__", "__annotations__", "__annotate__")


def patched(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of :func:`code` that mean something else now, or that a class has gained."""
    out = [name for name, old in before.items() if not _means(old, after.get(name))]
    return out + [name for name in after.keys() - before.keys() if isinstance(before.get(name.rpartition(".")[0]), type)]


def _means(old: Any, new: Any) -> bool:
    return old is new or (isinstance(old, _PLAIN) and type(old) is type(new) and bool(old == new))


# ---------------------------------------------------------------------------- a method's own classes and modules
def own_state(cls: type) -> dict[str, str]:
    """The content of class attributes and module globals that the author of ``cls`` wrote, as digests by name."""
    out: dict[str, str] = {}
    for owner in own_classes(cls):
        out.update({f"{owner.__name__}.{k}": _digest(v) for k, v in list(vars(owner).items()) if _told(k)})
    for module in own_modules(cls):
        for key, value in list(vars(module).items()):
            if _told(key) and not isinstance(value, types.ModuleType):
                out[f"{module.__name__.rpartition('.')[2]}.{key}"] = _digest(value)
            if isinstance(value, type) and value.__module__ == module.__name__:
                out.update({f"{value.__name__}.{k}": _digest(v) for k, v in list(vars(value).items()) if _told(k)})
    return out


def _told(name: str) -> bool:
    return not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl"


def _digest(value: Any) -> str:
    h = hashlib.sha256()
    for piece in _pieces(value, set(), []):
        h.update(piece)
    return h.hexdigest()


def _pieces(value: Any, seen: set[int], keep: list[Any]) -> Iterator[bytes]:
    """The content of a value, byte by byte; code is itself."""
    yield type(value).__name__.encode()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    keep.append(value)
    if isinstance(value, Tensor):
        if not value.is_meta:
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for k, v in list(value.items()):
            yield from _pieces(k, seen, keep)
            yield from _pieces(v, seen, keep)
    elif isinstance(value, (list, tuple, deque)):
        yield str(len(value)).encode()
        for v in value:
            yield from _pieces(v, seen, keep)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(repr(v).encode() for v in value)
    elif isinstance(value, torch.Generator):
        yield value.get_state().numpy().tobytes()
    elif isinstance(value, random.Random):
        yield repr(value.getstate()).encode()
    elif isinstance(value, np.random.Generator):
        yield repr(value.bit_generator.state).encode()
    elif type(value).__module__ == "itertools":
        yield repr(value).encode()  # a counter says where it stands
    elif isinstance(value, (types.FunctionType, types.MethodType, staticmethod, classmethod, property, type, types.ModuleType)):
        yield str(id(value)).encode()
        if isinstance(value, types.FunctionType):
            yield from _pieces((value.__defaults__, value.__kwdefaults__), seen, keep)
            for cell in value.__closure__ or ():
                yield from _cell(cell, seen, keep)
    elif isinstance(value, nn.Module):
        yield from _pieces({k: v for k, v in vars(value).items() if "hook" not in k}, seen, keep)
    elif hasattr(value, "__dict__") and not isinstance(value, (logging.Logger, nn.Module)):
        yield from _pieces(vars(value), seen, keep)
    elif slots := [k for c in type(value).__mro__ for k in c.__dict__.get("__slots__", ()) if hasattr(value, k)]:
        yield from _pieces({k: getattr(value, k) for k in slots}, seen, keep)
    else:
        yield str(id(value)).encode()


def _cell(cell: Any, seen: set[int], keep: list[Any]) -> Iterator[bytes]:
    try:
        content = cell.cell_contents
    except ValueError:  # not yet filled
        return
    yield from _pieces(content, seen, keep)


# ---------------------------------------------------------------------------- doors to the outside
_opened: list[str] | None = None
_hooked = False
_CODE_FILES = (".py", ".pyc", ".so", ".pth", ".json", ".cpp", ".cu", ".h", "PKG-INFO", "METADATA", "entry_points.txt")


def opened(action: Callable[[], Any]) -> list[str]:
    """Files that ``action`` opens, programs it starts and places it connects to; Python's own source and byte code do
    not count."""
    global _opened, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # a hook cannot be removed: it stays, idle
        _hooked = True
    _opened = []
    try:
        action()
        return [f for f in _opened if not f.endswith(_CODE_FILES) and not f.startswith(("/proc", "/sys", "/dev", "/etc"))
                and f not in sys.path]
    finally:
        _opened = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is None:
        return
    if event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])
    elif event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        _opened.append(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]}")
