"""What it takes to go on with a run, on disk: whole, verified, and replaced in one step.

A checkpoint is a folder: ``state.json`` (the tree of :mod:`cl_bench.engine.encoding`, and whose it is) and the safetensors file
that it names.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..method import Method
from ..records.writer import plain, write_atomically
from .encoding import Decoder, class_path, packages_of, restore, snapshot

__all__ = ["Damaged", "Found", "read", "restore", "save", "snapshot"]

SCHEMA = 3


def save(folder: Path, method: Method, position: Any, identity: Mapping[str, Any]) -> None:
    """Write a checkpoint; the old one stays until the new one is whole and on disk.

    ``state.json`` names the file of its tensors and says its digest, and is replaced in one step: at every moment the
    folder holds one whole checkpoint. ``identity`` is plain data that :func:`peek` gives back.
    """
    tree, tensors = snapshot({"method": method, "mark": Method.marked(method), "position": position})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"tensors-{uuid.uuid4().hex[:12]}.safetensors"
    data = safetensors.torch.save(tensors)
    try:
        write_atomically(file, data)
        head = {"schema": SCHEMA, "identity": plain(identity), "tensors": file.name, "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps({**head, "tree": tree}, allow_nan=False)
        whole = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "state": text}
        write_atomically(folder / "state.json", json.dumps(whole).encode())
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    for other in folder.glob("tensors-*.safetensors"):
        if other != file:
            other.unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """A checkpoint as read from disk, whole and verified: whose it is, and what it holds."""

    folder: Path
    identity: Mapping[str, Any]
    tree: Any
    tensors: dict[str, Tensor]

    def fill(self, method: Method, device: torch.device | None = None) -> Any:
        """Fill a freshly built ``method`` and return the position that it was saved with.

        Raises:
            UserError: if the checkpoint is of another method.
        """
        owner = dict((k, v) for k, v in self.tree["v"])["method"]["class"]
        if owner != class_path(type(method)):
            raise UserError(f"the checkpoint in {self.folder} is of {owner}, not {class_path(type(method))}.")
        decoder = Decoder(self.tensors, packages_of(method), device, method)
        whole = decoder(self.tree, {"method": method, "mark": None, "position": None})
        Method.mark_as(method, whole["mark"])
        return whole["position"]


class Damaged(Exception):
    """A checkpoint that cannot be used, with what is wrong."""


def read(folder: Path) -> Found | None:
    """The checkpoint in ``folder``, None where there is none.

    Raises:
        Damaged: if it is not what was written.
        UserError: if it is from another version of cl-bench.
    """
    try:
        text = (folder / "state.json").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise Damaged(str(fault.strerror)) from fault
    try:
        outer = json.loads(text)
        if hashlib.sha256(outer["state"].encode()).hexdigest() != outer["sha256"]:
            raise Damaged("state.json is not what was written")
        whole = json.loads(outer["state"])
        data = (folder / Path(whole["tensors"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != whole["sha256"]:
            raise Damaged(f"{whole['tensors']} is not what was written")
        if whole["schema"] != SCHEMA:
            raise UserError(f"the checkpoint in {folder} has schema {whole['schema']}; this cl-bench reads {SCHEMA}.")
        return Found(folder, whole["identity"], whole["tree"], safetensors.torch.load(data))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, safetensors.SafetensorError) as fault:
        raise Damaged(f"{type(fault).__name__}: {fault}") from fault
