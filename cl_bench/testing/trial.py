"""One method on the toy: trained once, watched while it was, then questioned on copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone
from ..data import TensorData
from ..errors import UserError
from ..method import Method
from ..registry import find
from ..types import Experience, LabelSpace, TestSet
from . import _engine as engine
from .report import pressed
from .toy import ToyScenario, class_names
from .traces import gained, names, own_state, told
from .walk import Gallery, held
from .world import changed, code, opened, patched, unusual, world

__all__ = ["Streamed", "Trial", "kept", "streams"]

EPOCHS = 8
_BACKBONES = ("glyph_vit", "glyph_resnet")


def streams(cls: type[Method]) -> bool:
    """Whether a method has something of its own to do before or in a test stream."""
    return cls.adapts or cls.deploy is not Method.deploy


@dataclass
class Streamed:
    """What a stream made of a method.

    Attributes:
        method: marked before the stream; a reset takes it back.
        marked: its state then.
        error, predicted: in percent over the stream; classes per segment.
        after: a copy as it was after the stream.
        kept: test images that it keeps, by row, and where.
    """

    method: Method
    marked: tuple[Any, dict[str, Tensor]]
    error: float
    predicted: list[np.ndarray]
    after: Method
    kept: dict[int, str]


class Trial:
    """A method class with its backbone on the toy scenario; what costs a fit is done once, when first asked for.

    Attributes:
        watched: what the method's life (learning or deployment, then answering through the engine) changed beyond itself:
            lists of names by kind.
    """

    def __init__(self, cls: type[Method], backbone: Callable[[], Backbone] | None = None,
                 hparams: dict[str, Any] | None = None) -> None:
        self.cls, self.hparams, self._backbone = cls, dict(hparams or {}), backbone
        self.streams = streams(cls)
        self.scenario = ToyScenario(learns=not self.streams, answers=(
            "all" if self.streams else "task" if "task_id" in cls.needs else "seen"))
        self.space = LabelSpace((0, 1, 2, 3), class_names((0, 1, 2, 3)))
        self.watched: dict[str, list[str]] = {kind: [] for kind in ("world", "code", "own", "files", "data")}
        self.sizes: list[int] = []
        self.draws: dict[str, list[tuple[str, ...]]] = {}
        self.unruly: list[str] = []  # experiences after which `seen` or `current` was not what it should be

    # ------------------------------------------------------------------ what is made once
    @cached_property
    def images(self) -> Tensor:
        """24 test images, float."""
        return torch.cat([t.data.x for t in self.scenario.test_sets()]).float().div(255)[:24]  # type: ignore[attr-defined]

    @cached_property
    def experiences(self) -> list[Experience]:
        """What the method learns from."""
        return list(self.scenario.experiences())

    @cached_property
    def base(self) -> Backbone:
        """The first backbone on which the method can be built and begun; its own sentence where none is."""
        names = [*(_BACKBONES[::-1] if self.cls.adapts else _BACKBONES), "glyph_clip"]  # for those that must read names
        makers = [self._backbone] if self._backbone is not None else [find("cl_bench.backbones", n) for n in names]
        refusals = []
        for make in makers:
            base = engine.ready(make(), self.scenario)
            try:
                with self.watching():
                    self._tried(base)
                return base
            except UserError as fault:
                refusals.append(fault)
        raise refusals[-1]

    def _tried(self, base: Backbone) -> None:
        trial = engine.built(self.cls, base, self.hparams)
        for exp in self.experiences[:1]:
            engine.begin(trial, exp, 0)
        if self.streams:
            self.draws.setdefault("deploy", []).append(engine.deploy(trial, self.scenario, self.space, 11))

    def fresh(self) -> Method:
        """A method as it is built for a run."""
        return engine.built(self.cls, self.base, self.hparams)

    @cached_property
    def method(self) -> Method:
        """A method after the toy's learning, or deployed and before its stream."""
        _ = self.base  # a source is trained before the method's life is watched
        data = [e.data.digest() for e in self.experiences]  # type: ignore[attr-defined]
        made: list[Method] = []
        with self.watching():
            self.watched["files"] += opened(lambda: made.append(self.trained(self.sizes)))
            (method,) = made
        twin = copy.deepcopy(method)
        with self.watching():
            self.watched["files"] += opened(lambda: self.first_answers(twin))
        self.watched["data"] = [e.name for e, d in zip(self.experiences, data, strict=True)
                                if e.data.digest() != d]  # type: ignore[attr-defined]
        return method

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what the method changes beyond itself inside the block."""
        with unusual():
            before, known, own, there = world(), code(self.cls), own_state(self.cls), names(self.cls)
            yield
            self.watched["world"] += changed(before, world())
            self.watched["code"] += patched(known, code(self.cls))
            self.watched["own"] += [k for k, v in own_state(self.cls).items() if own.get(k) != v]
            self.watched["own"] += [told(*new) for new in gained(there, names(self.cls))]

    def trained(self, sizes: list[int] | None = None) -> Method:
        """The toy's learning or deployment, from the start."""
        method = self.fresh()
        seen = LabelSpace()
        for k, exp in enumerate(self.experiences):
            with engine.drawing(method, self.draws):
                engine.learn(method, exp, 100 + k, EPOCHS)
            seen = seen | exp.space
            if (method.seen.ids, method.current.ids) != (seen.ids, exp.space.ids):
                self.unruly.append(exp.name)
            if sizes is not None:
                sizes.append(engine.own_bytes(method))
        if self.streams:
            self.draws.setdefault("deploy", []).append(engine.deploy(method, self.scenario, self.space, 3))
            if sizes is not None:
                sizes.append(engine.own_bytes(method))
        return method

    def first_answers(self, method: Method) -> None:
        """Answers through the engine, for what can be seen while they are given; faults are other questions' matter."""
        try:
            if self.streams:
                self.run_stream(method)
            else:
                engine.measured(method, self.scenario.test_sets(), self.spaces())
        except BaseException as fault:
            if isinstance(fault, KeyboardInterrupt) and pressed():
                raise

    # ------------------------------------------------------------------ ways to ask
    @property
    def asked(self) -> LabelSpace:
        """The classes that plain questions are about, as a copy: what a method writes into it nobody else reads."""
        return copy.copy(self.scenario.test_sets()[0].space if self.scenario.answers == "task" else self.space)

    def spaces(self) -> list[LabelSpace]:
        """The classes among which each test set is answered."""
        return [self.scenario.space_for(t, self.space) for t in self.scenario.test_sets()]

    def copy(self) -> Method:
        """A copy of the trained method."""
        return copy.deepcopy(self.method)

    def logits(self, method: Method, x: Tensor | None = None, space: LabelSpace | None = None) -> Tensor:
        """What ``method`` predicts for ``x``, by default for :attr:`images`, among :attr:`asked`."""
        return self.raw(method, x, space).detach()

    def raw(self, method: Method, x: Tensor | None = None, space: LabelSpace | None = None) -> Any:
        """As :meth:`logits`, whatever it is that comes back."""
        method.eval()
        with torch.set_grad_enabled(type(method).adapts):
            return method.predict((self.images if x is None else x).clone(), copy.copy(space or self.asked))

    def run_stream(self, method: Method, tests: list[TestSet] | None = None,
                   scenario: ToyScenario | None = None) -> tuple[float, list[np.ndarray]]:
        """(error in percent over the stream, predictions per segment)."""
        right = total = 0
        predicted, state = [], engine.StreamState()
        for k, test in enumerate(tests or self.scenario.stream()):
            scored = engine.segment(method, test, self.space, scenario or self.scenario, state, k)
            right, total = right + scored.correct, total + scored.total
            predicted.append(scored.predictions)
        return 100 * (1 - right / total), predicted

    @cached_property
    def streamed(self) -> Streamed:
        """A marked copy of the method through the whole stream."""
        method = self.copy()
        method.mark()
        marked = engine.snapshot(method)
        error, predicted = self.run_stream(method)
        passed = torch.cat([t.data.x for t in self.scenario.stream()])  # type: ignore[attr-defined]
        return Streamed(method, marked, error, predicted, copy.deepcopy(method), kept(method, passed))

    def relabelled(self, tests: list[TestSet]) -> list[TestSet]:
        """The same images with other labels of the same classes."""
        return [replace(t, data=TensorData(t.data.x, _shuffled(t.data.y))) for t in tests]  # type: ignore[attr-defined]


def _shuffled(y: Tensor) -> Tensor:
    """Each label replaced by another of those that occur."""
    ids = y.unique()
    return ids[(torch.searchsorted(ids, y) + 1) % len(ids)]


def kept(method: Method, x: Tensor) -> dict[int, str]:
    """Which of the images ``x`` a method keeps, by row, and where."""
    gallery, found = Gallery(x), dict[int, str]()
    for path, value in held(method, engine.WIRING):
        if isinstance(value, (Tensor, np.ndarray)):
            for row in gallery.found(value):
                found.setdefault(row, path)
        elif isinstance(value, Experience):
            found[-1 - len(found)] = path
    return found
