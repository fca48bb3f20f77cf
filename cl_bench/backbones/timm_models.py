"""Any model of timm (Wightman, "PyTorch image models", 2019, github.com/huggingface/pytorch-image-models) as a
backbone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.files import existing_folder
from ..errors import UserError
from ..ranges import Pixels, Seed, Size, Text, bounded
from ..rng import seeded
from ._imagenet import imagenet_names
from .base import Backbone, Preprocess
from .checkpoints import load_exactly, read_weights

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
    seed: Seed = 0,
) -> Backbone:
    """A model of `timm.create_model`; its preprocessing comes from the same place as its weights.

    Weights come from one of: timm's own source (`pretrained=True`, needs a network or its cache), a file
    (`checkpoint_path`), or a folder with `config.json` and weights as `timm.models.save_for_hf` writes it
    (`local_dir`, or "local-dir:FOLDER" as name). With none of them the weights are random and there is no head.

    Args:
        name: timm's name, with its weights' tag if several exist ("vit_base_patch16_224.augreg_in21k"), or
            "local-dir:FOLDER".
        pretrained: download the weights that the name stands for.
        checkpoint_path: `.safetensors` or torch file with the model's state dict.
        local_dir: folder as above; `name` is then ignored.
        sha256: expected digest of the weights file, or its beginning (at least 8 characters); another one is refused.
        num_classes: outputs of the classifier in the file, where they differ from what the name says.
        image_size: side in pixels, for models that can be built for another one.
        seed: of the random weights.

    Raises:
        UserError: an unknown name, weights that are missing, damaged or of another model, or several sources at once.
    """
    import timm

    if name.startswith("local-dir:"):
        local_dir, name = name.removeprefix("local-dir:"), "local-dir"
    if not name.strip() and local_dir is None:
        raise UserError("backbone.name must not be empty: give timm's name of the model, or local_dir.")
    if sum((pretrained, checkpoint_path is not None, local_dir is not None)) > 1:
        raise UserError(
            "The backbone's weights have several sources: give one of pretrained, checkpoint_path and local_dir."
        )
    if sha256 and not (checkpoint_path or local_dir):
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
    model = _create(timm, name, pretrained, wanted, seed)

    info: dict[str, Any] = {"name": f"timm:{name}", "args": wanted, "sha256": "", "source": f"random, seed {seed}"}
    if file is not None:
        state, digest = read_weights(file, sha256)
        load_exactly(model, state, file)
        info |= {"sha256": digest, "source": str(file)}
    elif pretrained:
        cfg = model.pretrained_cfg
        info["source"] = f"timm {timm.__version__}: {cfg.get('hf_hub_id') or cfg.get('url') or name}"
        info["tag"] = cfg.get("tag", "")

    config = timm.data.resolve_model_data_config(model, args={"img_size": image_size} if image_size else None)
    how = Preprocess(config["input_size"][-1], config["mean"], config["std"], _filter(config["interpolation"]))
    info["crop_pct_not_applied"] = config["crop_pct"]
    trained = not info["source"].startswith("random")
    with seeded(seed):
        trunk, head, width = split_classifier(model, how.size if trained else None)
    if not trained:
        head = None
    classes = _class_names(timm, model, head)
    other = imagenet_names() if classes and classes == _imagenet(timm) else ()
    return Backbone(trunk, num_features=width, head=head, classes=classes, other_names=other, preprocess=how, info=info).eval()


def _create(timm: Any, name: str, pretrained: bool, wanted: dict[str, Any], seed: int) -> nn.Module:
    if ":" not in name and not timm.is_model(name):  # "hf-hub:" and "local-dir:" name a place, not a model
        close = timm.list_models(f"*{name.partition('.')[0]}*")[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()."
        raise UserError(f'timm has no model "{name}": {hint}')
    try:
        with seeded(seed):
            return timm.create_model(name, pretrained=pretrained, **wanted)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        # Hub and socket errors are OSErrors; timm itself says RuntimeError for a tag or weights that do not exist.
        way = "without a network, give checkpoint_path or local_dir" if pretrained else "mend its name or its arguments"
        raise UserError(f'timm cannot make "{name}" ({_first_line(error)}): {way}.') from error


def split_classifier(model: nn.Module, size: int | None = None) -> tuple[nn.Module, nn.Linear | None, int]:
    """Take the classifier off a timm model: trunk (images -> pooled features), classifier, number of features.

    A classifier that is not one linear layer (the two heads of a distilled DeiT, a convolution) is dropped: None. So is
    one that is not all of the model's answer (VOLO adds that of a second head): an image of ``size`` is tried.
    """
    head = model.get_classifier()
    width = int(getattr(model, "head_hidden_size", None) or model.num_features)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) if size else None
    own = _answer(model, image)
    model.reset_classifier(0)
    if not isinstance(head, nn.Linear) or head.in_features != width:
        return model, None, width
    ours = _answer(nn.Sequential(model, head), image)
    if own is not None and ours is not None and not torch.allclose(ours, own, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        return model, None, width
    return model, head, width


@torch.no_grad()
def _answer(model: nn.Module, image: Tensor | None) -> Tensor | None:
    """Logits in evaluation mode, the model's mode kept; None without an image."""
    if image is None:
        return None
    was = [(m, m.training) for m in model.modules()]
    logits = model.eval()(image)
    for module, training in was:
        module.training = training
    return logits


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
