"""The checker's one door to the engine: learning, deploying, answering and state, as a run does them."""

from __future__ import annotations

import copy
import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone
from ..engine import checkpoint, runner
from ..engine.compute import Compute
from ..engine.features import Features
from ..engine.fit import fit, shown
from ..engine.measure import Scored, measure
from ..engine.meter import Meter
from ..engine.seeding import seeded
from ..engine.source_training import SourceRecipe, ready_backbone
from ..engine.steps import KEPT
from ..engine.stream import StreamState, counters_of, stream_step
from ..method import FACTS, FINAL, Method
from ..rng import Rng
from ..scenario import Scenario
from ..state import HARNESS, size_bytes
from ..types import Experience, LabelSpace, StreamFacts, TestSet

__all__ = ["FACTS", "FINAL", "KEPT", "WIRING", "Scored", "StreamState", "begin", "built", "counters_of", "deploy",
           "drawing", "generators", "learn", "loaded", "measured", "own_bytes", "ready", "segment", "snapshot",
           "spied"]

RUN = runner.run  # what a run is made of is imported, and kernels are loaded, before anything is watched
runner._ops_backend()
CPU = Compute(device="cpu")
WIRING = ("_trainer", "_fabric", *HARNESS)
_CACHE = Path(tempfile.gettempdir()) / "cl_bench-check"


def ready(backbone: Backbone, scenario: Scenario) -> Backbone:
    """A copy of ``backbone`` with the classifier that a run of ``scenario`` starts from."""
    return ready_backbone(backbone, scenario, SourceRecipe(epochs=12), CPU, 0, fits=False, cache=_CACHE)


def built(cls: type[Method], base: Backbone, hparams: dict[str, Any]) -> Method:
    """A method on a copy of ``base``, as a run builds it."""
    with seeded(7):
        return cls(copy.deepcopy(base), **hparams)


def begin(method: Method, exp: Experience, seed: int) -> None:
    """``begin`` alone, on a method that is not used afterwards."""
    with seeded(seed):
        method.begin(shown(exp))


def learn(method: Method, exp: Experience, seed: int, epochs: int) -> None:
    """``begin``, fit, ``end``."""
    fit(method, exp, CPU, seed, epochs)


def deploy(method: Method, scenario: Scenario, space: LabelSpace, seed: int) -> tuple[str, ...]:
    """What a run does before a stream; returns where the global generators stand afterwards."""
    source = scenario.source if "source" in type(method).needs else None
    with seeded(seed), torch.enable_grad():
        method.eval()
        method.rng = Rng(seed)
        method.deploy(None if source is None else shown(source), StreamFacts(scenario.test_batch_size, space))
        return generators()


def measured(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], size: int = 16,
             remembered: bool = False) -> list[Scored]:
    """A row of the matrix; as a run does it, features of a trunk that nothing trains are ``remembered``."""
    return measure(method, tests, spaces, CPU, size, 0, Features(CPU, None, Meter()) if remembered else None)


def segment(method: Method, test: TestSet, space: LabelSpace, scenario: Scenario, state: StreamState, seed: int) -> Scored:
    """A part of the stream, answered and adapted to; ``state`` goes from part to part."""
    _, scored = stream_step(method, test, space, scenario, CPU, Meter(), state, seed)
    return scored


def snapshot(method: Method) -> tuple[Any, dict[str, Tensor]]:
    """A method's state as plain data and tensors."""
    return checkpoint.snapshot(method)


def loaded(tree: Any, tensors: dict[str, Tensor], into: Method) -> Method:
    """A freshly built method, filled from a :func:`snapshot`."""
    restored: Method = checkpoint.restore(tree, tensors, into)
    return restored


def own_bytes(method: Method) -> int:
    """Bytes of a method's state."""
    return size_bytes(method)


@contextmanager
def drawing(method: Method, into: dict[str, list[tuple[str, ...]]]) -> Iterator[None]:
    """Where the global generators stand when ``begin`` and ``end`` return, inside the block."""
    names = ("begin", "end")
    for name in names:
        method.__dict__[name] = _noting(getattr(method, name), into.setdefault(name, []))
    try:
        yield
    finally:
        for name in names:
            method.__dict__.pop(name, None)


def _noting(part: Callable[[Experience], None], into: list[tuple[str, ...]]) -> Callable[[Experience], None]:
    def noted(exp: Experience) -> None:
        part(exp)
        into.append(generators())

    return noted


def generators() -> tuple[str, ...]:
    """Where the process's generators stand: Python's, NumPy's, torch's."""
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
    return tuple(hashlib.sha256(repr(s).encode()).hexdigest() for s in states)


@contextmanager
def spied(method: Method, see: Callable[[Tensor], None]) -> Iterator[None]:
    """``see(x)`` before each batch that the engine has answered inside the block."""
    kinds = ("predict", "answer")
    for name in kinds:
        method.__dict__[name] = _seeing(getattr(method, name), see)
    try:
        yield
    finally:
        for name in kinds:
            method.__dict__.pop(name, None)


def _seeing(answer: Callable[..., Tensor], see: Callable[[Tensor], None]) -> Callable[..., Tensor]:
    def asked(x: Tensor, space: LabelSpace) -> Tensor:
        see(x)
        return answer(x, space)

    return asked
