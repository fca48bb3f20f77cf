"""A classifier made of class names: where their vectors come from, and the head that compares features with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import LabelSpace, UserError
from cl_bench.data.files import existing_file
from cl_bench.heads import Head
from cl_bench.registry import find


class LanguageHead(Head):
    """``scale * cos(P f, t_c)``: t_c the frozen vector of a class's name, P a learned map where widths differ."""

    rows: Tensor

    def __init__(self, num_features: int, encode: Words, scale: float) -> None:
        super().__init__(num_features)
        self.encode = encode
        self.register_buffer("rows", torch.zeros(0, encode.width))
        self.project = nn.Linear(num_features, encode.width, bias=False) if encode.width != num_features else nn.Identity()
        self.scale = nn.Parameter(torch.tensor(scale))

    def grow(self, space: LabelSpace) -> None:
        old = len(self.space)
        super().grow(space)
        if len(self.space) > old:
            self.rows = torch.cat([self.rows, self.encode(self.space.names[old:]).to(self.rows)])

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(self.project(features), dim=-1) @ self.rows.T


class Words(nn.Module):
    """Unit vectors of class names: from a model with a text side, or from a file of names and vectors."""

    def __init__(self, source: str, template: str) -> None:
        super().__init__()
        self.source, self.template = source, template
        self.known: dict[str, Tensor] = {}
        if source.endswith(".npz"):
            with np.load(existing_file(source, "it should hold names and vectors.")) as held:
                if not {"names", "vectors"} <= set(held.files):
                    raise UserError(f'"{source}" holds no names and vectors: save two arrays of these names, a row per name.')
                vectors = torch.as_tensor(held["vectors"]).float()
                self.known = dict(zip(map(str, held["names"]), vectors, strict=True))
            self.width = vectors.shape[1]
        else:
            self.reader = find("cl_bench.backbones", source)().requires_grad_(False).eval()
            if not self.reader.reads_names:
                raise UserError(f'lingocl needs a language model, and backbone "{source}" reads no names; name glyph_clip or a '
                                "file of vectors.")
            self.width = int(self.reader.num_features)

    @torch.no_grad()
    def forward(self, names: Sequence[str]) -> Tensor:
        """Names to rows (C, width) of unit length."""
        if not self.known:
            return self.reader.encode_text(tuple(names), (self.template,))  # type: ignore[operator]
        if missing := [n for n in names if n not in self.known]:
            raise UserError(f'"{self.source}" has no vector for "{missing[0]}": add one under that name.')
        return F.normalize(torch.stack([self.known[n] for n in names]), dim=-1)
