"""Parts of PROOF: sums of maps, attention over image, texts and prototypes, its loss, herding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """One head of self-attention over a short sequence, with dropout, the sequence itself added, and a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        for part in (self.q, self.k, self.v):
            nn.init.normal_(part.weight, std=width**-0.5)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        share = (self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5).softmax(2)
        mixed = F.dropout(share, 0.1, self.training) @ self.v(x)
        return self.norm(F.dropout(self.out(mixed), 0.1, self.training) + x)


def summed(maps: nn.ModuleList, features: Tensor) -> Tensor:
    """The sum of what each map makes of features (N, d)."""
    return torch.stack([m(features) for m in maps]).sum(0)


def proof_loss(image: Tensor, text: Tensor, prototype: Tensor, v: Tensor, w: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Both cross-entropies after the attention, without normalisation or scale, and the contrast of images ``v`` (N, d) with
    their own texts among those of the batch, before it; ``y`` (N,) are rows of ``text``, ``prototype`` and ``w`` (C, d)."""
    logits, own = scale * v @ w[y].T, torch.arange(len(y), device=y.device)
    pairs = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return F.cross_entropy(image @ text.T, y) + F.cross_entropy(image @ prototype.T, y) + pairs


def herded(f: Tensor, count: int) -> Tensor:
    """Rows of unit features (n, d) whose running mean stays nearest to the mean of all (Rebuffi et al., iCaRL, CVPR 2017)."""
    mean, total, chosen = f.mean(0), torch.zeros_like(f[0]), list[int]()
    for k in range(min(count, len(f))):
        apart = (mean - (total + f) / (k + 1)).norm(dim=1)
        apart[chosen] = torch.inf
        chosen.append(int(apart.argmin()))
        total = total + f[chosen[-1]]
    return torch.tensor(chosen, device=f.device)
