"""The contract of an adapter kind and the two places where one can sit: on a weight, or around a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ranges import bounded

__all__ = ["Adapter", "BiasSite", "LayerSite", "Site", "WeightSite"]


class Adapter(nn.Module):
    """One trainable part at one site.

    A kind on weights (``level = "weight"``) is built as ``Kind(weight (o, i), **settings)`` and maps the frozen weight
    to the adapted one: ``forward(weight) -> weight``; convolutions show their weight as (o, i * kh * kw). It is attached
    with ``torch.nn.utils.parametrize``, so that it also works inside ``nn.MultiheadAttention``, which never calls its
    output projection. A kind around layers (``level = "layer"``) is built as ``Kind(layer, index, count, **settings)``
    and answers ``forward(layer, x, ...) -> y`` in the layer's place.

    Every kind starts as a no-op unless its docstring says otherwise, and what it starts from is drawn from torch's
    global generator.

    Attributes:
        paper, mergeable: shown by ``cl-bench list adapters``. A mergeable kind is one plain weight for every input.
        level: ``weight`` or ``layer``.
        moves_bias: the kind also maps the bias (:meth:`bias`).
        mean_loss: the kind's published regulariser is a mean over all sites, and not their sum.
        needs_gram: the kind is built from the inputs' second moments (``grams=`` of ``attach``).
    """

    abstract: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True
    level: ClassVar[str] = "weight"
    moves_bias: ClassVar[bool] = False
    mean_loss: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bounded(cls)

    def delta(self, weight: Tensor) -> Tensor | None:
        """The update of ``weight`` (o, i), in its dtype; None where the kind cannot be merged."""
        return self(weight) - weight if self.mergeable else None

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """(down (r, i), up (o, r)), functions of the parameters, where the gradient of ``self(weight)`` is that of
        ``weight + up @ down``: a linear layer is then differentiated without the dense gradient of its weight. None: it is no
        such sum. A class whose ``forward`` is its own says it itself; what it inherits is about another ``forward``."""
        return None

    def bias(self, bias: Tensor) -> Tensor:
        """The adapted bias (o,), for kinds with ``moves_bias``."""
        return bias

    def reset(self, weight: Tensor) -> None:
        """Back to a no-op around ``weight``, which may have changed; parameters keep their identity."""
        raise NotImplementedError(f"{type(self).__name__} cannot start again")

    def aux_loss(self) -> Tensor:
        """What the kind adds to the task's loss (orthogonality, sparsity); a scalar, 0 for most."""
        first = next(self.parameters(), None)
        return torch.zeros(()) if first is None else first.new_zeros(())

    def after_backward(self) -> None:
        """Between backward and step, with unscaled gradients: their projection. By :meth:`AdapterSet.after_backward`."""

    @classmethod
    def steer(cls, adapters: Sequence[Adapter], step: int, total: int) -> None:
        """After optimizer step ``step`` (from 1) of ``total``, for all sites' adapters together: schedules, budgets."""

    def after_step(self) -> None:
        """After the optimizer's step: proximal step, projection. Called by :meth:`AdapterSet.after_step`."""

    @classmethod
    def count(cls, out: int, inp: int, **settings: Any) -> int:
        """Trainable parameters at one site: ``(o, i)`` of the weight, or ``(width, width)`` of the layer."""
        raise NotImplementedError


class Site(nn.Module):
    """Named adapters at one place; those in ``active`` take part, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.ModuleDict()
        self.active: list[str] = []
        self.enabled = True

    def adapters(self, name: str) -> Iterator[Adapter]:
        """The adapters called ``name`` here: one, or one per group of rows."""
        raise NotImplementedError


class WeightSite(Site):
    """A parametrization: rows ``[start, stop)`` of a weight, each group with an adapter of its own."""

    def __init__(self, groups: list[tuple[int, int]]) -> None:
        super().__init__()
        self.groups = groups

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The part of ``weight`` (o, i) that each group of rows adapts."""
        flat = _matrix(weight.detach())
        return [flat[a:b] for a, b in self.groups]

    def adapters(self, name: str) -> Iterator[Adapter]:
        yield from self.bank[name]  # type: ignore[misc]

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return weight
        flat = _matrix(weight)
        parts, at = [], 0
        for k, (a, b) in enumerate(self.groups):
            if a > at:
                parts.append(flat[at:a])
            rows = flat[a:b]
            for name in self.active:
                rows = self.bank[name][k](rows)  # type: ignore[index]
            parts.append(rows)
            at = b
        if at < len(flat):
            parts.append(flat[at:])
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.reshape(weight.shape)

    def low_rank(self) -> list[tuple[int, int, Tensor, Tensor]] | None:
        """(first row, row after the last, down, up) of each update in use that is trained; None where one of those in use is
        no low-rank update."""
        found = []
        for name in self.active if self.enabled else ():
            for (a, b), adapter in zip(self.groups, self.bank[name], strict=True):  # type: ignore[arg-type]
                pair = adapter.low_rank() if _says_it_itself(type(adapter)) else None
                if pair is None:
                    return None
                if pair[0].requires_grad or pair[1].requires_grad:
                    found.append((a, b, *pair))
        return found

    def moved_bias(self, bias: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return bias
        parts, at = [], 0
        for k, (a, b) in enumerate(self.groups):
            parts.append(bias[at:a])
            rows = bias[a:b]
            for name in self.active:
                rows = self.bank[name][k].bias(rows)  # type: ignore[index, union-attr, operator]
            parts.append(rows)
            at = b
        return torch.cat([*parts, bias[at:]])

    @torch.no_grad()
    def merge(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Write what ``name`` makes of the frozen ``weight`` and ``bias`` into them, then start it again from there."""
        before = self.active, self.enabled
        self.active, self.enabled = [name], True
        merged = self(weight)
        if bias is not None:
            bias.copy_(self.moved_bias(bias))
        weight.copy_(merged)
        self.active, self.enabled = before
        for adapter, matrix in zip(self.adapters(name), self.matrices(weight), strict=True):
            adapter.reset(matrix)


def _says_it_itself(kind: type) -> bool:
    """Whether ``low_rank`` of a class was written for its ``forward``."""
    owner = next(c for c in kind.__mro__ if "forward" in c.__dict__)
    return "low_rank" in owner.__dict__


def _matrix(weight: Tensor) -> Tensor:
    """(o, i) of a linear layer, (o, i * kh * kw) of a convolution, (o, 1) of a norm."""
    return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)


class BiasSite(nn.Module):
    """The bias beside a :class:`WeightSite` whose kind moves biases too."""

    def __init__(self, site: WeightSite) -> None:
        super().__init__()
        self.site = site

    def forward(self, bias: Tensor) -> Tensor:
        return self.site.moved_bias(bias)


class LayerSite(Site):
    """Stands in a layer's place and lets the active adapter answer; the layer's attributes shine through."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name.startswith("__"):  # a copy in the making has no layer yet, nor its hooks
                raise
            return getattr(super().__getattr__("layer"), name)

    def adapters(self, name: str) -> Iterator[Adapter]:
        yield self.bank[name]  # type: ignore[misc]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.enabled or not self.active:
            return self.layer(x, *args, **kwargs)
        return self.bank[self.active[0]](self.layer, x, *args, **kwargs)
