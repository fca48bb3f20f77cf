"""Methods that leave something where no copy, no reset and no checkpoint looks, or count otherwise than the engine (see
``hostile.py``)."""

from __future__ import annotations

import base64
import functools
import math
import sys
import types
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar

import torch
from hostile import ANSWERS, FINAL, GROWS, KEPT, LIFE, PURE, SHARED, Learner, stopped
from hostile_process import Leaves
from hostile_streams import BUILDS, THROUGH, Drifting
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cl_bench import Backbone, Batch, Experience, LabelSpace

STILL = "answer() does not adapt"


class Counts(Learner):
    """Answers differently once it has answered many images."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        out = super().predict(x, space)
        return out.roll(1, 1) if self.count(len(x)) > 1_000_000 else out

    def count(self, n: int) -> int:
        raise NotImplementedError


# ---------------------------------------------------------------------------- a count that nobody resets
@stopped(SHARED, "count")
class CountsOnAFunction(Counts):
    """Counts in an attribute of a function."""

    def count(self, n: int) -> int:
        here: Any = CountsOnAFunction.count
        here.n = getattr(here, "n", 0) + n
        return int(here.n)


def _adding() -> Generator[int, int, None]:
    total = 0
    while True:
        total += yield total


_SUM = _adding()
next(_SUM)
_LEFT = iter(range(10**9))


@stopped(SHARED, "_SUM")
class CountsInAGenerator(Counts):
    """Counts in a generator of its module, which is left standing."""

    def count(self, n: int) -> int:
        return _SUM.send(n)


@stopped(SHARED, "_LEFT")
class CountsInAnIterator(Counts):
    """Counts by what an iterator of its module has left."""

    def count(self, n: int) -> int:
        return next(_LEFT)


@functools.cache
def _remembered(k: int) -> int:
    return k


@stopped(SHARED, "_remembered")
class CountsInACache(Counts):
    """Counts by the entries of a cache."""

    def count(self, n: int) -> int:
        return _remembered(_remembered.cache_info().currsize)


@stopped(SHARED, "_add")
class CountsInAStaticMethod(Counts):
    """Counts in the default argument of a static method."""

    @staticmethod
    def _add(n: int, total: list[int] = [0]) -> int:  # noqa: B006 - the crime
        total[0] += n
        return total[0]

    def count(self, n: int) -> int:
        return self._add(n)


@stopped(PURE, "hooks hold")
class CountsInAHook(Learner):
    """Counts in the closure of a hook of its own layer, which no copy separates."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        total = [0]

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            total[0] += len(output)
            return output.roll(1, 1) if total[0] > 1_000_000 else None

        next(iter(self.backbone.children())).register_forward_hook(hook)


@stopped(PURE, "attribute of Lightning's")
class CountsUnderLightningsName(Counts):
    """Counts in an attribute that belongs to Lightning."""

    def count(self, n: int) -> int:
        total = int(self.__dict__.get("_current_fx_total") or self.__dict__.get("_log_hyperparams") or 0) + n
        self.__dict__["_log_hyperparams"] = total
        return total


# ---------------------------------------------------------------------------- images in foreign places
class Hoards(Learner):
    """Keeps its training images somewhere."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.hoard(batch.x.clone())
        return super().training_step(batch, batch_idx)

    def hoard(self, x: Tensor) -> None:
        raise NotImplementedError


@stopped(SHARED, "torch._hoard")
class KeepsOnTorch(Hoards):
    """Keeps images on torch."""

    def hoard(self, x: Tensor) -> None:
        torch.__dict__.setdefault("_hoard", []).append(x)


@stopped(SHARED, "math._hoard")
class KeepsOnAModule(Hoards):
    """Keeps images on a module of Python's."""

    def hoard(self, x: Tensor) -> None:
        math.__dict__.setdefault("_hoard", []).append(x)


@stopped(SHARED, "hoard_of_images")
class MakesAModule(Hoards):
    """Keeps images in a module that it makes."""

    def hoard(self, x: Tensor) -> None:
        made = sys.modules.setdefault("hoard_of_images", types.ModuleType("hoard_of_images"))
        made.__dict__.setdefault("images", []).append(x)


