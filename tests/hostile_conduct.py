"""Methods that override what is final, adapt without saying so, or draw where no seed is named (see ``hostile.py``)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from hostile import FINAL, NORMS, PURE, QUIET, REPEATS, SEEDS, Learner, stopped
from torch import Tensor, nn

from cl_bench import Batch, Experience, LabelSpace, Method


# ---------------------------------------------------------------------------- finals
@stopped("its definition", "test_step")
def overrides_the_test_step() -> type[Method]:
    """Overrides the step that hands answers to the engine."""
    class Own(Learner):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().test_step(batch, batch_idx)

    return Own


@stopped("its definition", "reset")
def overrides_reset_in_a_mixin() -> type[Method]:
    """Overrides ``reset`` in a base class that is no method."""
    class Keeps:
        def reset(self) -> None:
            pass

    class Own(Keeps, Learner):  # type: ignore[misc]
        pass

    return Own


@stopped("its definition", "mark")
def overrides_mark_by_a_property() -> type[Method]:
    """Makes ``mark`` a property that hands out another function."""
    class Own(Learner):
        @property
        def mark(self) -> Any:  # type: ignore[override]
            return lambda: None

    return Own


@stopped(FINAL, "self.reset")
class OverridesOnTheObject(Learner):
    """Overrides ``reset`` on the object, past ``setattr``."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.__dict__["reset"] = lambda: None


@stopped(FINAL, "OverridesLater.mark")
class OverridesLater(Learner):
    """Overrides ``mark`` on the class while it learns."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        type(self).mark = lambda self: None  # type: ignore[method-assign]


@stopped(FINAL, "__getattribute__")
class LooksUpItself(Learner):
    """Answers every look-up of an attribute by itself."""

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class _Meta(type):
    pass


@stopped(FINAL, "the metaclass _Meta")
class HasAMetaclass(Learner, metaclass=_Meta):
    """Has a metaclass, which decides what its attributes are."""


# ---------------------------------------------------------------------------- adapting without saying so
@stopped(PURE, "the second time")
class AdaptsInSecret(Learner):
    """Takes a step on the entropy of what it answers."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        with torch.enable_grad():
            out = super().predict(x, space)
            loss = -(out.softmax(1) * out.log_softmax(1)).sum(1).mean()
            grads = torch.autograd.grad(loss, list(self.head.parameters()))
        with torch.no_grad():
            for p, g in zip(self.head.parameters(), grads, strict=True):
                p -= 1e-2 * g
        return out.detach()


@stopped(NORMS, "changes|change")
class TrainsItsNorms(Learner):
    """Puts norm layers into training mode as a test begins, which counts nowhere but on BatchNorm."""

    def on_test_start(self) -> None:
        self.backbone.train()


@stopped(NORMS, "statistics of the test batch")
class AnswersByBatchStatistics(Learner):
    """Lets norm layers forget what they learned, so that they use the test batch's statistics."""

    def end(self, exp: Experience) -> None:
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean = m.running_var = None


@stopped(QUIET, "writes into the images")
class WritesIntoTheBatch(Learner):
    """Blackens the images that it was asked about."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        out = super().predict(x, space)
        x.zero_()
        return out


# ---------------------------------------------------------------------------- chance that no seed names
@stopped(REPEATS, "two runs with one seed differ")
class StartsAnyhow(Learner):
    """Starts from the operating system's randomness."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        with torch.no_grad():
            for p in self.head.parameters():
                p.add_(torch.randn(p.shape, generator=generator))


@stopped(PURE, "the second time")
class AnswersAnyhow(Learner):
    """Adds the operating system's randomness to its answers."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) + int.from_bytes(os.urandom(2), "little") * 1e-4 * torch.arange(len(space))


@stopped(QUIET, "torch's random state")
class SeedsWhenAsked(Learner):
    """Seeds torch's generator whenever it is asked."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        torch.manual_seed(0)
        return super().predict(x, space)


@stopped(SEEDS, "begin seeds torch's")
class SeedsWhenItBegins(Learner):
    """Seeds torch's generator as it begins: every run draws the same."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        torch.manual_seed(123)


@stopped(SEEDS, "end seeds NumPy's")
class SeedsInAStep(Learner):
    """Seeds NumPy's generator in every step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        np.random.seed(1)  # noqa: NPY002
        return super().training_step(batch, batch_idx)
