"""Random numbers: a method's own, so that predicting leaves the process's generators alone, and those of the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["Rng", "generators", "seeded", "set_generators"]


class Rng:
    """One seed, one generator per device, created when first asked for.

    Copies (``copy.deepcopy``) continue independently from the same state, which is what ``mark`` and ``reset`` need.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = int(seed)
        self._generators: dict[str, torch.Generator] = {}

    def on(self, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator for tensors on ``device``."""
        key = str(torch.device(device))
        if key not in self._generators:
            self._generators[key] = torch.Generator(device=device).manual_seed(self.seed)
        return self._generators[key]

    def get_state(self) -> dict[str, Any]:
        """Plain state: the seed and each generator's byte tensor."""
        return {"seed": self.seed, "generators": {k: g.get_state() for k, g in self._generators.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned."""
        self.seed = int(state["seed"])
        self._generators = {}
        for key, value in state["generators"].items():
            self.on(key).set_state(value.cpu())

    def __deepcopy__(self, memo: dict[int, Any]) -> Rng:
        twin = Rng(self.seed)
        twin.set_state(self.get_state())
        memo[id(self)] = twin
        return twin


def generators() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = state
    numpy_state = (name, torch.from_numpy(keys.astype(np.int64)), *rest)  # plain data and tensors: a checkpoint can hold them
    return {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state(), "cuda": cuda}


def set_generators(states: dict[str, Any]) -> None:
    """Put the global generators into the ``states`` that :func:`generators` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in states["cuda"]])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block; outside they are as they were."""
    before = generators()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries such as Avalanche draw from the global generator
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_generators(before)
