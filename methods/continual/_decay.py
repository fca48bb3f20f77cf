"""AdamW whose weight decay leaves alone what the loss does not reach."""

from __future__ import annotations

import torch

from cl_bench import Method


def adamw(method: Method, *, backbone_lr: float | None = None, masked: bool = False) -> torch.optim.AdamW:
    """torch's AdamW (betas 0.9 and 0.999, eps 1e-8, decay 0.01) on what is trainable, the backbone at ``backbone_lr``.

    ``masked``: the loss sees the current classes alone. The other rows of the head then have a gradient of exactly zero,
    and decay would shrink them step by step, so the head has none.
    """
    inside = {id(p) for p in method.backbone.parameters()}
    trained = [p for p in method.parameters() if p.requires_grad]
    body = {"params": [p for p in trained if id(p) in inside], "lr": method.lr if backbone_lr is None else backbone_lr}
    rest = {"params": [p for p in trained if id(p) not in inside], "lr": method.lr}
    if masked:
        rest["weight_decay"] = 0.0
    return torch.optim.AdamW([g for g in (body, rest) if g["params"]])  # type: ignore[list-item]
