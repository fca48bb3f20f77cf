"""The authors' own random numbers: image after image from numpy's legacy generator, as their scripts draw them.

With them most corruptions give the authors' pixels but for rounding, which a fresh seed cannot show: it is how this
package is held to the published arrays. Slow (one image at a time); for comparisons only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import _FUNCTIONS
from .parameters import PARAMETERS, STANDARD
from .tools import Draws, floor_steps

__all__ = ["REPLAYED", "replay"]

#: Shot and impulse noise draw in another way here, and frost needs the authors' photographs.
REPLAYED: tuple[str, ...] = tuple(name for name in STANDARD if name not in ("shot_noise", "impulse_noise", "frost"))


class _AuthorsDraws(Draws):
    """Numbers from ``numpy.random.seed(seed)``'s stream, in the order in which the authors' functions ask for them."""

    def __init__(self, seed: int) -> None:
        self.stream = np.random.RandomState(seed)
        self.device = torch.device("cpu")

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        if shape[1] == 3:  # colours come last there
            return torch.from_numpy(self.stream.normal(size=(shape[0], *shape[2:], 3))).movedim(-1, 1).float()
        return torch.from_numpy(self.stream.normal(size=shape)).float()

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.from_numpy(self.stream.uniform(low, high, size=shape)).float()

    def steps(self, shape: tuple[int, ...], reach: int) -> tuple[Tensor, Tensor]:
        both = torch.from_numpy(self.stream.randint(-reach, reach, size=(*shape, 2))).float()
        return both[..., 0], both[..., 1]


def replay(x: Tensor, name: str, severity: int, seed: int = 0, resolution: str = "cifar") -> Tensor:
    """The corrupted images of a script of the authors that calls ``numpy.random.seed(seed)`` and goes through ``x``.

    Args:
        x: float ``(N, 3, H, W)`` in [0, 1] on the CPU.
        name: one of ``REPLAYED``.
        severity: 1 to 5.
        resolution: "cifar" or "imagenet".

    Returns:
        float32 ``(N, 3, H, W)`` in [0, 1].
    """
    if name not in REPLAYED:
        raise ValueError(f"'{name}' cannot be replayed: choose one of {', '.join(REPLAYED)}")
    setting, draws = PARAMETERS[resolution][name][severity - 1], _AuthorsDraws(seed)
    levels = x.float().contiguous().mul(255.0).round_()
    return torch.cat([floor_steps(_FUNCTIONS[name](one, setting, draws)) for one in levels.split(1)]).div_(255.0)
