"""The promises of a method, asked one by one on a toy."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone
from ..engine.checkpoint import restore, snapshot
from ..engine.compute import Compute
from ..engine.fit import fit, shown
from ..engine.measure import measure
from ..engine.meter import Meter
from ..engine.seeding import seeded
from ..engine.source_training import SourceRecipe, ready_backbone
from ..engine.stream import StreamState, stream_step
from ..errors import UserError
from ..heads import LinearHead
from ..method import Method
from ..registry import find
from ..rng import Rng
from ..state import size_bytes as state_bytes
from ..types import Experience, LabelSpace, StreamFacts, TestSet
from .report import Finding, Report
from .toy import ToyScenario

__all__ = ["check_method"]

WORDS = {"boundaries", "names", "source", "task_id", "labels"}
_CPU = Compute(device="cpu")
_EPOCHS = 8
_BACKBONES = ("glyph_vit", "glyph_resnet")


def check_method(cls: type[Method], *, name: str = "", backbone: Callable[[], Backbone] | None = None,
                 hparams: dict[str, Any] | None = None) -> Report:
    """Ask every promise of the contract of ``cls`` on a toy scenario of real digits.

    Args:
        backbone: makes the backbone; by default the embedded one that the method accepts.
        hparams: constructor arguments other than the defaults.
    """
    report = Report(name or cls.__name__)
    exempt = dict(getattr(cls, "exempt", {}))
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        report.findings.append(Finding("is a Method", "failed", f"{cls!r} is not a subclass of cl_bench.Method"))
        return report
    report.run("every hyper-parameter is a keyword with an immutable default", lambda: _signature(cls), exempt)
    report.run("needs are words that a scenario can give", lambda: _words(cls), exempt)
    try:
        toy = _Trial(cls, backbone, hparams or {})
    except Exception as fault:
        report.findings.append(Finding("builds from its defaults", "failed", f"{type(fault).__name__}: {fault}"))
        return report
    report.run("builds from its defaults", lambda: None, exempt)
    report.run("parameter name = attribute name", toy.attributes, exempt)
    report.run("goes through learning or deployment", toy.train, {})
    if toy.method is None:
        return report
    report.run("learns above chance" if not cls.adapts else "is not worse than its source under shift", toy.learns, exempt)
    report.run("same seed, same logits", toy.repeats, exempt)
    report.run("saved, loaded into a new object, answers the same", toy.round_trip, exempt)
    report.run("poisoned test labels change nothing", toy.poisoned, exempt)
    report.run("answers a batch of one", toy.one, exempt)
    report.run("a copy answers the same", toy.copies, exempt)
    report.run(".double() moves everything", toy.doubles, exempt)
    report.run("predict leaves global state alone", toy.quiet, exempt)
    if cls.adapts:
        report.run("reset is exact and adapts again", toy.resets, exempt)
    else:
        report.run("predict has no side effect", toy.pure, exempt)
    report.findings.append(Finding("state grows", "passed", toy.growth))
    return report


def _signature(cls: type[Method]) -> str | None:
    wrong = []
    for name, p in list(inspect.signature(cls).parameters.items())[1:]:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            wrong.append(f"*{name} hides what the method takes")
        elif p.default is inspect.Parameter.empty:
            wrong.append(f"{name} has no default")
        elif isinstance(p.default, (list, dict, set)):
            wrong.append(f"the default of {name} is a {type(p.default).__name__}, which all instances would share")
    return "; ".join(wrong) or None


def _words(cls: type[Method]) -> str | None:
    strange = sorted(set(cls.needs) - WORDS)
    return f"{', '.join(strange)}: known are {', '.join(sorted(WORDS))}" if strange else None


class _Trial:
    """One method on the toy: trained once, then questioned on copies."""

    def __init__(self, cls: type[Method], backbone: Callable[[], Backbone] | None, hparams: dict[str, Any]) -> None:
        self.cls, self.hparams = cls, hparams
        self.scenario = ToyScenario(learns=not cls.adapts, answers="all" if cls.adapts else
                                    "task" if "task_id" in cls.needs else "seen")
        self.method: Method | None = None
        self.growth = ""
        names = _BACKBONES[::-1] if cls.adapts else _BACKBONES
        makers = [backbone] if backbone is not None else [find("cl_bench.backbones", n) for n in names]
        self.base = self._suits(makers)
        self.space = LabelSpace((0, 1, 2, 3), ("0", "1", "2", "3"))
        self.images = torch.cat([t.data.x for t in self.scenario.test_sets()]).float().div(255)[:24]  # type: ignore[attr-defined]

    def _suits(self, makers: list[Callable[[], Backbone]]) -> Backbone:
        """The first backbone on which the method can be built and begun; its own sentence where none is."""
        refusals = []
        for make in makers:
            base = ready_backbone(make(), self.scenario, SourceRecipe(epochs=12), _CPU, 0, fits=False, cache=_CACHE)
            try:
                with seeded(0):
                    trial = self.cls(copy.deepcopy(base), **self.hparams)
                    for exp in self.scenario.experiences()[:1]:
                        trial.begin(exp)
                    if self.cls.adapts:
                        trial.deploy(*self.deployment)
                return base
            except UserError as fault:
                refusals.append(fault)
        raise refusals[-1]

    def fresh(self) -> Method:
        with seeded(7):
            return self.cls(copy.deepcopy(self.base), **self.hparams)

    def trained(self) -> Method:
        """A method after the toy's learning, or deployed and before its stream."""
        method = self.fresh()
        sizes = []
        for k, exp in enumerate(self.scenario.experiences()):
            fit(method, exp, _CPU, 100 + k, _EPOCHS)
            sizes.append(state_bytes(method))
        if self.cls.adapts:
            with seeded(3), torch.enable_grad():
                method.eval()
                method.rng = Rng(3)
                method.deploy(*self.deployment)
            sizes.append(state_bytes(method))
        self.growth = "state after each step: " + ", ".join(f"{s / 2**20:.2f} MiB" for s in sizes)
        return method

    def run_stream(self, method: Method, tests: list[TestSet] | None = None) -> tuple[float, list[np.ndarray]]:
        """(error in percent over the stream, predictions per segment)."""
        right = total = 0
        predicted, state = [], StreamState()
        for k, test in enumerate(tests or self.scenario.stream()):
            _, scored = stream_step(method, test, self.space, self.scenario, _CPU, Meter(), state, k)
            right, total = right + scored.correct, total + scored.total
            predicted.append(scored.predictions)
        return 100 * (1 - right / total), predicted

    @property
    def deployment(self) -> tuple[Experience | None, StreamFacts]:
        """What ``deploy`` is given."""
        source = self.scenario.source if "source" in self.cls.needs else None
        return None if source is None else shown(source), StreamFacts(self.scenario.test_batch_size, self.space)

    def logits(self, method: Method, x: Tensor | None = None) -> Tensor:
        method.eval()
        with torch.set_grad_enabled(method.adapts):
            return method.predict((self.images if x is None else x).clone(), self.asked).detach()

    @property
    def asked(self) -> LabelSpace:
        if self.scenario.answers == "task":
            return self.scenario.test_sets()[0].space
        return self.space

    # ------------------------------------------------------------------ questions
    def attributes(self) -> str | None:
        method, wrong = self.fresh(), []
        for name, p in list(inspect.signature(self.cls).parameters.items())[1:]:
            want = self.hparams.get(name, p.default)
            if not hasattr(method, name):
                wrong.append(f"self.{name} is missing")
            elif getattr(method, name) != want and not callable(want):
                wrong.append(f"self.{name} is {getattr(method, name)!r}, was given {want!r}")
        return "; ".join(wrong) or None

    def train(self) -> str | None:
        self.method = self.trained()
        return None

    def learns(self) -> str | None:
        assert self.method is not None
        if self.cls.adapts:
            head = self.base.head
            assert isinstance(head, LinearHead)
            plain = Method(copy.deepcopy(self.base))
            plain.eval()
            source, _ = self.run_stream(plain)
            ours, _ = self.run_stream(copy.deepcopy(self.method))
            return None if ours <= source + 10 else f"error {ours:.1f} % where the source has {source:.1f} %"
        last = self.scenario.test_sets()[-1]  # what was just learned, among its own classes: learning, not remembering
        (scored,) = measure(self.method, [last], [last.space], _CPU, 16, 0)
        accuracy = 100 * scored.correct / scored.total
        return None if accuracy > 60 else f"accuracy {accuracy:.1f} % on what it just learned, where chance is 50 %"

    def repeats(self) -> str | None:
        assert self.method is not None
        twin = self.trained()
        a, b = self.logits(copy.deepcopy(self.method)), self.logits(twin)
        return None if torch.equal(a, b) else f"two runs with one seed differ by {(a - b).abs().max():.2g}"

    def round_trip(self) -> str | None:
        assert self.method is not None
        used = copy.deepcopy(self.method)
        if self.cls.adapts:
            self.run_stream(used, self.scenario.stream()[:1])
        tree, tensors = snapshot(used)
        fresh = restore(json.loads(json.dumps(tree)), tensors, self.fresh())
        a, b = self.logits(used), self.logits(fresh)
        return None if torch.equal(a, b) else f"answers differ by {(a - b).abs().max():.2g} after loading"

    def poisoned(self) -> str | None:
        assert self.method is not None
        if self.cls.adapts:
            tests = self.scenario.stream()
            bad = [replace(t, data=type(t.data)(t.data.x, (t.data.y + 1) % 4)) for t in tests]  # type: ignore[attr-defined, call-arg]
            honest = ToyScenario(learns=False, answers="all")
            honest.gives = frozenset({"source", "names"})  # type: ignore[misc]
            self.scenario, kept = honest, self.scenario
            try:
                a = self.run_stream(copy.deepcopy(self.method), tests)[1]
                b = self.run_stream(copy.deepcopy(self.method), bad)[1]
            finally:
                self.scenario = kept
        else:
            tests = self.scenario.test_sets()
            bad = [replace(t, data=type(t.data)(t.data.x, t.data.y.flip(0))) for t in tests]  # type: ignore[attr-defined, call-arg]
            spaces = [self.scenario.space_for(t, self.space) for t in tests]
            a, b = ([s.predictions for s in measure(self.method, ts, spaces, _CPU, 16, 0)] for ts in (tests, bad))
        same = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        return None if same else "predictions depend on the labels of the test set"

    def one(self) -> str | None:
        assert self.method is not None
        out = self.logits(copy.deepcopy(self.method), self.images[:1])
        if out.shape != (1, len(self.asked)):
            return f"answered {tuple(out.shape)} instead of (1, {len(self.asked)})"
        return None if not out.isnan().any() else "answered NaN"

    def copies(self) -> str | None:
        assert self.method is not None
        a, b = copy.deepcopy(self.method), copy.deepcopy(self.method)
        return None if torch.equal(self.logits(a), self.logits(b)) else "two copies answer differently"

    def doubles(self) -> str | None:
        assert self.method is not None
        twin = copy.deepcopy(self.method).double()
        out = self.logits(twin, self.images.double())
        return None if out.dtype == torch.float64 else f"answered in {out.dtype}"

    def quiet(self) -> str | None:
        assert self.method is not None
        method = copy.deepcopy(self.method)
        before = _world()
        self.logits(method)
        changed = [n for n, a, b in zip(_WORLD, before, _world(), strict=True) if a != b]
        return f"predict changes {', '.join(changed)}" if changed else None

    def pure(self) -> str | None:
        assert self.method is not None
        method = copy.deepcopy(self.method).eval()
        before, _ = snapshot(method), None
        flags = [(p.requires_grad, m.training) for m in method.modules() for p in m.parameters(recurse=False)]
        first = self.logits(method)
        second = self.logits(method)
        if not torch.equal(first, second):
            return "the same images are answered differently the second time"
        if flags != [(p.requires_grad, m.training) for m in method.modules() for p in m.parameters(recurse=False)]:
            return "requires_grad or train/eval flags change"
        after = snapshot(method)
        if before[0] != after[0]:
            return "plain state changes"
        moved = [k for k, v in before[1].items() if not torch.equal(v.nan_to_num(), after[1][k].nan_to_num())]
        return f"{len(moved)} tensors change" if moved else None

    def resets(self) -> str | None:
        assert self.method is not None
        method = copy.deepcopy(self.method)
        method.mark()
        marked = snapshot(method)
        first = self.run_stream(method)[1]
        method.reset()
        again = snapshot(method)
        if marked[0] != again[0]:
            return "plain state or random state is not restored"
        moved = [k for k, v in marked[1].items() if not torch.equal(v.nan_to_num(), again[1][k].nan_to_num())]
        if moved:
            return f"{len(moved)} tensors are not restored"
        second = self.run_stream(method)[1]
        same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        return None if same else "after reset the same stream is answered differently"


_WORLD = ("Python's random state", "NumPy's random state", "torch's random state", "the working directory", "grad mode",
          "the root logger", "the default dtype")


def _world() -> tuple[Any, ...]:
    return (
        random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(), os.getcwd(),  # noqa: NPY002
        torch.is_grad_enabled(), (list(logging.getLogger().handlers), logging.getLogger().level), torch.get_default_dtype(),
    )


_CACHE = Path(tempfile.gettempdir()) / "cl_bench-check"
