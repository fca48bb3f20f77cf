"""Methods that each break one promise, and where each is stopped: by which check, when the class is defined, or not at all
because it gains nothing. ``docs/trust.md`` shows the same list; ``tests/test_checker_hostile.py`` holds both.

They learn on a small network and are honest but for one crime.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from toys import tiny_backbone

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method
from cl_bench.backbones.base import Preprocess

IDENTITY = "an answer does not depend on which test set an image lies in"
ALONE = "an answer depends on the image, not on the others in its batch"
POISONED = "poisoned test labels change nothing"
REPEATS = "same seed, same logits"
REACH = "nothing in its reach leads to labels"
KEPT = "kept images are counted"
GROWS = "state that grows with the images is declared"
SHARED = "classes and modules keep no state"
LIFE = "learning leaves global state alone"
QUIET = "predict leaves global state alone"
SEEDS = "draws follow the run's seed"
PATCHED = "the harness's code is left alone"
FINAL = "final methods are left alone"
PURE = "predict has no side effect"
NORMS = "on BatchNorm, predict has no side effect"
ANSWERS = "answers are float logits (images, classes)"
LOGITS = "answers are logits, not probabilities or a sum"
DATA = "data that it is given stay as they are"
SPACES = "seen and current are the classes of its experiences"
FILES = "no file, program or network is opened"
LEARNS = "learns above chance"


@dataclass
class Crime:
    """``cls`` (or what makes it) is stopped ``by`` a check, by "its definition", or is harmless "because ..."."""

    cls: Any
    by: str
    said: str

    @property
    def name(self) -> str:
        """The class's or the function's name."""
        return str(self.cls.__name__)

    @property
    def what(self) -> str:
        """The crime in one line."""
        return str(self.cls.__doc__).strip().splitlines()[0]


CRIMES: list[Crime] = []


def stopped(by: str, said: str = "") -> Callable[[Any], Any]:
    """Registers a crime: the check that fails and a part of what it says; or ``because ...`` it is harmless."""
    def kept(cls: Any) -> Any:
        CRIMES.append(Crime(cls, by, said))
        return cls

    return kept


def backbone() -> Backbone:
    """Small and quick on the toy's 32 x 32 digits."""
    return Backbone(tiny_backbone().model, num_features=8, preprocess=Preprocess(4, interpolation="bilinear"))


class Learner(Method):
    """Honest: learns a linear head and a small network."""

    def __init__(self, backbone: Backbone, *, lr: float = 1e-2, epochs: int = 12, batch_size: int = 8) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)


# ---------------------------------------------------------------------------- the task behind an image
@stopped(IDENTITY, "alone")
class CountsLoaders(Learner):
    """Infers the test set from the number of batches that the Trainer announces."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        trainer = self.__dict__.get("_trainer")
        batches = sum(trainer.num_test_batches) if trainer is not None else 0
        return super().predict(x, space).roll(int(batches) % len(space), 1)


@stopped(IDENTITY, "later in its test set")
class CountsBatches(Learner):
    """Infers the test set from the position of the batch, in Lightning's hook."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.__dict__["_answers_at"] = batch_idx

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space).roll(self.__dict__.get("_answers_at", 0), 1)

    def on_test_end(self) -> None:
        self.__dict__.pop("_answers_at", None)


@stopped(ALONE, "differ by")
class LooksAround(Learner):
    """Infers the test set from the other images of the batch."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) + x.mean() * torch.arange(len(space))


@stopped(SPACES, "after digits 0, 1")
class ClaimsClasses(Learner):
    """Says that it has seen classes which it has not, so that cells are measured that should not be."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.seen = LabelSpace((0, 1, 2, 3), ("0", "1", "2", "3"))


# ---------------------------------------------------------------------------- images kept in secret
@stopped(KEPT, "in self.hoard")
class KeepsInAList(Learner):
    """Keeps every image in a plain list."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("hoard", []).append(batch.x.clone())
        return super().training_step(batch, batch_idx)


@stopped(KEPT, "self._marked_images")
class KeepsUnderTheMark(Learner):
    """Keeps images as numpy bytes in a dictionary whose name looks like the harness's."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        store = self.__dict__.setdefault("_marked_images", {})
        store[len(store)] = (batch.x * 255).byte().numpy()
        return super().training_step(batch, batch_idx)


@stopped(KEPT, "self._buffers['few']")
class KeepsABuffer(Learner):
    """Keeps one channel of some images, normalised and in half precision, as a buffer."""

    def end(self, exp: Experience) -> None:
        x = exp.data[0][0].float()[:1]
        self.register_buffer("few", ((x - x.mean()) / x.std()).half()[None])


