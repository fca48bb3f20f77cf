"""Tensors that are kept in a file for other runs, and used only if they are what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from ..records.writer import plain, write_atomically
from .content import tensors_digest

__all__ = ["Kept"]


class Kept:
    """One file of a cache, named by a hash of all that determines what is in it.

    Args:
        kind: the first word of the file's name.
        facts: all that determines the tensors, as far as JSON can hold it.

    Attributes:
        fault: what was wrong with the file that was read, or "".
    """

    def __init__(self, cache: Path, kind: str, facts: Any) -> None:
        self.key = hashlib.sha256(json.dumps(plain(facts), sort_keys=True).encode()).hexdigest()[:24]
        self.file, self.fault = cache / f"{kind}-{self.key}.safetensors", ""

    def read(self) -> dict[str, Tensor] | None:
        """The tensors, if they are those that were written."""
        if not self.file.is_file():
            return None
        try:
            data = self.file.read_bytes()
            said = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            tensors = load(data)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as fault:
            self.fault = f"was damaged ({type(fault).__name__})"
            return None
        if said != self._seal(tensors):
            self.fault = "was not what was written"
            return None
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> str:
        """Keep them; why they could not be kept, or "": a cache that cannot be written costs time, not the run."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, save(dict(tensors), self._seal(tensors)))
        except OSError as fault:
            return str(fault.strerror)
        return ""

    def _seal(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {"key": self.key, "sha256": tensors_digest(tensors)}
