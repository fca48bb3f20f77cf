"""DMN: a memory of test features per class, read by attention with the text as a permanent slot."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone
from cl_bench.ranges import Amount, Share, Size

from ._views import Views, confident

__all__ = ["Dmn"]


class Dmn(Views):
    """Each class's vector is its text and what is like the query among its remembered images; both answers are added.

    Zhang et al., "Dual Memory Networks: A Versatile Adaptation Approach for Vision-Language Models", CVPR 2024 (YBZh/DMN),
    the zero-shot setting. Online. The paper's weight of the second answer is chosen on the test set after the stream; here
    it is fixed, and the two probabilities are averaged with it.

    Args:
        form: ``full``: the class to write is that of the confident views' mean probability, and a full class takes an item
            only for a less certain one; ``tta_vlm``: that benchmark's form (mean logits, the least certain is always
            overwritten); ``weak``: the same with the image alone.
        memory: items per class.
        beta: sharpness of the attention.
        weight: of the second answer.
        views: 32 as published; ``weak`` sees one.
        share: of the views that are kept.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Zhang et al. (DMN), CVPR 2024"
    output = "probs"

    def __init__(self, backbone: Backbone, *, form: Literal["full", "tta_vlm", "weak"] = "full", views: Size = 32,
                 memory: Size = 50, beta: Amount = 5.5, weight: Amount = 1.0, share: Share = 0.1, area: Share = 0.5,
                 flip: bool = True) -> None:  # fmt: skip
        super().__init__(backbone, views=1 if form == "weak" else views, area=area, flip=flip)
        self.form, self.memory, self.beta, self.weight, self.share = form, memory, beta, weight, share

    def restart_memory(self) -> None:
        self.slots: dict[int, list[tuple[Tensor, float]]] = {}

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        p, remembered, _ = self.answers(f, text)
        return (p + self.weight * remembered) / (1 + self.weight)

    def answers(self, f: Tensor, text: Tensor) -> tuple[Tensor, Tensor, int]:
        """Probabilities (C,) by the text and by the memory once the image has entered it, and the class that it entered."""
        logits = self.scale * f @ text.T
        small = 1e-6 if self.form == "full" else 1e-5
        kept = confident(uncertain(logits.softmax(1), small), self.share)
        q = logits[kept].softmax(1).mean(0) if self.form == "full" else logits[kept].mean(0).softmax(0)
        label = int(q.argmax())
        self.write(label, f[0], float(uncertain(q, 1e-8 if self.form == "full" else 1e-5)))
        return logits[0].softmax(0), (self.scale * f[0] @ self.vectors(f[0], text).T).softmax(0), label

    def write(self, label: int, feature: Tensor, entropy: float) -> None:
        """Append, or replace the least certain item of a full class."""
        held = self.slots.setdefault(label, [])
        if len(held) < self.memory:
            held.append((feature, entropy))
            return
        worst = max(range(len(held)), key=lambda k: held[k][1])
        if self.form != "full" or entropy < held[worst][1]:
            held[worst] = (feature, entropy)

    def vectors(self, query: Tensor, text: Tensor) -> Tensor:
        """Unit class vectors (C, d) for a query: the text and the items, weighted by likeness."""
        out = []
        for c in range(len(text)):
            keys = torch.stack([text[c], *(k.to(query) for k, _ in self.slots.get(c, []))])
            out.append(torch.exp(-self.beta * (1 - keys @ query)) @ keys)
        return F.normalize(torch.stack(out), dim=-1)


def uncertain(p: Tensor, small: float) -> Tensor:
    """Entropy with ``small`` beside each probability, as the authors have it."""
    return -(p * (p + small).log()).sum(-1)
