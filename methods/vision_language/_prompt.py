"""Learned context in the place of a template's first words: what prompt methods train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
