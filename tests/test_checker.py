"""The checker catches what it promises to catch, and says so in words a person can act on."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import tiny_backbone

from cl_bench import Backbone, LabelSpace, Method, TestSet
from cl_bench.backbones.base import Preprocess
from cl_bench.rng import Rng
from cl_bench.testing import Report, check_method


def backbone() -> Backbone:
    """Small and quick on the toy's 32 x 32 digits."""
    tiny = tiny_backbone()
    return Backbone(tiny.model, num_features=8, preprocess=Preprocess(4, interpolation="bilinear"))


def failures(report: Report) -> dict[str, str]:
    return {f.check: f.note for f in report.findings if f.state == "failed"}


def asked(cls: type[Method]) -> dict[str, str]:
    return failures(check_method(cls, backbone=backbone))


class Sound(Method):
    """Keeps every promise; the others break one each."""

    def __init__(self, backbone: Backbone, *, lr: float = 1e-2, epochs: int = 12, batch_size: int = 8) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)


class Adapting(Method):
    """A sound test-time method: drifts with what it sees, from its own generator."""

    adapts: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, rate: float = 0.1) -> None:
        super().__init__(backbone)
        self.rate = rate
        self.register_buffer("mean", torch.zeros(3))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean((0, 2, 3)).to(self.mean), self.rate)
            return super().predict(x, space) + 1e-3 * self.mean.mean()


def test_sound_methods_pass() -> None:
    for cls in (Sound, Adapting):
        report = check_method(cls, backbone=backbone)
        report.raise_if_failed()
        assert len(report.findings) >= 13 and all(f.state == "passed" for f in report.findings)


class MutableDefault(Sound):
    def __init__(self, backbone: Backbone, *, layers: list[int] = [1, 2]) -> None:  # noqa: B006
        super().__init__(backbone)
        self.layers = layers


class NoDefault(Sound):
    def __init__(self, backbone: Backbone, *, rank: int) -> None:
        super().__init__(backbone)
        self.rank = rank


class Swallows(Sound):
    def __init__(self, backbone: Backbone, **kwargs: Any) -> None:
        super().__init__(backbone)


class Forgets(Sound):
    def __init__(self, backbone: Backbone, *, rank: int = 4) -> None:
        super().__init__(backbone)


class Renames(Sound):
    def __init__(self, backbone: Backbone, *, rank: int = 4) -> None:
        super().__init__(backbone)
        self.rank = 2 * rank


class Strange(Sound):
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries", "the answers"})


class Refuses(Sound):
    def __init__(self, backbone: Backbone) -> None:
        raise RuntimeError("not today")


