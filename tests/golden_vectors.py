"""Golden vectors of published code: where they lie, and the modules whose cores must reproduce them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cl_bench.registry import find


class Vectors:
    """One file: ``v.in_x`` is a tensor, numbers too; ``v["out_y_3"]`` for names made up."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as held:
            self.arrays = {k: torch.as_tensor(held[k]) for k in held.files}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def __getattr__(self, key: str) -> torch.Tensor:
        if key.startswith("_") or key not in self.arrays:
            raise AttributeError(key)
        return self.arrays[key]

    def number(self, key: str) -> float:
        return float(self.arrays[key])


def draws(shared: Path, name: str, kind: str = "continual") -> list[Vectors]:
    """Every draw of one kind: ``NAME.npz`` and, where there are more seeds, ``NAME_<seed>.npz``."""
    folder = shared / "reference" / "golden" / kind
    found = [p for p in sorted(folder.glob(f"{name}*.npz")) if re.fullmatch(rf"{name}(_?(seed)?_?\d+)?", p.stem)]
    if not found:
        pytest.skip(f"no golden vectors {name} in {folder}")
    return [Vectors(p) for p in found]


def core(method: str, module: str = "") -> ModuleType:
    """The module of a registered method, or one beside it."""
    own = find("cl_bench.methods", method).__module__
    return sys.modules[f"{own.rpartition('.')[0]}.{module}" if module else own]


def same(got: Any, want: torch.Tensor, atol: float = 1e-9, **kw: Any) -> None:
    """Equal shapes and numbers."""
    got = torch.as_tensor(got, dtype=torch.float64 if isinstance(got, float) else None)
    assert got.shape == want.shape, (got.shape, want.shape)
    torch.testing.assert_close(got.to(want.dtype), want, atol=atol, rtol=kw.pop("rtol", 0.0), **kw)
