"""The same learners without any alignment: each side draws its own start, its own batches and its own dropout.

While :data:`STATE` is on, what the comparisons do to make both sides equal does nothing, and what they compare last, the
answers to all test images, is kept as two accuracies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn


@dataclass
class State:
    """``seed``: of the run under way, -1 where sides are aligned; ``start``: whether the start of ours is copied all the same;
    ``labels``: of the test images; ``found``: by learner, the accuracies of both sides in percent."""

    seed: int = -1
    start: bool = False
    labels: Tensor | None = None
    last: tuple[float, float] | None = None
    found: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        return self.seed >= 0

    def seen(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        """Keep accuracies where two single tensors answer every test image."""
        if self.labels is None or len(ours) != 1 or ours[0].ndim != 2 or len(ours[0]) != len(self.labels):
            return
        one, two = (100 * float((t[0].argmax(1) == self.labels).double().mean()) for t in (ours, theirs))
        self.last = one, two

    def noted(self, what: str) -> None:
        """A row of ``what`` was made: the answers compared last are its."""
        if self.last is not None:
            self.found[what] = self.last


STATE = State()


def dropout() -> float:
    """Of the official adapters: as they have it, or none where sides are aligned."""
    return 0.1 if STATE.on else 0.0


@contextmanager
def unaligned() -> Iterator[None]:
    """Inside, where it is on and starts are not copied, tensors and states of modules are not written to."""
    if not STATE.on or STATE.start:
        yield
        return
    stays = mock.patch.object(Tensor, "copy_", lambda self, *a, **kw: self)
    loads = mock.patch.object(nn.Module, "load_state_dict", lambda self, *a, **kw: None)
    with stays, loads, mock.patch.object(Tensor, "__setitem__", lambda self, *a: None):
        yield


def shuffled(batches: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same images in batches of another draw."""
    x, y = (torch.cat([b[side] for b in batches]) for side in (0, 1))
    rows = torch.randperm(len(y)).split(len(batches[0][1]))
    return [(x[r], y[r]) for r in rows]
