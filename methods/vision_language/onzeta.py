"""OnZeta: online label learning and online proxy learning."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.ranges import Amount, Positive, Share, Whole

from ._views import Views

__all__ = ["Onzeta"]


class Onzeta(Views):
    """Text answers are re-balanced by a dual variable, proxies in image space follow them; the two are blended.

    Qian and Hu, "Online Zero-Shot Classification with CLIP", ECCV 2024 (idstcv/OnZeta). Online, one image at a time. The
    weight of the proxies' answer grows with the position in the stream, whose length must be known: ``length``; beyond it
    the weight stays at ``beta``.

    Args:
        length: images in the stream; 0 = 10,000.
        tau_text, tau_image: temperatures.
        c_w: step size of the proxies, over the root of the position.
        c_r: step size of the dual, over the root of the position.
        alpha: how near to balance the answers' marginal must be; 0 = not at all.
        beta: weight of the proxies' answer at the end.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Qian & Hu (OnZeta), ECCV 2024"
    output = "probs"

    def __init__(self, backbone: Backbone, *, length: Whole = 0, tau_text: Positive = 0.01, tau_image: Positive = 0.04,
                 c_w: Amount = 0.5, c_r: Amount = 20.0, alpha: Share = 1.0, beta: Share = 0.8) -> None:  # fmt: skip
        super().__init__(backbone, views=1)
        self.length, self.tau_text, self.tau_image = length, tau_text, tau_image
        self.c_w, self.c_r, self.alpha, self.beta = c_w, c_r, alpha, beta

    def build(self, source: Experience | None) -> None:
        self.restart_memory()

    def restart_memory(self) -> None:
        self.rho: Tensor | None = None
        self.proxies: Tensor | None = None
        self.seen_images = 0

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        x, n = f[0], self.length or 10_000
        w = text.T.contiguous() if self.proxies is None else self.proxies.to(x)
        rho = x.new_zeros(len(text)) if self.rho is None else self.rho.to(x)
        i = self.seen_images
        blend = self.beta * min(1.0, (i + 1) / n) ** 0.5
        q = (x @ text.T / self.tau_text).softmax(0) * rho.exp()
        q = q / q.sum()
        self.rho = (rho - self.c_r / (i + 1) ** 0.5 * (q - self.alpha / len(text))).clamp_min(0)
        u = (x @ w / self.tau_image).softmax(0)
        step = self.c_w / (i + 1) ** 0.5 / self.tau_image
        self.proxies = F.normalize(w - step * x[:, None] * (u - q)[None], dim=0).contiguous()
        self.seen_images = i + 1
        return blend * u + (1 - blend) * q
