"""Promises about learning and answering: that it learns, what an answer is, and what it may depend on."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..data import TensorData
from ..heads import LinearHead
from ..method import Method
from ..types import TestSet
from . import _engine as engine
from .promise import Promise, adapting, deployed, learner, promise
from .report import WORDS, Note
from .traces import hidden
from .trial import Trial

__all__ = ["ALONE", "ANSWERS", "FIRST"]

FIRST: list[Promise] = []  # asked before anything else; where one fails the others mean nothing
ANSWERS: list[Promise] = []
ALONE = "an answer depends on the image, not on the others in its batch"


# ---------------------------------------------------------------------------- building and learning
@promise(FIRST, "every hyper-parameter is a keyword with an immutable default")
def signature(trial: Trial) -> str | None:
    wrong = []
    for name, p in list(inspect.signature(trial.cls).parameters.items())[1:]:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            wrong.append(f"*{name} hides what the method takes")
        elif p.default is inspect.Parameter.empty:
            wrong.append(f"{name} has no default")
        elif isinstance(p.default, (list, dict, set)):
            wrong.append(f"the default of {name} is a {type(p.default).__name__}, which all instances would share")
    return "; ".join(wrong) or None


@promise(FIRST, "needs are words that a scenario can give")
def words(trial: Trial) -> str | None:
    strange = sorted(set(trial.cls.needs) - WORDS)
    return f"{', '.join(strange)}: known are {', '.join(sorted(WORDS))}" if strange else None


@promise(FIRST, "builds from its defaults")
def builds(trial: Trial) -> str | None:
    _ = trial.base
    return None


@promise(FIRST, "parameter name = attribute name")
def attributes(trial: Trial) -> str | None:
    method, wrong = trial.fresh(), []
    for name, p in list(inspect.signature(trial.cls).parameters.items())[1:]:
        want = trial.hparams.get(name, p.default)
        if not hasattr(method, name):
            wrong.append(f"self.{name} is missing")
        elif getattr(method, name) != want and not callable(want):
            wrong.append(f"self.{name} is {getattr(method, name)!r}, was given {want!r}")
    return "; ".join(wrong) or None


@promise(FIRST, "goes through learning or deployment")
def goes_through(trial: Trial) -> str | None:
    engine.counters_of(trial.method)
    return None


@promise(FIRST, "answers are float logits (images, classes)")
def answers(trial: Trial) -> str | None:
    out, n, k = trial.raw(trial.copy()), len(trial.images), len(trial.asked)
    if not isinstance(out, Tensor):
        return f"predict returned a {type(out).__name__}: it must return a tensor (images, classes)"
    if type(out) not in (Tensor, torch.nn.Parameter):
        return f"predict returned a {type(out).__name__}, which may forge its own softmax: it must be a plain tensor"
    if out.layout is not torch.strided:
        return f"predict returned a {str(out.layout).removeprefix('torch.')} tensor: it must return an ordinary one"
    if tuple(out.shape) != (n, k):
        return f"predict returned {tuple(out.shape)} for {n} images and {k} classes: it must return (images, classes)"
    if not out.dtype.is_floating_point:
        return f"predict returned {out.dtype}: logits are floating point"
    if out.device != trial.images.device:
        return f"predict returned a tensor on {out.device} for images on {trial.images.device}"
    if not torch.isfinite(out).all() and not (out > -torch.inf).any(1).all():
        return "predict returned NaN or no finite logit for some images"
    return None if not (out.isnan() | (out == torch.inf)).any() else "predict returned NaN or infinity"


@promise(ANSWERS, "answers are logits, not probabilities or a sum")
def meaning(trial: Trial) -> str | None:
    out = trial.logits(trial.copy()).double()
    if len(trial.asked) < 2:
        return None
    rows = out.sum(1)
    if (out >= 0).all() and rows[0] > 0 and torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-4):
        return f"every row is non-negative and sums to {rows[0]:.3g}: these are probabilities; return their logarithm"
    # log p is a logit of p; log p + log q is not. Its halves' exponentials sum to at most 1, nearly 1 where p is like q.
    for k in range(2, 9):
        mass = (out / k).logsumexp(1)
        if bool((out.logsumexp(1) < -1e-3).any() and (mass <= 1e-4).all() and (mass > -0.2).float().mean() > 0.9):
            return f"looks like the sum of {k} log-softmaxes: divide it by {k}, or calibration is computed from sharper answers"
    return None


@promise(ANSWERS, "learns above chance", learner)
def learns(trial: Trial) -> str | None:
    last = trial.scenario.test_sets()[-1]  # what was just learned, among its own classes: learning, not remembering
    (scored,) = engine.measured(trial.method, [last], [last.space])
    accuracy = 100 * scored.correct / scored.total
    return None if accuracy > 60 else f"accuracy {accuracy:.1f} % on what it just learned, where chance is 50 %"


@promise(ANSWERS, "is not worse than its source under shift", deployed)
def not_worse(trial: Trial) -> str | None:
    assert isinstance(trial.base.head, LinearHead) or trial.base.reads_names
    plain = Method(copy.deepcopy(trial.base))
    plain.eval()
    source, _ = trial.run_stream(plain)
    ours = trial.streamed.error
    return None if ours <= source + 10 else f"error {ours:.1f} % where the source has {source:.1f} %"


@promise(ANSWERS, "same seed, same logits")
def repeats(trial: Trial) -> str | None:
    a, b = trial.logits(trial.copy()), trial.logits(trial.trained())
    return None if torch.equal(a, b) else f"two runs with one seed differ by {(a - b).abs().max():.2g}"


@promise(ANSWERS, "saved, loaded into a new object, answers the same")
def round_trip(trial: Trial) -> str | None:
    used = trial.copy()
    if trial.streams:
        trial.run_stream(used, trial.scenario.stream()[:1])
    tree, tensors = engine.snapshot(used)
    fresh = engine.loaded(json.loads(json.dumps(tree)), tensors, trial.fresh())
    a, b = trial.logits(used), trial.logits(fresh)
    return None if torch.equal(a, b) else f"answers differ by {(a - b).abs().max():.2g} after loading"


@promise(ANSWERS, "answers a batch of one")
def one(trial: Trial) -> str | None:
    out = trial.logits(trial.copy(), trial.images[:1])
    if out.shape != (1, len(trial.asked)):
        return f"answered {tuple(out.shape)} instead of (1, {len(trial.asked)})"
    return None if not out.isnan().any() else "answered NaN"


@promise(ANSWERS, "a copy answers the same")
def copies(trial: Trial) -> str | None:
    a, b = trial.logits(trial.copy()), trial.logits(trial.copy())
    return None if torch.equal(a, b) else "two copies answer differently"


@promise(ANSWERS, ".double() moves everything")
def doubles(trial: Trial) -> str | None:
    out = trial.logits(trial.copy().double(), trial.images.double())
    return None if out.dtype == torch.float64 else f"answered in {out.dtype}"


# ---------------------------------------------------------------------------- what an answer may depend on
@promise(ANSWERS, "poisoned test labels change nothing")
def poisoned(trial: Trial) -> str | None:
    if trial.streams:
        bad = trial.relabelled(list(trial.scenario.stream()))
        scenario = copy.copy(trial.scenario)
        scenario.__dict__.update(stream=lambda: bad, gives=trial.scenario.gives - {"labels"})
        honest = copy.copy(trial.scenario)
        honest.__dict__.update(gives=scenario.gives)
        a = trial.run_stream(trial.copy(), scenario=honest)[1] if "labels" in trial.cls.needs else trial.streamed.predicted
        b = trial.run_stream(trial.copy(), bad, scenario)[1]
    else:
        tests = list(trial.scenario.test_sets())
        a, b = ([s.predictions for s in engine.measured(trial.method, ts, trial.spaces())]
                for ts in (tests, trial.relabelled(tests)))
    same = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    return None if same else "predictions depend on the labels of the test set"


@promise(ANSWERS, ALONE, learner)
def alone(trial: Trial) -> str | None:
    return _alone(trial, trial.method)


def _alone(trial: Trial, method: Method) -> str | None:
    x = trial.images
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    whole = trial.logits(copy.deepcopy(method))
    parts = torch.cat([trial.logits(copy.deepcopy(method), x[rows]) for rows in order.split(7)])[order.argsort()]
    scale = float(whole.abs().max()) or 1.0
    off = float((whole - parts).abs().max()) / scale
    return None if off < 1e-3 else f"in other batches the same images get logits that differ by {100 * off:.2g} %"


@promise(ANSWERS, "an answer does not depend on which test set an image lies in", learner)
def identity(trial: Trial) -> str | None:
    tests, spaces = list(trial.scenario.test_sets()), trial.spaces()
    if (batchwise := _alone(trial, trial.method)) is not None:
        return Note(f"not asked: {batchwise}")
    there = [s.predictions for s in engine.measured(trial.method, tests, spaces)]
    kept = [s.predictions for s in engine.measured(trial.method, tests, spaces, remembered=True)]
    back = [s.predictions for s in engine.measured(trial.method, tests[::-1], spaces[::-1])][::-1]
    apart = [engine.measured(trial.method, [t], [s])[0].predictions for t, s in zip(tests, spaces, strict=True)]
    later = [engine.measured(trial.method, [replace(t, data=_twice(t))], [s])[0].predictions[len(a):]
             for t, s, a in zip(tests, spaces, there, strict=True)]
    wrong = [f"{what} ({n} of {len(b)} images)" for what, other in (
        ("in another order of the test sets", back), ("alone", apart), ("later in its test set", later),
        ("where the trunk's features are remembered", kept))
        for a, b in zip(there, other, strict=True) if (n := int((a != b).sum()))]
    return f"the same image is answered differently {'; '.join(wrong)}" if wrong else None


def _twice(test: TestSet) -> TensorData:
    data: TensorData = test.data  # type: ignore[assignment]
    return TensorData(torch.cat([data.x, data.x]), torch.cat([data.y, data.y]))


@promise(ANSWERS, "a stream cut into other segments is answered the same", deployed)
def cut(trial: Trial) -> str | None:
    if "boundaries" in trial.cls.needs:
        return Note("not asked: it may know where a domain ends")
    parts = list(trial.scenario.stream())
    names = tuple(p.name for p in parts)
    codes = np.repeat(np.arange(len(parts)), [len(p.data) for p in parts])  # type: ignore[arg-type]
    whole = TestSet("whole", trial.space, TensorData(torch.cat([p.data.x for p in parts]),  # type: ignore[attr-defined]
                    torch.cat([p.data.y for p in parts])), rows=(names, codes))  # type: ignore[attr-defined]
    method = trial.copy()
    method.mark()
    after = trial.run_stream(method, [whole])[1][0]
    n = int((after != np.concatenate(trial.streamed.predicted)).sum())
    return None if n == 0 else f"{n} of {len(after)} images are answered differently where nobody says that the domain changes"


@promise(ANSWERS, "answer() agrees with predict()", deployed)
def agree(trial: Trial) -> str | None:
    method = copy.deepcopy(trial.streamed.after)
    method.eval()
    x = trial.images

    def answered() -> Tensor:
        with torch.no_grad():
            return method.answer(x.clone(), trial.asked).argmax(1)

    before, predicted, after = answered(), trial.logits(method).argmax(1), answered()
    n = len(x)
    share = max(int((predicted == before).sum()), int((predicted == after).sum()))
    if share == n:
        return None
    sentence = f"after adaptation answer() and predict() give {n - share} of {n} images different classes"
    return sentence if 2 * share < n else Note(sentence)


@promise(ANSWERS, "answer() does not adapt", adapting)
def still(trial: Trial) -> str | None:
    method = copy.deepcopy(trial.streamed.after).eval()
    before, aside = engine.snapshot(method), hidden(method)
    with torch.no_grad():
        method.answer(trial.images.clone(), trial.asked)
    after = engine.snapshot(method)
    moved = [k for k, v in before[1].items() if not torch.equal(v.nan_to_num(), after[1][k].nan_to_num())]
    if moved or before[0] != after[0] or aside != hidden(method):
        return "answer() changes the method: it is asked where a stream is too fast to adapt to"
    return None


@promise(ANSWERS, "reset is exact and adapts again", adapting)
def resets(trial: Trial) -> str | None:
    marked, method = trial.streamed.marked, trial.streamed.method
    method.reset()
    again = engine.snapshot(method)
    if marked[0] != again[0]:
        return "plain state or random state is not restored"
    moved = [k for k, v in marked[1].items() if not torch.equal(v.nan_to_num(), again[1][k].nan_to_num())]
    if moved:
        return f"{len(moved)} tensors are not restored"
    second = trial.run_stream(method)[1]
    same = all(np.array_equal(a, b) for a, b in zip(trial.streamed.predicted, second, strict=True))
    return None if same else "after reset the same stream is answered differently"