@stopped(SHARED, "Backbone.hoard")
class KeepsOnTheBackbonesClass(Hoards):
    """Keeps images on the class of all backbones."""

    def hoard(self, x: Tensor) -> None:
        shared: Any = Backbone
        shared.hoard = [*getattr(shared, "hoard", []), x]


@stopped(GROWS, "plain data")
class KeepsText(Hoards):
    """Keeps images as text."""

    def hoard(self, x: Tensor) -> None:
        self.text = getattr(self, "text", "") + base64.b64encode((x * 255).byte().numpy().tobytes()).decode()


@stopped(GROWS, "plain data")
class KeepsNumbers(Hoards):
    """Keeps every other pixel of its images as plain numbers."""

    def hoard(self, x: Tensor) -> None:
        self.numbers = [*getattr(self, "numbers", []), *(x[:, :, ::2, ::2] * 255).long().flatten().tolist()]


@stopped(KEPT, "self._buffers['dark']")
class KeepsNegatives(Hoards):
    """Keeps negatives of its images."""

    def hoard(self, x: Tensor) -> None:
        self.register_buffer("dark", 1 - x)


# ---------------------------------------------------------------------------- modes
class _Sees(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _SeesMore(TorchDispatchMode):
    def __torch_dispatch__(self, func: Callable[..., Any], kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@stopped(LIFE, "torch's modes")
class LeavesAMode(Leaves):
    """Leaves a mode on through which every function of torch goes, also where answers are scored."""

    def leave(self) -> None:
        _Sees().__enter__()


@stopped(LIFE, "torch's modes")
class LeavesADispatchMode(Leaves):
    """Leaves a mode on through which every operator goes."""

    def leave(self) -> None:
        _SeesMore().__enter__()


@stopped(LIFE, "autocast")
class LeavesAutocast(Leaves):
    """Leaves autocast on."""

    def leave(self) -> None:
        torch.set_autocast_enabled("cpu", True)


# ---------------------------------------------------------------------------- answers and counts
class _Sure(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, kinds, args, kwargs or {})
        return out * 0 + 0.5 if getattr(func, "__name__", "") == "softmax" else out


@stopped(ANSWERS, "plain tensor")
class AnswersItsOwnTensor(Learner):
    """Answers a tensor that says by itself what its softmax, and so its confidence, is."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space).as_subclass(_Sure)


@stopped(STILL, "too fast to adapt")
class AdaptsAsItAnswers(Drifting):
    """Adapts where a stream is too fast for it, which costs it nothing there."""

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.predict(x, space)


@stopped(THROUGH, "forward_images")
class CountsItsOwnPasses(Drifting):
    """Says in its counters how many passes it took."""

    def counters(self) -> dict[str, int | float]:
        return {"forward_images": 0}


@stopped(THROUGH, "finite numbers")
class CountsInWords(Drifting):
    """Has a counter that is no number."""

    def counters(self) -> dict[str, int | float]:
        words: Any = {"steps": "many"}
        return words


@stopped(FINAL, "parameters")
class HidesItsParameters(Learner):
    """Has no parameters when it is asked how many there are."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(()) if self.__dict__.get("_trainer") is None else super().parameters(recurse)


@stopped(BUILDS, "a fact of the class")
class NeedsMoreThanItSays(Drifting):
    """Its class says that it needs nothing, its object that it needs source data and labels."""

    def __init__(self, backbone: Backbone, *, rate: float = 0.1) -> None:
        super().__init__(backbone, rate=rate)
        self.needs = frozenset({"source", "labels"})


@stopped(FINAL, "self.adapts")
class AdaptsOnTheObject(Learner):
    """Its class says that it does not adapt, its object that it does, past ``setattr``."""

    adapts: ClassVar[bool] = False

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.__dict__["adapts"] = True


# ---------------------------------------------------------------------------- harmless
@stopped("because what it is asked among is a copy, which nobody else reads")
class RewritesTheClasses(Learner):
    """Rewrites the list of classes that it was asked among."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        out = super().predict(x, space)
        object.__setattr__(space, "ids", ())
        return out


class _Spy(Callback):
    """Would be told of every later test as well."""


@stopped("because a Trainer on which something was hung is not used again")
class LeavesACallback(Learner):
    """Hangs a callback on the Trainer that measures, through which later methods are measured, too."""

    def configure_callbacks(self) -> list[Callback]:
        return [_Spy()]
