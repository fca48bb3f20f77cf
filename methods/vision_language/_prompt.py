"""Learned context in the place of a template's first words: what prompt methods train."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import UserError
from cl_bench.backbones.vision_language import VisionLanguageBackbone


def start_context(backbone: VisionLanguageBackbone, words: str) -> Tensor:
    """The vectors of ``words`` (n, width), from the model's own vocabulary."""
    tokens = backbone.tokenize([words])
    count = int(backbone.ends(tokens)[0]) - 1 if backbone.takes_embeddings else 0
    with torch.no_grad():
        return backbone.embed_tokens(tokens)[0, 1 : 1 + count].clone()


def prompt_tokens(backbone: VisionLanguageBackbone, length: int, names: tuple[str, ...]) -> Tensor:
    """Tokens of ``length`` places, a name and a full stop (C, L); underscores become spaces.

    Raises:
        UserError: a name is too long beside the context.
    """
    plain = backbone.tokenize([f"{n.replace('_', ' ')}." for n in names])
    ends = backbone.ends(plain)
    if int(ends.max()) + length >= plain.shape[1]:
        longest = names[int(ends.argmax())]
        raise UserError(f'"{longest}" and {length} learned words are longer than the {plain.shape[1]} tokens that are read; '
                        "shorten the name or learn fewer words.")
    place = plain[:, 1:2].expand(-1, length)  # any token below the end's: its vector is replaced
    return torch.cat([plain[:, :1], place, plain[:, 1 : plain.shape[1] - length]], 1)


def prompted(backbone: VisionLanguageBackbone, tokens: Tensor, context: Tensor) -> Tensor:
    """Unit text features (C, d) of ``tokens`` whose places after the start hold ``context``: (n, width), or (C, n, width)."""
    return F.normalize(backbone.encode_tokens(tokens, replaced(backbone, tokens, context)), dim=-1)


def replaced(backbone: VisionLanguageBackbone, tokens: Tensor, context: Tensor) -> Tensor:
    """Vectors (C, L, width) of ``tokens``, those after the start being ``context``: (n, width), or (C, n, width)."""
    vectors = backbone.embed_tokens(tokens)
    context = context.expand(len(tokens), -1, -1).to(vectors)
    return torch.cat([vectors[:, :1], context, vectors[:, 1 + context.shape[1]:]], 1)


def coop_rates(parameters: list[nn.Parameter], lr: float, total: int, epochs: int) -> dict[str, Any]:
    """CoOp's optimizer: SGD with momentum 0.9 and decay 5e-4; of ``total`` steps a first epoch, where there are epochs, at
    1e-5, the others along a cosine that ends at 0."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    first = max(1, total // max(1, epochs)) if epochs else 0
    steps = torch.optim.lr_scheduler
    if first:
        constant = steps.ConstantLR(optimizer, 1e-5 / lr if lr else 1.0, total_iters=first)
    falling = steps.CosineAnnealingLR(optimizer, max(1, total - first))
    schedule = steps.SequentialLR(optimizer, [constant, falling], [first]) if first else falling
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
