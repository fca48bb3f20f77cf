"""The classification models of torchvision as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.files import existing_file
from ..errors import UserError
from ..ranges import Seed, Text, bounded
from ..rng import seeded
from ._imagenet import imagenet_names
from .base import Backbone, Preprocess
from .checkpoints import load_exactly, read_weights

__all__ = ["torchvision_model"]


@bounded
def torchvision_model(
    name: Text,
    *,
    weights: Text | None = None,
    checkpoint_path: Text | None = None,
    sha256: Text | None = None,
    seed: Seed = 0,
) -> Backbone:
    """A model of `torchvision.models`; its preprocessing comes from the entry of its weights.

    Args:
        name: torchvision's name, such as "resnet50" or "vit_b_16".
        weights: name of the weights' entry, such as "IMAGENET1K_V2" or "DEFAULT". Without `checkpoint_path` the file
            is taken
            from torch.hub's folder or downloaded; torchvision's own digest (in the file's name) is checked.
        checkpoint_path: file with the model's state dict (`.pth`, `.safetensors`). `weights` then says which
            preprocessing and
            class names belong to it ("DEFAULT" if it is not given), and which digest where torchvision knows one.
        sha256: expected digest of the file, or its beginning (at least 8 characters).
        seed: of the random weights, where neither is given (there is then no head).

    Raises:
        UserError: an unknown name or entry, or a file that is missing, damaged or of another model.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f'torchvision.models has no classifier "{name}": use one of torchvision.models.list_models().')
    entries = models.get_model_weights(name)
    try:
        entry = entries[weights or "DEFAULT"]
    except KeyError:
        raise UserError(
            f'"{name}" has no weights "{weights}": use one of {", ".join(e.name for e in entries)}.'
        ) from None

    with seeded(seed):
        model = models.get_model(name, weights=None)
    info: dict[str, Any] = {"name": f"torchvision:{name}", "args": {}, "source": f"random, seed {seed}"}
    if weights is not None or checkpoint_path is not None:
        file = Path(checkpoint_path).expanduser() if checkpoint_path else _download(entry.url)
        # Only a file that is said to be this entry's must have this entry's digest.
        known = entry.url.rpartition("-")[2].partition(".")[0] if weights else None
        state, digest = read_weights(file, sha256 or known)
        load_exactly(model, state, file)
        info |= {
            "args": {"weights": entry.name},
            "sha256": digest,
            "source": str(file) if checkpoint_path else entry.url,
        }

    trunk, head, width = _split(model)
    has_weights = "sha256" in info
    shown = entry.transforms()
    how = Preprocess(int(shown.crop_size[0]), tuple(shown.mean), tuple(shown.std), shown.interpolation.value)
    info["resize_not_applied"] = int(shown.resize_size[0])
    classes = (
        tuple(entry.meta["categories"]) if has_weights and len(entry.meta["categories"]) == head.out_features else ()
    )
    other = imagenet_names() if len(classes) == 1000 else ()  # all of torchvision's classifiers of 1,000 classes
    return Backbone(
        trunk, num_features=width, head=head if has_weights else None, classes=classes, other_names=other, preprocess=how,
        info=info,
    ).eval()


def _download(url: str) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), progress=False)
        except OSError as error:  # urllib's errors are OSErrors
            raise UserError(
                f"{url} cannot be fetched ({error}): fetch it elsewhere and give its path as checkpoint_path."
            ) from error
    return existing_file(file)


def _split(model: nn.Module) -> tuple[nn.Module, nn.Linear, int]:
    """Put an identity in the place of the last linear layer, which is the classifier in torchvision's models."""
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(f"{type(model).__name__} has no linear classifier to take off: use another model.")
    path, head = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, head, head.in_features
