"""Classifier heads that grow as classes arrive. Columns follow ``head.space``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .types import LabelSpace

__all__ = [
    "CosineHead", "FixedHead", "Head", "LinearHead", "PrototypeHead", "TextHead", "align_columns", "columns_of", "cosines",
    "full_precision", "select",
]  # fmt: skip


def columns_of(labels: Tensor, space: LabelSpace) -> Tensor:
    """Global label ids (N,) to columns of ``space`` (N,).

    Raises:
        ValueError: if a label is not in the space (negative, fractional, another class).
    """
    if len(space) == 0:
        raise ValueError("the label space is empty")
    ids, order = _table(space.ids, labels.device)
    whole = labels.to(torch.int64)
    at = torch.searchsorted(ids, whole).clamp_(max=len(space) - 1)
    columns = torch.where((ids[at] == whole) & (whole == labels), order[at], -1)
    if columns.device.type == "cpu" and bool((columns < 0).any()):  # reading it on a GPU would wait for every step
        unknown = sorted(set(labels[columns < 0].tolist()))[:5]
        raise ValueError(f"labels {unknown} are not in the label space of {len(space)} classes")
    return columns


def align_columns(logits: Tensor, have: LabelSpace, want: LabelSpace) -> Tensor:
    """Logits over ``have`` (N, len(have)) re-ordered to ``want`` (N, len(want)); classes unknown to the head get -inf."""
    if have.ids == want.ids:
        return logits
    known, where = _places(have.ids, want.ids, logits.device)
    if len(known) == len(want):
        return logits[:, where]
    out = logits.new_full((len(logits), len(want)), -torch.inf)
    out[:, known] = logits[:, where]
    return out


# Kept on the device: a list that every step copies to a GPU would wait there for all steps before it.
@lru_cache(maxsize=256)
def _table(ids: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The ids in rising order, and their columns."""
    with torch.inference_mode(False):
        ordered, columns = torch.tensor(ids).sort()
        return ordered.to(device), columns.to(device)


