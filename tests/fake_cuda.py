"""A GPU that is not there: tensors on ``cuda`` have shapes and no data, everything on the host is real.

`torch._subclasses.fake_tensor.FakeTensorMode` makes the tensors; the mode below decides, operation by operation, what goes
there. It raises where tensors of two devices meet and where a generator of the host draws for the GPU, and notes where the host
would wait for the GPU: it reads a value, or a size that depends on values, or copies numbers to it (which waits for all that
the GPU was asked to do before). So that the program goes on, a value that is read is 0, a mask holds everywhere, and what comes
back to the host is zeros.

Autograd's engine asks for a driver, so that its own work is stood in for: every leaf that a loss reaches gets an empty gradient
of its shape. Hooks on gradients and ``backward`` of autograd functions are not run here; they are on a GPU
(tests/test_gpu_methods.py).
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from cl_bench import heads
from cl_bench.engine import fit, measure, stream
from cl_bench.engine import trainer as engine_trainer

HERE = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
# Operations whose results have sizes that depend on values, and those that take a mask as an index.
SIZED = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"})
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


WHERE: dict[int, torch.device] = {}  # of each generator; an operation is handed another object for the same one


class Generator(torch.Generator):
    """A generator that says of which device it is; all of them draw on the host."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        WHERE[made._cdata] = made.where = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where


class TwoDevices(AssertionError):
    """What a GPU would refuse."""


class Card(TorchDispatchMode):
    """Operations of the GPU without one. ``waits``: (file:function, what) for each place where the host would wait,
    ``count`` how often; ``copies``: how often each place copies something to the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: set[tuple[str, str]] = set()
        self.count = 0
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        to_card = device is not None and torch.device(device).type == "cuda"
        if self.arrives(func._schema.name.removeprefix("aten::"), args, kwargs, to_card):
            self.copies[self.place()] += 1
        if not to_card and FakeTensor not in types:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if kwargs.get("generator") is not None:
            if WHERE.get(kwargs["generator"]._cdata, torch.device("cpu")).type != "cuda":
                raise TwoDevices(f"{name} draws on the GPU with a generator of the host, at {self.place()}")
            kwargs = {**kwargs, "generator": None}
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            self.note(name)
            return _zero(args[0].dtype) if name == "_local_scalar_dense" else True
        if name in ("_to_copy", "copy_"):
            if self.leaves(name, args, device):
                self.note("to the host")
                if name == "copy_":
                    return args[0]
                with unset_fake_temporarily():
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif name in SIZED:
            self.note(name)
            return self.sized(name, args, kwargs)
        elif name in INDEXED:
            args = (args[0], [whole for i in args[1] for whole in self.whole(i)], *args[2:])
        else:
            self.meet(name, args)
        return func(*args, **kwargs)

    def leaves(self, name: str, args: Any, device: Any) -> bool:
        if name == "copy_":
            return not isinstance(args[0], FakeTensor)
        return device is not None and torch.device(device).type == "cpu"

    def arrives(self, name: str, args: Any, kwargs: Any, to_card: bool) -> bool:
        """Whether numbers of the host go to the GPU: tensors that are copied there, or an index of the host's."""
        if name == "copy_":
            return isinstance(args[0], FakeTensor) and not isinstance(args[1], FakeTensor)
        if name in INDEXED and isinstance(args[0], FakeTensor):
            return any(isinstance(i, Tensor) and not isinstance(i, FakeTensor) for i in args[1])
        return name == "_to_copy" and to_card and not isinstance(args[0], FakeTensor) and not kwargs.get("non_blocking")

    def sized(self, name: str, args: Any, kwargs: Any) -> Any:
        x = args[0]
        with self.fake:
            if name == "nonzero":
                return torch.empty(x.numel(), x.ndim, dtype=torch.int64, device=CUDA)
            if name == "masked_select":
                return torch.empty(x.numel(), dtype=x.dtype, device=CUDA)
            if name == "bincount":
                return torch.empty(max(int(kwargs.get("minlength", 0) or (args[2] if len(args) > 2 else 0)), 1),
                                   dtype=torch.int64, device=CUDA)
            numbers = torch.empty(x.numel(), dtype=torch.int64, device=CUDA)
            return torch.empty(x.numel(), dtype=x.dtype, device=CUDA), numbers, numbers

    def whole(self, index: Any) -> list[Any]:
        """A mask as indices that hold everywhere, one for each of its dimensions; their count would have to be known."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool:
            return [index]
        if isinstance(index, FakeTensor):
            self.note("a mask as an index")
        return [torch.empty(index.numel(), dtype=torch.int64, device=CUDA) for _ in range(index.ndim)]

    def meet(self, name: str, args: Any) -> None:
        """Tensors of two devices: only a single value of the host may stand beside tensors of the GPU."""
        for value in args:
            for t in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(t, Tensor) and t.ndim and not isinstance(t, FakeTensor) and t.device.type == "cpu":
                    raise TwoDevices(f"{name} of tensors of the GPU and of the host {tuple(t.shape)}, at {self.place()}")

    def note(self, what: str) -> None:
        self.count += 1
        self.waits.add((self.place(), what))

    def place(self) -> str:
        """The innermost line of this project that is under way, as ``file.py:function``."""
        frame = sys._getframe(1)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if HERE in file.parents and file.parent.name != "tests" and ".venv" not in file.parts:
                return f"{file.relative_to(HERE).as_posix()}:{frame.f_code.co_name}"
            frame = frame.f_back  # type: ignore[assignment]
        return "?"


def _zero(dtype: torch.dtype) -> Any:
    return False if dtype == torch.bool else 0.5 if dtype.is_floating_point else 0


def _reached(losses: list[Tensor]) -> list[Tensor]:
    """The leaves that a graph leads to."""
    found, seen, stack = [], set(), [t.grad_fn for t in losses if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(n for n, _ in node.next_functions)
    return found


@contextlib.contextmanager
def card(monkeypatch: Any) -> Iterator[Card]:
    """A GPU for the time being."""
    mode = Card()

    def backward(tensors: Any, *args: Any, inputs: Any = None, **kwargs: Any) -> None:
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        for leaf in _reached(losses) if inputs is None else inputs:
            leaf.grad = torch.zeros_like(leaf)

    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(torch.zeros_like(t) for t in ([inputs] if isinstance(inputs, Tensor) else inputs))

    moved: dict[int, tuple[Tensor, Tensor]] = {}  # parameters of the host and what became of them: two names stay one parameter

    def apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(fn)
        for key, old in module._parameters.items():
            if old is None:
                continue
            if id(old) in moved:
                module._parameters[key] = moved[id(old)][1]
                continue
            with torch.no_grad():
                new = fn(old)
            if new is not old:
                module._parameters[key] = made = nn.Parameter(new, old.requires_grad)
                moved[id(old)] = old, made
                made.grad = None if old.grad is None else fn(old.grad)
        for key, old in module._buffers.items():
            if old is not None:
                module._buffers[key] = fn(old)
        return module

    monkeypatch.setattr(nn.Module, "_apply", apply)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(Tensor, "backward", lambda self, *a, **k: backward(self))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)  # without a driver there is no memory to pin
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a: (2**36, 2**36))
    torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does where there is no GPU
    kept = (heads._table, heads._places)  # of a GPU that is not there, nothing may stay
    for table in kept:
        table.cache_clear()
    try:
        with mode.fake, mode:
            yield mode
    finally:
        for table in kept:
            table.cache_clear()


class OnCard(CPUAccelerator):
    """Lightning's accelerator for a device that it cannot see."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing: there is no driver."""


