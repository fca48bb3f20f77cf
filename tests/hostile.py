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

import torch
from torch import Tensor
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
