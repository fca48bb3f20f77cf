"""ZERO: a majority vote of the confident views, without training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Share, Size

from ._views import Views, confident, entropies

__all__ = ["Zero"]


class Zero(Views):
    """Each of the most confident views votes for one class; a tie goes to the first discarded view that votes for one of it.

    Farina et al., "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024 (FarinaMatteo/zero):
    marginal probability at temperature zero. Episodic: nothing is kept. The released driver votes under half precision on
    unscaled cosines, which makes the votes soft; ``soft`` repeats that (softmax of cosine times 1,024).

    Args:
        gamma: share of the views that vote.
        vote: ``hard`` as the method means, or ``soft``.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Farina et al. (ZERO), NeurIPS 2024"
    exempt: ClassVar[dict[str, str]] = {
        "is not worse than its source under shift": "published crops, down to 8 % and half of them mirrored, show no digit; "
        "with crops of half the image and no mirror it is not worse",
    }
    output = "probs"

    def __init__(self, backbone: Backbone, *, views: Size = 64, gamma: Share = 0.3, vote: Literal["hard", "soft"] = "hard",
                 area: Share = 0.08, flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip)
        self.gamma, self.vote = gamma, vote

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        counts = votes(f @ text.T, float(self.scale), self.gamma, self.vote)
        return counts / counts.sum()


def votes(cosines: Tensor, scale: float, gamma: float, vote: str = "hard") -> Tensor:
    """Votes (C,) of the confident rows of ``cosines`` (V, C), ties broken."""
    order = entropies(scale * cosines).argsort(stable=True)
    kept = confident(entropies(scale * cosines), gamma)
    classes = cosines.shape[1]
    chosen = cosines.argmax(1)
    ballots = F.one_hot(chosen, classes).to(cosines) if vote == "hard" else (cosines * 1024).softmax(1)
    counts = ballots[kept].sum(0)
    tied = torch.nonzero(counts == counts.max()).flatten()
    if len(tied) > 1:
        rest = order[len(kept):]
        among = rest[torch.isin(chosen[rest], tied)]
        if len(among):
            counts[chosen[among[0]]] += 1
        elif len(rest):  # no view left votes for a tied class: the best of them chooses among these
            counts[tied[cosines[rest[0]][tied].argmax()]] += 1
    return counts
