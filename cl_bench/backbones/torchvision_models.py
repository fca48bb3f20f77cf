"""The classification models of torchvision as backbones."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.files import existing_file
from ..errors import UserError
from ..ranges import Pixels, Seed, Text, bounded
from ..rng import seeded
from ._classifier import first_line, probe, same
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
    image_size: Pixels | None = None,
    seed: Seed = 0,
) -> Backbone:
    """A model of `torchvision.models`; its preprocessing comes from the entry of its weights.

    Args:
        name: torchvision's name, such as "resnet50" or "vit_b_16".
        weights: name of the weights' entry, such as "IMAGENET1K_V2" or "DEFAULT". Without `checkpoint_path` the file
            is taken from torch.hub's folder or downloaded; torchvision's own digest (in the file's name) is checked.
        checkpoint_path: file with the model's state dict (`.pth`, `.safetensors`). `weights` then says which
            preprocessing and class names belong to it ("DEFAULT" if it is not given), and which digest where torchvision
            knows one.
        sha256: expected digest of the file, or its beginning (at least 8 characters).
        image_size: side in pixels, by default that of the weights' entry. Convolutional networks take any; a vision
            transformer is built for it, and its position embeddings are interpolated as torchvision does.
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

    given = weights is not None or checkpoint_path is not None
    model = _create(name, given, image_size, seed)
    info: dict[str, Any] = {"name": f"torchvision:{name}", "args": {}, "source": f"random, seed {seed}"}
    if given:
        file = Path(checkpoint_path).expanduser() if checkpoint_path else _download(entry.url)
        # Only a file that is said to be this entry's must have this entry's digest.
        known = entry.url.rpartition("-")[2].partition(".")[0] if weights else None
        state, digest = read_weights(file, sha256 or known)
        load_exactly(model, _fitted(model, state, file), file)
        info |= {
            "args": {"weights": entry.name},
            "sha256": digest,
            "source": str(file) if checkpoint_path else entry.url,
        }

    shown = entry.transforms()
    how = Preprocess(image_size or int(shown.crop_size[0]), tuple(shown.mean), tuple(shown.std), shown.interpolation.value)
    info["resize_not_applied"] = int(shown.resize_size[0])
    trunk, head, width = _split(model, how.size if given else None)
    if not given:
        head = None
    named = head is not None and len(entry.meta["categories"]) == head.out_features
    classes = tuple(entry.meta["categories"]) if named else ()
    other = imagenet_names() if len(classes) == 1000 else ()  # all of torchvision's classifiers of 1,000 classes
    return Backbone(trunk, num_features=width, head=head, classes=classes, other_names=other, preprocess=how, info=info,
                    any_layout=True).eval()


def _create(name: str, weights: bool, size: int | None, seed: int) -> nn.Module:
    from torchvision import models

    how: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their weights expect images as TensorFlow prepares them; torchvision says so only where it loads them itself.
        how = {"init_weights": not weights, "transform_input": weights}
    if size and name.startswith("vit_"):
        how["image_size"] = size
    try:
        with seeded(seed):
            return models.get_model(name, weights=None, **how)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f'torchvision cannot make "{name}" for images of {size} pixels ({first_line(error)}): give another '
                        "image_size.") from error


def _fitted(model: nn.Module, state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """``state`` with the position embeddings of a vision transformer interpolated to the model's grid."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    at = "encoder.pos_embedding"
    own = model.state_dict().get(at)
    if not isinstance(model, VisionTransformer) or own is None or at not in state or state[at].shape == own.shape:
        return state
    try:
        return dict(interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state)))  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f'The position embeddings in "{source}" do not fit the image size ({first_line(error)}): give another '
                        "image_size.") from error


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


def _split(model: nn.Module, size: int | None) -> tuple[nn.Module, nn.Linear | None, int]:
    """Put an identity in the place of the last linear layer, which is the classifier in torchvision's models; None where it
    is not all of the model's answer to an image of ``size``. Auxiliary classifiers, which answer in training, go."""
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(f"{type(model).__name__} has no linear classifier to take off: use another model.")
    own = probe(model, size)
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False  # type: ignore[assignment]
    path, head = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, head if same(probe(nn.Sequential(model, head), size), own) else None, head.in_features
