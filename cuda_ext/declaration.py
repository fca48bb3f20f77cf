"""One declaration per operator: a Python function in plain torch is its definition, schema, checks and fake kernel.

`operator` reads the schema off the function's signature, so a signature stands once on this side. The definition answers for
every device until a compiled library adds kernels for its own (``TORCH_LIBRARY_IMPL``; ``csrc/autograd.cpp`` answers autograd
as well, without a call into Python), and, on tensors without data, as the fake kernel that `torch.compile` and
`FakeTensorMode` ask for shapes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Any, Generic, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .native import add_kernels

__all__ = ["FLOATING", "Gradient", "Operator", "check_lists", "operator"]

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
P = ParamSpec("P")
R = TypeVar("R")


class Gradient:
    """How a result is differentiated: what the forward pass keeps, and gradients of results to gradients of arguments.

    Args:
        keep: ``(ctx, inputs, output)``, as `torch.library.register_autograd` calls it.
        backward: ``(ctx, *gradients)`` -> one gradient per argument.
    """

    def __init__(self, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
        self.keep, self.backward = keep, backward


class Operator(Generic[P, R]):
    """A callable ``torch.ops.cl_bench`` operator that knows its definition and its name."""

    def __init__(self, definition: Callable[P, R], mutates: tuple[str, ...], gradient: Gradient | None,
                 fake: Callable[P, R] | None) -> None:
        functools.update_wrapper(self, definition)
        self.definition, self.name, self.mutates = definition, definition.__name__, mutates
        self._names = list(definition.__annotations__)
        if not hasattr(torch.ops.cl_bench, self.name):  # a second import of this package changes nothing
            self._register(gradient, fake or definition)
        self.overload = getattr(torch.ops.cl_bench, self.name)
        self._only = self.overload.default  # spares the choice among overloads at every call

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        out: R = self._only(*args, **kwargs)
        return out

    def _register(self, gradient: Gradient | None, fake: Callable[P, R]) -> None:
        name = f"cl_bench::{self.name}"
        torch.library.define(name, schema_of(self.definition, self.mutates), tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "CompositeExplicitAutograd", self._answer)
        torch.library.register_fake(name, fake)
        if gradient is not None:
            torch.library.register_autograd(name, gradient.backward, setup_context=gradient.keep)
            return
        torch.library.impl(name, "Autograd", self._refuse_gradients)
        if self.mutates:
            torch.library.impl(name, "ADInplaceOrView", self._tell_autograd)

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        # The first call of a process lands here whichever way it came (Python, torch.ops, a compiled graph).
        if add_kernels():
            return self.overload(*args, **kwargs)
        return self.definition(*args, **kwargs)

    def _refuse_gradients(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            for name, tensor in self._tensors(args, kwargs):
                if tensor.requires_grad:
                    raise RuntimeError(
                        f"{self.name} is not differentiable, but {name} requires grad and gradients are being "
                        "recorded; call it under torch.no_grad()."
                    )
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args, **kwargs)

    def _tell_autograd(self, *args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            out = self.overload(*args, **kwargs)
        # Autograd must notice that tensors it saved for a backward pass have changed.
        for name, tensor in self._tensors(args, kwargs):
            if name.partition("[")[0] in self.mutates and not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
        return out

    def _tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor argument, as ``name`` or ``name[i]``."""
        for name, value in [*zip(self._names, args, strict=False), *kwargs.items()]:
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}[{i}]", t) for i, t in enumerate(value) if isinstance(t, Tensor))


def schema_of(definition: Callable[..., Any], mutates: Sequence[str]) -> str:
    """torch's schema from a signature (`torch.library.infer_schema` knows no optional lists of tensors)."""
    hints, parts = get_type_hints(definition), []
    for name, parameter in inspect.signature(definition).parameters.items():
        kinds = [hints[name]] if get_origin(hints[name]) not in (Union, UnionType) else get_args(hints[name])
        (written,) = [_TYPES[kind] for kind in kinds if kind is not type(None)]
        if name in mutates:
            written = written.replace("Tensor", f"Tensor({chr(ord('a') + mutates.index(name))}!)", 1)
        default = "" if parameter.default is parameter.empty else f"={parameter.default}"
        parts.append(f"{written}{'?' if len(kinds) > 1 else ''} {name}{default}")
    out = hints["return"]
    many = get_args(out) if get_origin(out) is tuple else () if out is type(None) else (out,)
    results = ", ".join(_TYPES[kind] for kind in many)
    return f"({', '.join(parts)}) -> {results if len(many) == 1 else f'({results})'}"


_TYPES: dict[Any, str] = {Tensor: "Tensor", Sequence[Tensor]: "Tensor[]", float: "float", int: "int", bool: "bool"}


def operator(*, mutates: tuple[str, ...] = (), gradient: Gradient | None = None,
             fake: Callable[..., Any] | None = None) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Declare the function below as an operator of its name.

    Args:
        mutates: names of the arguments that it changes in place.
        gradient: None: calling it while gradients are recorded for an argument is an error.
        fake: the shapes of its results, where the definition looks at values; None: the definition itself is asked.
    """
    return lambda definition: Operator(definition, mutates, gradient, fake)


def check_lists(name: str, first: str, **lists: Sequence[Tensor] | tuple[Sequence[Tensor], torch.dtype] | None) -> None:
    """Refuse lists that do not fit the list called `first` position by position (ValueError).

    Lists must be as long as `first`, their tensors of its shapes, device and dtype, or of the dtype that stands beside a
    list; tensors of `first` must be floating and on one device. None is a list that was not given. ``csrc/ops.cpp`` says
    the same sentences.
    """
    expected: dict[str, tuple[Sequence[Tensor], torch.dtype | None]] = {}
    for key, value in lists.items():
        if value is not None:
            expected[key] = value if isinstance(value, tuple) and isinstance(value[-1], torch.dtype) else (value, None)  # type: ignore[assignment]
    target, _ = expected.pop(first)
    for key, (tensors, _) in expected.items():
        if len(tensors) != len(target):
            raise ValueError(
                f"{name}: {first} holds {len(target)} tensors but {key} holds {len(tensors)}; give lists of one length."
            )
    for i, t in enumerate(target):
        if t.dtype not in FLOATING:
            raise ValueError(
                f"{name}: {first}[{i}] has dtype {_name(t.dtype)}; supported are float32, float64, float16 and bfloat16."
            )
        if t.device != target[0].device:
            raise ValueError(
                f"{name}: {first}[{i}] is on {t.device} but {first}[0] is on {target[0].device}; "
                "put all tensors on one device."
            )
        for key, (tensors, dtype) in expected.items():
            other, wanted = tensors[i], dtype or t.dtype
            if other.dtype != wanted:
                raise ValueError(f"{name}: {key}[{i}] has dtype {_name(other.dtype)} where {_name(wanted)} is needed.")
            if other.shape != t.shape:
                raise ValueError(
                    f"{name}: {key}[{i}] has shape {list(other.shape)} but {first}[{i}] has shape {list(t.shape)}."
                )
            if other.device != t.device:
                raise ValueError(
                    f"{name}: {key}[{i}] is on {other.device} but {first}[{i}] is on {t.device}; "
                    "put all tensors on one device."
                )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