@lru_cache(maxsize=256)
def _places(have: tuple[int, ...], want: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the classes in ``want`` that ``have`` has: their columns there, and here."""
    at = {label: k for k, label in enumerate(have)}
    known = [k for k, label in enumerate(want) if label in at]
    with torch.inference_mode(False):
        columns = torch.tensor([at[want[k]] for k in known], dtype=torch.int64)
        return torch.tensor(known, dtype=torch.int64).to(device), columns.to(device)


select = align_columns  # its earlier name, kept for methods outside this repository


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Inside, autocast is off, and ``tensors`` are given as float32, those of double precision as they are.

    For answers that differ in the third digit: half precision would round them to the same number.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def cosines(features: Tensor, rows: Tensor) -> Tensor:
    """Cosines (..., N, C) of features (..., N, d) and rows (..., C, d), never in half precision: bfloat16 knows none between
    0.996 and 1, which would tie the classes that are closest."""
    with full_precision(features, rows) as (f, r):
        return F.normalize(f, dim=-1) @ F.normalize(r, dim=-1).mT


class Head(nn.Module):
    """Features (N, num_features) to logits (N, len(space)); ``grow`` adds classes and keeps what is known."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.space = LabelSpace()

    def grow(self, space: LabelSpace) -> None:
        """Make room for the classes of ``space`` that are new; call it before optimizers exist."""
        self.space = self.space | space

    def can_answer(self, space: LabelSpace) -> bool:
        """Whether this head has something to say of every class of ``space``: by default it has a column for each, and
        where both know names, of the same name."""
        return set(space.ids) <= set(self.space.ids) and not self.misnamed(space)

    def misnamed(self, space: LabelSpace) -> list[int]:
        """Ids that are one class here and another, by name, in ``space``."""
        if not (space.names and self.space.names):
            return []
        mine = dict(zip(self.space.ids, self.space.names, strict=True))
        return [i for i, name in zip(space.ids, space.names, strict=True) if mine.get(i, name) != name]

    def over(self, features: Tensor, space: LabelSpace) -> Tensor:
        """Features (N, num_features) to logits over ``space`` (N, len(space)); classes unknown to the head get -inf."""
        return align_columns(self(features), self.space, space)

    def columns(self, labels: Tensor) -> Tensor:
        """Global label ids to columns of this head's logits."""
        return columns_of(labels, self.space)

    def _grown(self, old: Tensor | None, rows: int, fresh: Tensor) -> nn.Parameter:
        """``fresh`` with the first rows taken from ``old``."""
        with torch.no_grad():
            if old is not None and rows:
                fresh = fresh.to(old)
                fresh[:rows] = old
        return nn.Parameter(fresh)


class LinearHead(Head):
    """An affine classifier; new rows are drawn as ``nn.Linear`` draws them, from U(+-1/sqrt(d)), biases too.

    ``std`` draws them from N(0, std^2) instead (0: all zero), ``bound`` from U(+-bound); biases then start at zero.
    """

    def __init__(
        self, num_features: int, bias: bool = True, std: float | None = None, bound: float | None = None
    ) -> None:
        super().__init__(num_features)
        self.std, self.bound = std, bound
        self.weight = nn.Parameter(torch.empty(0, num_features))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    def grow(self, space: LabelSpace) -> None:
        old = len(self.space)
        super().grow(space)
        n = len(self.space)
        if n == old:
            return
        usual = 1 / math.sqrt(self.num_features)
        bound = usual if self.bound is None else self.bound
        weight = torch.empty(n, self.num_features)
        if self.std is None:
            weight.uniform_(-bound, bound)
        else:
            weight.normal_(0.0, self.std)
        self.weight = self._grown(self.weight, old, weight.to(self.weight))
        if self.bias is not None:
            plain = self.std is None and self.bound is None
            bias = torch.empty(n).uniform_(-usual, usual) if plain else torch.zeros(n)
            self.bias = self._grown(self.bias, old, bias.to(self.bias))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class CosineHead(Head):
    """``scale * cos(f, w_c)`` with a learnable scale that starts at 1 and rows drawn from U(+-1/sqrt(d)): the head of
    LUCIR (Hou et al., CVPR 2019) as the pretrained-model methods use it."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight = nn.Parameter(torch.empty(0, num_features))
        self.scale = nn.Parameter(torch.ones(()))

    def grow(self, space: LabelSpace) -> None:
        old = len(self.space)
        super().grow(space)
        if len(self.space) > old:
            bound = 1 / math.sqrt(self.num_features)
            fresh = torch.empty(len(self.space), self.num_features).uniform_(-bound, bound)
            self.weight = self._grown(self.weight, old, fresh.to(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * cosines(features, self.weight)


class PrototypeHead(Head):
    """Cosine to class means; nothing is trained. ``add`` accumulates sums and counts, so data may come in parts."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("sums", torch.zeros(0, num_features))
        self.register_buffer("counts", torch.zeros(0))

    def grow(self, space: LabelSpace) -> None:
        new = len(self.space | space) - len(self.space)
        super().grow(space)
        self.sums = torch.cat([self.sums, self.sums.new_zeros(new, self.num_features)])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(new)])

    def can_answer(self, space: LabelSpace) -> bool:
        """A class without a counted image has no prototype to answer with."""
        return super().can_answer(space) and bool((self.counts[[self.space.ids.index(i) for i in space.ids]] > 0).all())

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count features (N, d) of global ``labels`` (N,) into their classes' means."""
        at = self.columns(labels)
        self.sums.index_add_(0, at, features.to(self.sums))
        self.counts.index_add_(0, at, torch.ones_like(at, dtype=self.counts.dtype))

    @property
    def prototypes(self) -> Tensor:
        """Class means (C, d); a class without data has a zero row."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(1)

    def forward(self, features: Tensor) -> Tensor:
        return cosines(features, self.prototypes)


class FixedHead(Head):
    """A classifier that came with the weights, answering for ``space``; it does not grow."""

    def __init__(self, layer: nn.Module, space: LabelSpace, num_features: int) -> None:
        super().__init__(num_features)
        self.layer = layer
        self.space = space

    def grow(self, space: LabelSpace) -> None:
        new = [i for i in space.ids if i not in self.space.ids]
        if new:
            raise ValueError(f"this classifier came with its weights and cannot grow to classes {new[:5]}")
        if other := self.misnamed(space):
            mine = self.space.names[self.space.ids.index(other[0])]
            raise ValueError(f"this classifier came with its weights and takes class {other[0]} for {mine!r}, which it is not")

    @property
    def weight(self) -> Tensor:
        """The layer's weight (C, d)."""
        return self.layer.weight  # type: ignore[return-value]

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


