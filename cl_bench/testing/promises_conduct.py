"""Promises about conduct: what a method leaves alone, what it keeps, and what it cannot reach."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import TensorData
from ..errors import UserError
from ..method import Method
from ..registry import find
from ..scenario import Scenario
from ..types import Experience, LabelSpace, TestSet
from . import _engine as engine
from .promise import Promise, learner, promise, steady
from .promises_answers import ALONE
from .report import Note
from .traces import hidden, plain_bytes
from .trial import Trial, kept
from .walk import Gallery, own_classes, reached
from .world import changed, unusual, world

__all__ = ["CONDUCT"]

CONDUCT: list[Promise] = []
PURE = "predict has no side effect"
# What a method is made of is counted through these, and looked up by them.
_LISTS = ("__getattribute__", "__class__", "__init_subclass__", "parameters", "named_parameters", "buffers", "named_buffers",
          "modules", "named_modules", "children", "named_children")


# ---------------------------------------------------------------------------- the process and the harness
@promise(CONDUCT, "predict leaves global state alone")
def quiet(trial: Trial) -> str | None:
    method = trial.copy()
    x = trial.images.clone()
    kept = x.clone()
    with unusual():
        method.eval()
        with torch.set_grad_enabled(type(method).adapts):
            before = world()
            method.predict(x, trial.asked)
            wrong = changed(before, world())
    if wrong:
        return f"predict changes {', '.join(wrong)}"
    return None if torch.equal(x, kept) else "predict writes into the images that it is given"


@promise(CONDUCT, "learning leaves global state alone")
def life(trial: Trial) -> str | None:
    _ = trial.method
    wrong = dict.fromkeys(trial.watched["world"])
    return f"learning or deployment changes {', '.join(wrong)}" if wrong else None


@promise(CONDUCT, "the harness's code is left alone")
def unpatched(trial: Trial) -> str | None:
    _ = trial.method
    wrong = list(dict.fromkeys(trial.watched["code"]))
    return f"replaces {', '.join(wrong[:5])}" if wrong else None


@promise(CONDUCT, "draws follow the run's seed")
def seeds(trial: Trial) -> str | None:
    _ = trial.method
    for part, states in trial.draws.items():
        for library, (one, two) in zip(("Python's", "NumPy's", "torch's"), zip(*states[:2], strict=True), strict=True):
            if one == two:
                return f"{part} seeds {library} global generator: two seeds of a run draw the same numbers"
    return None


@promise(CONDUCT, "classes and modules keep no state")
def shared(trial: Trial) -> str | None:
    _ = trial.method
    wrong = list(dict.fromkeys(trial.watched["own"]))
    return f"{', '.join(wrong[:5])} changed: state belongs into attributes of the object, where it is saved and reset" \
        if wrong else None


@promise(CONDUCT, "no file, program or network is opened")
def closed(trial: Trial) -> str | None:
    _ = trial.method
    wrong = trial.watched["files"]
    return f"opens {wrong[0]}" if wrong else None


@promise(CONDUCT, "final methods are left alone")
def final(trial: Trial) -> str | None:
    method, wrong = trial.method, []
    for name in engine.FINAL:
        if inspect.getattr_static(trial.cls, name) is not inspect.getattr_static(Method, name):
            wrong.append(f"{trial.cls.__name__}.{name}")
        if name in vars(method):
            wrong.append(f"self.{name}")
    wrong += [f"{c.__name__}.{name}" for c in own_classes(trial.cls) for name in _LISTS if name in vars(c)]
    wrong += [f"self.{name}" for name in (*_LISTS, *engine.FACTS) if name in vars(method)]
    if type(method) is not trial.cls and type(method).__mro__[1] is not trial.cls:
        wrong.append(f"self.__class__ (now {type(method).__name__})")
    if type(trial.cls) is not type(Method):
        wrong.append(f"the metaclass {type(trial.cls).__name__}")
    return f"overrides {', '.join(wrong)}" if wrong else None


# ---------------------------------------------------------------------------- what predict leaves behind
@promise(CONDUCT, PURE, steady)
def pure(trial: Trial) -> str | None:
    return _pure(trial, trial.method, trial.asked)


def _pure(trial: Trial, trained: Method, space: LabelSpace) -> str | None:
    method = copy.deepcopy(trained).eval()
    before, aside = engine.snapshot(method), hidden(method)
    flags = _flags(method)
    first, second = trial.logits(method, space=space), trial.logits(method, space=space)
    if not torch.equal(first, second):
        return "the same images are answered differently the second time"
    if flags != _flags(method):
        return "requires_grad or train/eval flags change"
    images = TensorData((trial.images * 255).round().to(torch.uint8), torch.full((len(trial.images),), space.ids[0]))
    engine.measured(method, [TestSet("images", space, images)], [space])
    after = engine.snapshot(method)
    if before[0] != after[0]:
        return "plain state changes"
    if aside != hidden(method):
        return "what its hooks hold, or an attribute of Lightning's, changes: no copy, reset or checkpoint sees it"
    moved = [k for k, v in before[1].items() if not torch.equal(v.nan_to_num(), after[1][k].nan_to_num())]
    return f"{len(moved)} tensors change" if moved else None


def _flags(method: Method) -> list[tuple[bool, bool]]:
    return [(p.requires_grad, m.training) for m in method.modules() for p in m.parameters(recurse=False)]


@promise(CONDUCT, "on BatchNorm, predict has no side effect", learner)
def pure_on_batch_norm(trial: Trial) -> str | None:
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in trial.base.modules()):
        return None  # what was asked already
    if PURE in trial.cls.exempt:
        return Note(f"not asked, as {PURE!r} is not")
    exp = _part(trial.experiences[0], 8)
    try:
        base = engine.ready(find("cl_bench.backbones", "glyph_resnet")(), trial.scenario)
        method = engine.built(trial.cls, base, trial.hparams)
        engine.learn(method, exp, 1, 1)
    except UserError as fault:
        return Note(f"not asked: {fault}")
    wrong = _pure(trial, method, exp.space)
    if wrong or ALONE in trial.cls.exempt:
        return wrong
    few, many = (trial.logits(copy.deepcopy(method), trial.images[:n], exp.space)[:12] for n in (12, 24))
    off = float((few - many).abs().max()) / (float(many.abs().max()) or 1.0)
    return None if off < 1e-2 else "its norm layers answer with the statistics of the test batch: it adapts without saying so"


# ---------------------------------------------------------------------------- what it keeps
@promise(CONDUCT, "data that it is given stay as they are")
def unwritten(trial: Trial) -> str | None:
    _ = trial.method
    wrong = trial.watched["data"]
    return f"writes into the data of {', '.join(wrong)}" if wrong else None


@promise(CONDUCT, "seen and current are the classes of its experiences", learner)
def spaces(trial: Trial) -> str | None:
    _ = trial.method
    return f"self.seen or self.current is wrong after {trial.unruly[0]}: call super().begin(exp)" if trial.unruly else None


@promise(CONDUCT, engine.KEPT)
def counted(trial: Trial) -> str | None:
    if "source" not in trial.cls.needs:
        source = trial.scenario.source
        given = [*trial.experiences, *([source] if source is not None else [])]
        found = kept(trial.method, torch.cat([e.data.x for e in given]))  # type: ignore[attr-defined]
        most = trial.method.stored_samples()
        if len(found) > most:
            return _uncounted(found, "training", most)
    if trial.streams:
        passed = torch.cat([t.data.x for t in trial.scenario.stream()])  # type: ignore[attr-defined]
        found = trial.streamed.kept
        if len(found) == len(passed) and trial.method.stored_samples() < len(passed):
            return _uncounted(found, "test", trial.method.stored_samples())
    return None


def _uncounted(found: dict[int, str], kind: str, most: int) -> str:
    where = ", ".join(dict.fromkeys(found.values()))
    return f"{len(found)} {kind} images lie in {where}, and stored_samples() says {most}: keep them in a module of " \
           "cl_bench.memory, or count them"


@promise(CONDUCT, "state that grows with the images is declared", learner)
def declared(trial: Trial) -> str | None:
    images = len(trial.experiences[0].data)  # type: ignore[arg-type]
    whole, half = _learned(trial, images), _learned(trial, images // 2)
    if whole[1] != half[1]:
        return None
    if (more := whole[2] - half[2]) > _PLAIN * (images - images // 2):
        return (f"twice as many images leave {more:,} more bytes of plain data, which no memory counts: keep tensors in a "
                "module of cl_bench.memory, or declare in `exempt` what it is")
    if whole[0] == half[0]:
        return None
    return (f"twice as many images leave {whole[0]:,} instead of {half[0]:,} bytes of state, which no memory counts: count "
            "what is kept in stored_samples(), or declare it in `exempt` with what it is")


_PLAIN = 100  # bytes of plain data per image: a few numbers, and no picture


def _learned(trial: Trial, images: int) -> tuple[int, int, int]:
    """(bytes outside counted memories, stored samples, bytes of plain data) after one pass over the first ``images`` of
    an experience."""
    method = trial.fresh()
    with engine.drawing(method, trial.draws):
        engine.learn(method, _part(trial.experiences[0], images), 200 + images, 1)
    memories = [m for m in method.modules() if m is not method and isinstance(getattr(m, "samples", None), int)]
    return (engine.own_bytes(method) - sum(engine.own_bytes(m) for m in memories), method.stored_samples(),
            plain_bytes(method))


def _part(exp: Experience, images: int) -> Experience:
    return replace(exp, data=exp.data.subset(torch.arange(images)))  # type: ignore[attr-defined]


@promise(CONDUCT, "state grows")
def growth(trial: Trial) -> str | None:
    _ = trial.method
    return Note("state after each step: " + ", ".join(f"{s / 2**20:.2f} MiB" for s in trial.sizes))


# ---------------------------------------------------------------------------- what it can reach
@promise(CONDUCT, "nothing in its reach leads to labels")
def reach(trial: Trial) -> str | None:
    method = trial.copy()
    tests = list(trial.scenario.stream()) if trial.streams else list(trial.scenario.test_sets())
    eye = _Eye(trial, tests)
    with engine.spied(method, lambda x: eye.look(method, x)):
        if trial.streams:
            trial.run_stream(method, tests)
        else:
            engine.measured(method, tests, trial.spaces())
    return eye.seen


class _Eye:
    """Looks around once, while the first batch is answered."""

    def __init__(self, trial: Trial, tests: list[TestSet]) -> None:
        self.labels = [t.data.y for t in tests] + [torch.cat([t.data.y for t in tests])]  # type: ignore[attr-defined]
        self.gallery = Gallery(torch.cat([t.data.x for t in tests]))  # type: ignore[attr-defined]
        self.private = trial.cls.needs
        self.seen: str | None = None
        self.looked = False

    def look(self, method: Method, x: Tensor) -> None:
        if self.looked:
            return
        self.looked = True
        here = self.gallery.found(x)
        if x.untyped_storage().nbytes() > x.numel() * x.element_size():
            self.seen = "the batch is a view into a larger tensor"
        roots = {"self": method, "self.trainer": getattr(method, "_trainer", None), "x": x}
        for path, value in reached(roots):
            what = self._forbidden(value, here)
            if what is not None:
                self.seen = f"{path} is {what}"
                return

    def _forbidden(self, value: Any, here: set[int]) -> str | None:
        if isinstance(value, (TestSet, Scenario)):
            return f"a {type(value).__name__}"
        if isinstance(value, Experience) and "source" not in self.private:
            return f"the experience {value.name}"
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1 and len(value) >= 12:
            one = torch.as_tensor(value)
            if not one.dtype.is_floating_point and any(len(y) == len(one) and torch.equal(y, one.cpu().to(y.dtype))
                                                       for y in self.labels):
                return "the labels of a test set"
        if isinstance(value, (list, tuple)) and len(value) >= 12 and all(isinstance(v, int) for v in value):
            return self._forbidden(torch.tensor(value), here)
        if isinstance(value, (Tensor, np.ndarray)) and (more := self.gallery.found(value) - here):
            return f"a tensor with {len(more)} test images that have not arrived"
        return None