class Stubborn(Sound):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class GlobalDraw(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        torch.rand(1)
        return super().predict(x, space)


class NumpyDraw(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        np.random.rand()  # noqa: NPY002
        return super().predict(x, space)


class Counts(Sound):
    calls = 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.calls = self.calls + 1
        return super().predict(x, space)


class Drifts(Sound):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.register_buffer("seen_images", torch.zeros(()))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.seen_images += len(x)
        return super().predict(x, space)


class Unfreezes(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.backbone.train()
        return super().predict(x, space)


class Changes(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.head.weight.data.mul_(1.5)
        return super().predict(x, space)


_SHARED = torch.Generator().manual_seed(0)


class Lottery(Sound):
    def begin(self, exp: Any) -> None:
        super().begin(exp)
        self.head.weight.data += torch.randn(self.head.weight.shape, generator=_SHARED)


class Unwritable(Sound):
    def begin(self, exp: Any) -> None:
        super().begin(exp)
        self.trick = lambda x: x


class Elsewhere(Sound):
    """Keeps what it learned where copies do not look."""

    store: ClassVar[dict[int, float]] = {}

    def end(self, exp: Any) -> None:
        Elsewhere.store[id(self)] = 1.0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) + Elsewhere.store.get(id(self), 0.0)


class Wide(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self(x)[:, :1]


class NeedsTwo(Sound):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) / x.std(0, unbiased=True).mean()


class Single(Sound):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.plain = [nn.Linear(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.plain[0](self.backbone.forward_features(x)))


class Cheats(Sound):
    """Finds no labels in its Trainer, and looks through the frames that called it."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        out = super().predict(x, space)
        frame = sys._getframe()
        while frame is not None:
            tests = frame.f_locals.get("tests")
            if isinstance(tests, (list, tuple)) and tests and isinstance(tests[0], TestSet):
                labels = tests[0].data.y[: len(x)] % len(space)
                return out + 100 * nn.functional.one_hot(labels, len(space))
            frame = frame.f_back
        return out


KEYWORDS = "every hyper-parameter is a keyword with an immutable default"
NAMES = "parameter name = attribute name"
PURE = "predict has no side effect"
WORLD = "predict leaves global state alone"
SAVED = "saved, loaded into a new object, answers the same"
LEARNS = "learns above chance"


@pytest.mark.parametrize(("cls", "check", "said"), [
    (MutableDefault, KEYWORDS, "the default of layers is a list, which all instances would share"),
    (NoDefault, KEYWORDS, "rank has no default"),
    (Swallows, KEYWORDS, "*kwargs hides what the method takes"),
    (Forgets, NAMES, "self.rank is missing"),
    (Renames, NAMES, "self.rank is 8, was given 4"),
    (Strange, "needs are words that a scenario can give", "the answers: known are boundaries"),
    (Refuses, "builds from its defaults", "RuntimeError: not today"),
    (Stubborn, LEARNS, "where chance is 50 %"),
    (GlobalDraw, WORLD, "predict changes torch's random state"),
    (NumpyDraw, WORLD, "predict changes NumPy's random state"),
    (Counts, PURE, "plain state changes"),
    (Drifts, PURE, "1 tensors change"),
    (Unfreezes, PURE, "train/eval flags change"),
    (Changes, PURE, "answered differently the second time"),
    (Lottery, "same seed, same logits", "two runs with one seed differ by"),
    (Unwritable, SAVED, "Unwritable.trick is a function"),
    (Elsewhere, "same seed, same logits", "two runs with one seed differ by"),
    (Wide, "answers are float logits (images, classes)", "predict returned (24, 1) for 24 images and 4 classes"),
    (NeedsTwo, "answers a batch of one", "answered NaN"),
    (Single, ".double() moves everything", "dtype"),
    (Cheats, "poisoned test labels change nothing", "predictions depend on the labels of the test set"),
], ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_broken_method_is_caught(cls: type[Method], check: str, said: str) -> None:
    wrong = asked(cls)
    assert check in wrong, wrong
    assert said in wrong[check]


class Teacher(Adapting):
    """Keeps a count where mark() does not reach."""

    batches: ClassVar[list[int]] = [0]

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        Teacher.batches[0] += 1
        return super().predict(x, space).roll(Teacher.batches[0], 1)


class _Clinging(nn.Module):
    """Copies of it are itself, so that a mark shares it with what goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def __deepcopy__(self, memo: Any) -> _Clinging:
        return self


class ForgetsOnReset(Adapting):
    """Keeps its average where a mark does not reach."""

    def __init__(self, backbone: Backbone, *, rate: float = 0.1) -> None:
        super().__init__(backbone, rate=rate)
        self.kept = _Clinging()

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.kept.mean += x.mean((0, 2, 3)).detach()
        return super().predict(x, space)


class Worse(Adapting):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return -super().predict(x, space)


class DrawsWhileAdapting(Adapting):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x + 1e-4 * torch.randn_like(x), space)


@pytest.mark.parametrize(("cls", "check", "said"), [
    (ForgetsOnReset, "reset is exact and adapts again", "1 tensors are not restored"),
    (Teacher, "reset is exact and adapts again", "after reset the same stream is answered differently"),
    (Worse, "is not worse than its source under shift", "where the source has"),
    (DrawsWhileAdapting, WORLD, "torch's random state"),
], ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_broken_test_time_method_is_caught(cls: type[Method], check: str, said: str) -> None:
    wrong = asked(cls)
    assert check in wrong, wrong
    assert said in wrong[check]


class Own(Adapting):
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        noise = torch.randn(x.shape, generator=self.rng.on(x.device), dtype=x.dtype)
        return super().predict(x + 1e-4 * noise, space)


def test_drawing_from_ones_own_generator_is_fine() -> None:
    assert asked(Own) == {} and isinstance(Own(backbone()).rng, Rng)


class Excused(Counts):
    exempt: ClassVar[dict[str, str]] = {PURE: "it counts its calls on purpose"}


def test_what_is_no_method_and_what_is_exempt() -> None:
    assert "is not a subclass of cl_bench.Method" in failures(check_method(nn.Linear))["is a Method"]  # type: ignore[arg-type]

    report = check_method(Excused, backbone=backbone)
    assert report.ok and [f.note for f in report.findings if f.state == "exempt"] == ["it counts its calls on purpose"]
    with pytest.raises(AssertionError, match=r"Counts breaks its contract:\n  predict has no side effect: plain state"):
        check_method(Counts, backbone=backbone).raise_if_failed()