class TextHead(Head):
    """``scale * cos(f, t_c)`` with t_c the embedding of a class's name: answers for any named space, learned or not.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.

    Embeddings are kept by names and templates, so that a stream encodes its classes once. Where ``version`` says what the
    encoder is, they are dropped when that changes; without it those of a frozen encoder are kept until :meth:`refresh`, and
    of an encoder that can be trained nothing is kept.

    Args:
        num_features: length of a feature and of an embedding.
        encode: (names, templates) -> (C, num_features), e.g. ``backbone.encode_text`` or a module of prompts.
        templates: read where a label space brings none; each has ``{}`` where the name goes.
        scale: of the cosine; CLIP's models were trained with about 100 (``backbone.logit_scale``).
        version: something that is another value after every change of the encoder (``backbone.text_version``).
    """

    WIRING: ClassVar[frozenset[str]] = frozenset({"kept", "kept_of"})  # follows from the encoder, and is no state of its own
    scale: Tensor
    kept: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor]
    kept_of: int

    def __init__(self, num_features: int, encode: Callable[[tuple[str, ...], tuple[str, ...]], Tensor],
                 templates: tuple[str, ...] = ("a photo of a {}.",), scale: float | Tensor = 100.0,
                 version: Callable[[], Any] | None = None) -> None:
        super().__init__(num_features)
        self.encode, self.templates = encode, tuple(templates)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).detach().clone())
        self.version = version
        self.refresh()

    def grow(self, space: LabelSpace) -> None:
        """Take classes in; nothing is drawn or trained for them.

        Raises:
            ValueError: if they have no names to read.
        """
        if len(space) and not space.names:
            raise ValueError("a text head reads class names; this label space has none")
        super().grow(space)

    def can_answer(self, space: LabelSpace) -> bool:
        """Any space whose classes have names."""
        return bool(space.names) or not len(space)

    def refresh(self) -> None:
        """Forget the embeddings: the encoder is not what it was."""
        self.kept, self.kept_of = {}, 0

    def embeddings(self, space: LabelSpace) -> Tensor:
        """Unit embeddings of the classes of ``space`` (C, num_features)."""
        key = (space.names, space.templates or self.templates)
        now = 0 if self.version is None else hash(self.version())
        if "kept" not in self.__dict__ or now != self.kept_of:
            self.kept, self.kept_of = {}, now
        if key in self.kept and not (self.version is not None and torch.is_grad_enabled()):
            return self.kept[key]
        with torch.enable_grad():  # only so does it show whether the encoder is trained
            found = F.normalize(self.encode(*key), dim=-1)
        if found.shape != (len(space), self.num_features):
            raise ValueError(f"the encoder made {tuple(found.shape)} of {len(space)} names, not (names, {self.num_features})")
        if found.requires_grad and (torch.is_grad_enabled() or self.version is None):
            return found if torch.is_grad_enabled() else found.detach()
        found = found.detach()
        if not torch.is_inference_mode_enabled():
            self.kept[key] = found
        return found

    def over(self, features: Tensor, space: LabelSpace) -> Tensor:
        """Logits over any named ``space``, whether its classes have been taken in or not.

        Raises:
            ValueError: if it has no names.
        """
        if not self.can_answer(space):
            raise ValueError("a text head reads class names; this label space has none")
        if not len(space):
            return features.new_zeros(len(features), 0)
        with full_precision(features, self.embeddings(space).to(features), self.scale) as (f, text, scale):
            return scale.to(f) * F.normalize(f, dim=-1) @ text.T

    def forward(self, features: Tensor) -> Tensor:
        return self.over(features, self.space)