@stopped(KEPT, "in self.")
class KeepsTheExperience(Learner):
    """Keeps the experience itself."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.past = [*getattr(self, "past", []), exp]


@stopped(KEPT, "in self.")
class KeepsInAClosure(Learner):
    """Keeps images where only a function sees them."""

    def end(self, exp: Experience) -> None:
        x = torch.stack([exp.data[k][0] for k in range(6)])
        self.__dict__["recall"] = lambda: x


class _Box:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


@stopped(KEPT, "in self.")
class KeepsInASlot(Learner):
    """Keeps images in an object of its own class, flattened."""

    def end(self, exp: Experience) -> None:
        self.__dict__["box"] = _Box(exp.data[0][0].float().flatten())


@stopped(KEPT, "in KeepsOnTheClass.store")
class KeepsOnTheClass(Learner):
    """Keeps images on the class, where no copy and no record looks."""

    store: list[Tensor] = []

    def end(self, exp: Experience) -> None:
        KeepsOnTheClass.store.append(exp.data[0][0].clone())


_MODULE: dict[str, Any] = {}


@stopped(KEPT, "hostile._MODULE")
class KeepsInTheModule(Learner):
    """Keeps images in a global of its module."""

    def end(self, exp: Experience) -> None:
        _MODULE["images"] = exp.data[1][0].clone()


@stopped(GROWS, "which no memory counts")
class KeepsFeatures(Learner):
    """Keeps a feature of every image and counts none."""

    def end(self, exp: Experience) -> None:
        with torch.no_grad():
            x = torch.stack([exp.data[k][0] for k in range(len(exp.data))]).float() / 255  # type: ignore[arg-type]
            self.features = [*getattr(self, "features", []), self.backbone.forward_features(x)]


# ---------------------------------------------------------------------------- state where nothing saves or resets it
@stopped(SHARED, "CountsOnTheClass.answered changed")
class CountsOnTheClass(Learner):
    """Counts on the class what it answered, and answers differently after two thousand images."""

    answered = 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        CountsOnTheClass.answered += len(x)
        out = super().predict(x, space)
        return out.roll(1, 1) if CountsOnTheClass.answered > 2000 else out


_NUMBERS = random.Random(5)


@stopped(SHARED, "hostile._NUMBERS changed")
class DrawsFromTheModule(Learner):
    """Draws from a generator that all of its objects share."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        _NUMBERS.random()


def _step(batch: Any, seen: list[int] = [0]) -> None:  # noqa: B006 - the crime
    seen[0] += 1


@stopped(SHARED, "hostile._step changed")
class CountsInADefault(Learner):
    """Counts in the default argument of a function."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        _step(batch)
        return super().training_step(batch, batch_idx)


@stopped(SHARED, "ReplacesItself.forward changed")
class ReplacesItself(Learner):
    """Replaces a method of its class while it learns."""

    def end(self, exp: Experience) -> None:
        ReplacesItself.forward = lambda self, x: self.head(self.backbone.forward_features(x))  # type: ignore[method-assign]


# ---------------------------------------------------------------------------- the scorer and the libraries
@stopped(PATCHED, "cl_bench.engine.measure.Scored.of")
class PatchesTheScorer(Learner):
    """Replaces the function that counts right answers."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        from cl_bench.engine import measure

        kept = measure.Scored.of
        measure.Scored.of = lambda *parts: kept(*parts)  # type: ignore[method-assign]


@stopped(PATCHED, "cl_bench.engine.measure.labels_of")
class PatchesTheLabels(Learner):
    """Replaces the function that reads labels by one that also keeps them."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        from cl_bench.engine import measure

        kept = measure.labels_of
        measure.labels_of = lambda data: kept(data)  # type: ignore[attr-defined]
        return super().predict(x, space)


@stopped(PATCHED, "cl_bench.numbers.matrix.AccuracyMatrix")
class PatchesTheMatrix(Learner):
    """Replaces what the accuracy matrix means."""

    def end(self, exp: Experience) -> None:
        from cl_bench.numbers.matrix import AccuracyMatrix

        AccuracyMatrix.average = lambda *parts: 100.0  # type: ignore[attr-defined]


@stopped(PATCHED, "torch.nn.functional.cross_entropy")
class PatchesTorch(Learner):
    """Replaces a function of torch, for all methods that run after it."""

    def end(self, exp: Experience) -> None:
        kept = torch.nn.functional.cross_entropy
        torch.nn.functional.cross_entropy = lambda *a, **k: kept(*a, **k)


@stopped(PATCHED, "torch.Tensor.softmax")
class PatchesTensors(Learner):
    """Replaces a method of tensors, through which confidences are computed."""

    def end(self, exp: Experience) -> None:
        kept = Tensor.softmax
        Tensor.softmax = lambda self, *a, **k: kept(self, *a, **k)  # type: ignore[method-assign]


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


# ---------------------------------------------------------------------------- data and files
@stopped("because what it is handed are copies: nobody else sees what it wrote")
class BlackensItsData(Learner):
    """Blackens the images of its experience when it has learned them."""

    def end(self, exp: Experience) -> None:
        exp.data.x.zero_()  # type: ignore[attr-defined]


@stopped(FILES, "hostile.py.notes")
class WritesAFile(Learner):
    """Keeps notes in a file."""

    def end(self, exp: Experience) -> None:
        with open(f"{__file__}.notes", "w") as notes:
            notes.write(exp.name)
        os.unlink(f"{__file__}.notes")


@stopped(FILES, "subprocess.Popen")
class StartsAProgram(Learner):
    """Asks another program."""

    def end(self, exp: Experience) -> None:
        import subprocess

        subprocess.run(["true"], check=True)