def trainer(compute: Any, epochs: int, callbacks: Any = (), plugins: Any = (), *, shared: bool = False) -> Trainer:
    """As :func:`cl_bench.engine.trainer.make_trainer` makes it, on the GPU."""
    return Trainer(accelerator=OnCard(), devices=1, strategy=engine_trainer._Stays(CUDA), max_epochs=epochs,
                   precision=compute.precision, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, num_sanity_val_steps=0, inference_mode=False, callbacks=list(callbacks),
                   use_distributed_sampler=False, plugins=list(plugins))


def collected(ledger: measure.Ledger) -> measure.Answers:
    """What a ledger would bring back from the GPU."""
    n = sum(len(part[0]) for part in ledger.parts)
    return measure.Answers(np.arange(n), np.zeros(n, np.float32), np.zeros(n, np.int64), np.zeros(n, bool), np.zeros(n, bool))


@contextlib.contextmanager
def engine(monkeypatch: Any) -> Iterator[Card]:
    """A GPU, and the engine on it: its loops as they are, its Trainer on a device that Lightning cannot see."""
    for module in (fit, measure, engine_trainer, stream):
        monkeypatch.setattr(module, "resolve_device", lambda name: CUDA)
    for module in (fit, engine_trainer):
        monkeypatch.setattr(module, "make_trainer", trainer)
    monkeypatch.setattr(measure, "Tensor", FakeTensor)  # what an answer must be
    monkeypatch.setattr(measure.Ledger, "collect", collected)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: None)
    engine_trainer.tester.cache_clear()
    try:
        with card(monkeypatch) as mode:
            yield mode
    finally:
        engine_trainer.tester.cache_clear()
