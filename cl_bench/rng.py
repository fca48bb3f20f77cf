"""Random numbers that a method owns, so that predicting leaves the process's generators alone."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Rng"]


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
