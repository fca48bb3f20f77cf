"""What a method sees of a pretrained network: pooled features, the preprocessing of its weights, and where both come
from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.tensor import batches
from ..errors import UserError
from ..heads import FixedHead, Head, LinearHead
from ..types import LabelSpace


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How the weights want their images: square side in pixels (None = any), channel mean and std in [0, 1], filter,
    and whether an image that is not square is squashed (both sides to size) or cropped."""

    size: int | None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    squash: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise ValueError(f"interpolation {self.interpolation!r} is none of bilinear, bicubic, nearest")


class Backbone(nn.Module):
    """A network without its classifier, together with the preprocessing that belongs to its weights.

    Images come as float (N, 3, H, W) in [0, 1], of any height and width; resizing and normalisation happen inside, so
    that augmentations and corruptions before it work on plain images. Nothing is resized or normalised where it would
    change nothing.

    Attributes:
        model: the trunk. `model(preprocessed)` gives (N, num_features); adapters attach to its layers by name.
        num_features: length of a feature vector.
        head: the classifier that the weights came with, from features to logits, or None.
        classes: names of the head's outputs, in order; () where the source does not say.
        other_names: further names of the same outputs, each a tuple in their order: a scenario may know a class by its
            WordNet id where the weights say "tench".
        info: plain record of name, args, sha256 (of the weights file, else of the state), preprocess and source; "knows"
            where the weights saw one kind of image alone ("letters").
        any_layout: whether the trunk takes images whose channels lie beside each other in memory (no ``view`` of a feature
            map in its code), so that a run may hand it such.
        channels_last: whether images are laid out so on their way into `model`; a run decides.
        splits: pattern of the names of those parts of the trunk that are gathered one after another where it is split among
            processes (``--strategy fsdp``); the default finds the blocks of transformers and residual networks.
        mean, std: buffers (1, 3, 1, 1), not saved with the weights; `.double()` and `.to()` move them.

    The image is used whole: a test-time crop ratio of the source (timm's crop_pct) is not applied to tensors. An
    image that is not square is resized by its short side and cropped at its centre.
    """

    mean: Tensor
    std: Tensor
    splits: str = r"(.*\.)?(blocks|resblocks|layers?\d*|stages)\.(\w+_)?\d+"

    def __init__(
        self,
        model: nn.Module,
        *,
        num_features: int,
        preprocess: Preprocess,
        head: nn.Module | None = None,
        classes: tuple[str, ...] = (),
        other_names: tuple[tuple[str, ...], ...] = (),
        info: Mapping[str, Any] | None = None,
        any_layout: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.num_features, self.classes = int(num_features), tuple(classes)
        self.other_names = tuple(tuple(names) for names in other_names)
        self._how = preprocess
        self.any_layout, self.channels_last = any_layout, False
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)
        self.info: dict[str, Any] = {"name": "", "args": {}, "sha256": "", "source": ""} | dict(info or {})
        self.info["preprocess"] = asdict(preprocess)
        if not self.info["sha256"]:
            self.info["sha256"] = state_digest(self)

    def preprocess(self, x: Tensor) -> Tensor:
        """Images float (N, 3, H, W) in [0, 1] -> what `model` takes."""
        size = self._how.size
        if size is not None and tuple(x.shape[-2:]) != (size, size):
            x = _resize(x, size, self._how)
        if any(m != 0.0 for m in self._how.mean) or any(s != 1.0 for s in self._how.std):
            x = (x - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images float (N, 3, H, W) in [0, 1] -> pooled features (N, num_features), after the trunk's last norm.

        Images are taken in any precision; the trunk computes in its own.
        """
        return self.model(self.preprocess(x).to(next(self.model.parameters(), x).dtype))

    @torch.no_grad()
    def encoded(self, data: Dataset, size: int = 256) -> Tensor:
        """Features (n, num_features) of all images of a data set, in its order and in batches of ``size``, where the trunk is.

        For a trunk that nothing trains: a run may then have the training data that it hands out tell what an earlier one
        computed of them, which are the same bits.
        """
        tell = getattr(data, "encoded", None)
        found: Tensor | None = None if tell is None else tell(self, size)
        if found is not None:
            return found
        parts = [self.forward_features(b.x) for b in batches(data, size, device=self.mean.device)]
        return torch.cat(parts) if parts else self.mean.new_zeros(0, self.num_features)

    def make_head(self) -> Head:
        """What a method answers with: the classifier that came with the weights where there is one, whose ids are the
        positions of its outputs, else a growing linear head."""
        if self.head is None:
            return LinearHead(self.num_features)
        if isinstance(self.head, Head):
            return self.head
        if not self.classes and not isinstance(self.head, nn.Linear):
            raise ValueError("a classifier that is not one linear layer needs the names of its classes")
        count = len(self.classes) or self.head.out_features
        return FixedHead(self.head, LabelSpace(tuple(range(count)), self.classes), self.num_features)

    def answers_for(self, ids: Sequence[int], names: Sequence[str]) -> bool:
        """Whether the classifier that came with the weights has, at the positions ``ids``, the classes called ``names``.
        Without names on either side nothing says that it has: equal numbers of classes are a coincidence."""
        listed = [known for known in (self.classes, *self.other_names) if known]
        pairs = list(zip(ids, names, strict=True)) if names else []
        return self.head is not None and bool(pairs) and any(
            all(i < len(known) and known[i] == name for i, name in pairs) for known in listed)

    @property
    def reads_names(self) -> bool:
        """Whether it has a text side, by which classes can be answered for that nothing was trained on."""
        return type(self).encode_text is not Backbone.encode_text

    def encode_text(self, names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Class names -> unit embeddings (C, num_features), for backbones with a text side.

        Raises:
            UserError: this one has none.
        """
        raise UserError(f"backbone {self.info['name']!r} has no text side; use one that has, such as open_clip_model.")

    def forward(self, x: Tensor) -> Tensor:
        """Images float (N, 3, H, W) in [0, 1] -> logits of the weights' own classifier, (N, len(classes))."""
        if self.head is None:
            raise RuntimeError(f"backbone {self.info['name']!r} has no classifier of its own; use forward_features")
        return self.head(self.forward_features(x))


def _resize(x: Tensor, size: int, how: Preprocess) -> Tensor:
    height, width = x.shape[-2:]
    short = min(height, width)
    target = (size, size) if how.squash else (size * height // short, size * width // short)
    kind = x.dtype
    if kind in (torch.bfloat16, torch.float16) and x.device.type == "cpu":
        x = x.float()  # a CPU's filters have no half precision
    if how.interpolation == "nearest":
        x = F.interpolate(x, size=target, mode="nearest")
    else:
        x = F.interpolate(x, size=target, mode=how.interpolation, align_corners=False, antialias=True)
        if how.interpolation == "bicubic":
            x = x.clamp(0.0, 1.0)  # the cubic filter overshoots; images on disk were clipped when they were resized
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return x[..., top : top + size, left : left + size].to(kind)


def state_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's state, for weights that come from no file."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
