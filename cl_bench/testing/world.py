"""What belongs to the whole process and to nobody's method: its state, and the code that scores."""

from __future__ import annotations

import atexit
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode

from .traces import gained, names, removed
from .walk import own_modules

__all__ = ["changed", "code", "opened", "patched", "undone", "unharmed", "unusual", "world"]


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


def _modes() -> list[Any]:
    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]


def _set_modes(state: list[Any]) -> None:
    for pop, stack in ((_pop_mode, _get_current_function_mode_stack), (_pop_dispatch_mode, _get_current_dispatch_mode_stack)):
        while stack() and not any(stack()[-1] is mode for mode in state):
            pop()


def _autocast() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return (*(torch.is_autocast_enabled(k) for k in kinds), *(torch.get_autocast_dtype(k) for k in kinds),
            torch.is_inference_mode_enabled())


def _set_autocast(state: tuple[Any, ...]) -> None:
    for k, kind in enumerate(("cpu", "cuda")):
        torch.set_autocast_enabled(kind, state[k])
        torch.set_autocast_dtype(kind, state[2 + k])


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), cudnn.deterministic,
            cudnn.benchmark, cudnn.enabled, torch.is_anomaly_enabled(), float(torch.full((), 1e-40) * 1) > 0)


def _set_switches(state: tuple[Any, ...]) -> None:
    torch.use_deterministic_algorithms(state[0])
    torch.set_float32_matmul_precision(state[1])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled = state[2:5]
    torch.autograd.set_detect_anomaly(state[5])
    torch.set_flush_denormal(not state[6])


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
    "torch's modes": (_modes, _set_modes),
    "autocast": (_autocast, _set_autocast),
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
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), lambda v: locale.setlocale(locale.LC_ALL, v)),
    "the mask of new files": (_mask, os.umask),
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
    known, there = code(cls), names(cls)
    try:
        with undone():
            yield
    finally:
        for owner, name in gained(there, names(cls)):
            if owner != "__main__":  # the script that asks goes on meanwhile
                removed(owner, name)
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
