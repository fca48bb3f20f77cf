"""Test-time methods that each break one promise (see ``hostile.py``)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from hostile import KEPT, POISONED, REACH, REPEATS, SEEDS, stopped
from torch import Tensor

from cl_bench import Backbone, Experience, LabelSpace, Method, TestSet
from cl_bench.adaptation import TestTimeMethod
from cl_bench.scenario import Scenario

CUT = "a stream cut into other segments is answered the same"
AGREE = "answer() agrees with predict()"
THROUGH = "goes through learning or deployment"
BUILDS = "builds from its defaults"
RESET = "reset is exact and adapts again"
SHIFT = "is not worse than its source under shift"
SAVED = "saved, loaded into a new object, answers the same"


class Drifting(Method):
    """Honest: drifts with what it sees."""

    adapts: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, rate: float = 0.1) -> None:
        super().__init__(backbone)
        self.rate = rate
        self.register_buffer("mean", torch.zeros(3))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean((0, 2, 3)).to(self.mean), self.rate)
            return super().predict(x, space) + 1e-3 * self.mean.mean()


# ---------------------------------------------------------------------------- labels and identities
def _search(value: Any, depth: int, seen: set[int]) -> list[TestSet]:
    """Test sets and scenarios' streams among the attributes of ``value``, many levels deep."""
    if depth == 0 or id(value) in seen or isinstance(value, (Tensor, str, int, float, type)):
        return []
    seen.add(id(value))
    if isinstance(value, TestSet):
        return [value]
    if isinstance(value, Scenario):
        return list(value.stream())
    inside = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple)) else []
    inside += list(getattr(value, "__dict__", {}).values())
    return [t for v in inside for t in _search(v, depth - 1, seen)]


@stopped("because nothing that it finds leads to a label: the Trainer holds one opaque iterable of images")
class SearchesItsTrainer(Drifting):
    """Searches its Trainer, nine levels deep, for test sets, and answers with their labels."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        out = super().predict(x, space)
        trainer = self.__dict__.get("_trainer")
        for test in _search(vars(trainer), 9, set()) if trainer is not None else []:
            for k, image in enumerate((x * 255).round().byte()):
                rows = (test.data.x == image).flatten(1).all(1)  # type: ignore[attr-defined]
                if rows.any():
                    label = int(test.data.y[rows][0])  # type: ignore[attr-defined]
                    out[k] = torch.where(torch.tensor(space.ids) == label, 9.0, -9.0)
        return out


@stopped(POISONED, "depend on the labels")
class LooksAtItsCallers(Drifting):
    """Looks through the frames that called it for a test set (out of scope, and seen all the same)."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        import sys

        out, frame = super().predict(x, space), sys._getframe()
        while frame is not None:
            for value in frame.f_locals.values():
                if isinstance(value, TestSet):
                    return out + 100 * torch.nn.functional.one_hot(value.data.y[: len(x)], len(space))  # type: ignore[attr-defined]
            frame = frame.f_back  # type: ignore[assignment]
        return out


@stopped(CUT, "nobody says that the domain changes")
class KnowsWhereDomainsEnd(Drifting):
    """Starts anew with every segment, in Lightning's hook: it knows where domains end and says not that it needs to."""

    def on_test_start(self) -> None:
        self.mean += 10_000 * (1 + len(str(self.rate)))
        self.register_buffer("turned", torch.tensor(float(getattr(self, "turned", 0.0) == 0.0)))

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space).roll(int(getattr(self, "turned", 0.0)), 1)


@stopped(REACH, "self.secret is the experience source")
class KeepsASecret(Drifting):
    """Gets at an experience that nobody handed to it, and keeps it."""

    def __init__(self, backbone: Backbone, *, rate: float = 0.1) -> None:
        super().__init__(backbone, rate=rate)
        from cl_bench.testing.toy import ToyScenario

        self.__dict__["secret"] = ToyScenario(learns=False).source


# ---------------------------------------------------------------------------- deployment
@stopped(BUILDS, "RuntimeError: nothing to build (hostile_streams.py:")
class CannotBuild(TestTimeMethod):
    """Does not adapt, and fails as soon as it is deployed."""

    adapts: ClassVar[bool] = False

    def build(self, source: Experience | None) -> None:
        raise RuntimeError("nothing to build")


@stopped("answers are float logits (images, classes)", "RuntimeError: nothing to say (hostile_streams.py:")
class CannotAnswer(TestTimeMethod):
    """Does not adapt, and cannot answer once it is deployed."""

    adapts: ClassVar[bool] = False

    def outputs(self, x: Tensor) -> Tensor:
        raise RuntimeError("nothing to say")


@stopped(BUILDS, "RuntimeError: not today (hostile_streams.py:")
class CannotDeploy(Method):
    """Learns, and fails in a ``deploy`` of its own."""

    def deploy(self, source: Experience | None, *stream: Any) -> None:
        raise RuntimeError("not today")


@stopped(SEEDS, "deploy seeds torch's")
class SeedsAsItIsDeployed(Drifting):
    """Seeds torch's generator as it is deployed."""

    def deploy(self, source: Experience | None, *stream: Any) -> None:
        torch.manual_seed(5)


@stopped(REPEATS, "two runs with one seed differ")
class DeploysAnyhow(Drifting):
    """Counts its deployments on the class."""

    turns: ClassVar[int] = 0

    def deploy(self, source: Experience | None, *stream: Any) -> None:
        DeploysAnyhow.turns += 1
        self.offset = DeploysAnyhow.turns

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) + self.offset * torch.arange(len(space))


# ---------------------------------------------------------------------------- answers and memories
@stopped(AGREE, "different classes")
class AnswersOtherwise(Drifting):
    """Answers otherwise where a stream is too fast for it than where it adapts."""

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().answer(x, space).roll(1, 1)


@stopped(KEPT, "96 test images lie in self.hoard")
class KeepsTheStream(Drifting):
    """Keeps every test image that it saw."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.hoard = [*getattr(self, "hoard", []), x.clone()]
        return super().predict(x, space)


@stopped(RESET, "answered differently")
class RemembersAcrossResets(Drifting):
    """Keeps on the class what a reset should take back."""

    batches: ClassVar[list[int]] = [0]

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        RemembersAcrossResets.batches[0] += 1
        return super().predict(x, space).roll(RemembersAcrossResets.batches[0], 1)


@stopped(SHIFT, "where the source has")
class GetsWorse(Drifting):
    """Answers the opposite."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return -super().predict(x, space)


@stopped(SAVED, "is a function")
class KeepsAFunction(Drifting):
    """Keeps a function that no checkpoint can hold."""

    def deploy(self, source: Experience | None, *stream: Any) -> None:
        self.trick = lambda x: x


