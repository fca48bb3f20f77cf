"""What a stream's answers say without a label, per domain, from sums that add up batch by batch.

From them follow the scorers of label-free model selection (:mod:`.scorers`): prediction entropy, information
maximisation and MaNo, and the diversity that tells a collapsed model. Logits are not kept: a record of fifteen
corruptions with a thousand classes would otherwise take gigabytes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["UnlabelledSums"]

POWER, THRESHOLD = 4, 5.0  # of MaNo (Xie et al. 2024)


class UnlabelledSums:
    """Sums over the answers of a stream segment with N images, K classes and D domains.

    codes: domain (0..D-1) of each of the N images by row; None: one domain.
    """

    def __init__(self, size: int, classes: int, codes: np.ndarray | None = None) -> None:
        self.codes = torch.as_tensor(np.zeros(size) if codes is None else codes, dtype=torch.long)
        domains = int(self.codes.max()) + 1 if size else 1
        self.sums = torch.zeros(domains, 5, dtype=torch.float64)  # images, entropy, log p, softmax^4, Taylor softmax^4
        self.probability = torch.zeros(domains, classes, dtype=torch.float64)

    def add(self, rows: Tensor, logits: Tensor) -> None:
        """One batch: row numbers (B,), logits (B, K). Images without a finite answer are left out.

        Summed where the logits lie and without asking which rows count, so that no batch waits for a GPU.
        """
        if self.sums.device != logits.device:
            self.codes, self.sums, self.probability = (t.to(logits.device) for t in (self.codes, self.sums, self.probability))
        z = logits.detach().double()
        fine = ~(z.isnan().any(1) | (z == torch.inf).any(1) | (z == -torch.inf).all(1)).unsqueeze(1)
        z = torch.where(fine, z, 0.0)
        log_p = z.log_softmax(1)
        p = log_p.exp()
        taylor = 1 + z + z ** 2 / 2
        taylor = taylor / taylor.sum(1, keepdim=True)
        each = torch.stack([torch.ones_like(z[:, 0]), torch.special.entr(p).sum(1), log_p.mean(1),
                            (p ** POWER).mean(1), (taylor ** POWER).mean(1)], dim=1)
        code = self.codes[rows.to(logits.device)]
        self.sums.index_add_(0, code, each * fine)
        self.probability.index_add_(0, code, p * fine)

    def of(self, domain: int) -> dict[str, float] | None:
        """``entropy``: mean of H(p) in nats; ``marginal_entropy``: H(mean p) in nats; ``mano``: 0..1. None where no
        answer of the domain was finite."""
        n, entropy, log_p, softmax, taylor = self.sums[domain].tolist()
        if not n:
            return None
        marginal = float(torch.special.entr(self.probability[domain] / n).sum())
        normalised = softmax if -log_p / n > THRESHOLD else taylor
        return {"entropy": entropy / n, "marginal_entropy": marginal, "mano": math.pow(normalised / n, 1 / POWER)}
