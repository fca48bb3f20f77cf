"""Weight files: read safely, checked before use, and never fitted silently to the wrong model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.files import check_magic, existing_file, file_digest, verify_digest
from ..errors import UserError

# Where training scripts of this field keep the model inside a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "state_dict_ema", "model_ema", "model", "net")


def read_weights(
    path: str | os.PathLike[str], sha256: str | None = None, hint: str = ""
) -> tuple[dict[str, Tensor], str]:
    """Tensors by name from a `.safetensors` or torch file, and the file's sha256.

    Torch files are read with `weights_only=True`, so nothing in them is executed. A missing file, a web page, a
    truncated file, weights that are NaN or infinite and a digest other than `sha256` (hex, or its beginning) raise
    `UserError`.
    """
    file = existing_file(path, hint)
    safe = file.suffix == ".safetensors"
    check_magic(file, "safetensors" if safe else "torch")
    digest = verify_digest(file, sha256) if sha256 else file_digest(file)
    state = _read_safetensors(file) if safe else _read_torch(file)
    check_finite(state, str(file))
    return state, digest


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are NaN or infinite: every answer of theirs would be."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f'The weight "{name}" in "{source}" is NaN or infinite: training went wrong, take other weights.')


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # SafetensorError, and KeyError or ValueError for types that torch has not
        raise UserError(f'"{file}" cannot be read as safetensors ({error}): it is damaged, fetch it again.') from error


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'"{file}" holds more than tensors, which may run code when read: '
            "save its state_dict() alone, best as safetensors."
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes come to
        raise UserError(
            f'"{file}" cannot be read as a torch file: it is cut short or damaged, fetch it again.'
        ) from error
    state = _tensors(content)
    if state is None:
        raise UserError(f'"{file}" holds no weights by name: save the model\'s state_dict() there.')
    return state


def _tensors(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        return None
    # DataParallel puts "module." before every name; it says nothing about the model.
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """`load_state_dict` that raises `UserError` naming the first missing, unexpected or misshapen weight.

    BatchNorm's counter `num_batches_tracked` may be missing: files from before PyTorch 0.4.1 lack it, and no default
    uses it.
    """
    own = module.state_dict()
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | dict(state)
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected:
        parts = [
            f'{what} {len(names)} (first: "{names[0]}")'
            for what, names in (("misses", missing), ("has unexpected", unexpected))
            if names
        ]
        raise UserError(
            f'The weights in "{source}" do not fit the model: it {" and ".join(parts)}; name the model they are of.'
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(
                f'The weight "{name}" in "{source}" has shape {tuple(state[name].shape)} where the model has '
                f"{tuple(value.shape)}: name the model (size, number of classes) they are of."
            )
        if value.is_floating_point() and not state[name].is_floating_point():
            raise UserError(f'The weight "{name}" in "{source}" holds {str(state[name].dtype).removeprefix("torch.")} numbers: '
                            "it was quantised, take weights in floating point.")
    module.load_state_dict(state)
