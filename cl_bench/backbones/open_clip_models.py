"""Contrastive vision-language models of OpenCLIP (Ilharco et al., 2021, github.com/mlfoundations/open_clip) as
backbones.

Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.files import check_magic, existing_folder, file_digest
from ..errors import UserError
from ..ranges import Seed, Text, bounded
from ..rng import seeded
from ._classifier import first_line
from .base import Preprocess
from .checkpoints import check_finite, read_weights
from .vision_language import VisionLanguageBackbone, root_logger_kept, towers_beside

__all__ = ["open_clip_model"]


@bounded
def open_clip_model(
    name: Text,
    *,
    pretrained: str | None = None,
    sha256: Text | None = None,
    quick_gelu: bool | None = None,
    seed: Seed = 0,
) -> VisionLanguageBackbone:
    """A model of `open_clip.create_model`: image tower as trunk, `encode_text` beside it.

    Args:
        name: OpenCLIP's name ("ViT-B-32"), or "local-dir:FOLDER" with `open_clip_config.json` and weights. There the
            configurations of a timm image tower ("timm_model_name": "local-dir:image") and of a text tower of transformers
            ("hf_model_name": ".") are looked for below the folder.
        pretrained: a tag ("openai", "laion2b_s34b_b79k"; needs a network or the cache) or the path of a weights file.
        sha256: expected digest of the weights file, or its beginning, where `pretrained` is a path.
        quick_gelu: activation the weights were trained with. None: as the tag says (OpenCLIP alone would only warn, and
            build the other one); for a file as the name says ("ViT-B-32-quickgelu").
        seed: of the random weights, where `pretrained` is not given.

    Raises:
        UserError: an unknown name or tag, or weights that are missing, damaged or of another model.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    local = name.startswith("local-dir:")
    if not local and name not in open_clip.list_models():
        close = [m for m in open_clip.list_models() if m.lower().startswith(name.lower()[:6])][:4]
        raise UserError(
            f'OpenCLIP has no model "{name}": {"did you mean " + " or ".join(close) if close else "see list_models()"}.'
        )
    info: dict[str, Any] = {
        "name": f"open_clip:{name}",
        "args": {"pretrained": pretrained},
        "source": f"random, seed {seed}",
    }
    if local:
        info |= {"sha256": _check_folder(name.removeprefix("local-dir:")), "source": name}
    tag: dict[str, Any] = {} if local or not pretrained else dict(get_pretrained_cfg(name, pretrained) or {})
    if quick_gelu is False and "quickgelu" in name.lower():
        raise UserError(
            f'"{name}" has QuickGELU but weights "{pretrained}" were trained without: use the name without it.'
        )
    known_gelu = _model_cfg(name).get("quick_gelu", False) if local else tag.get("quick_gelu", False) if tag else None
    if None not in (quick_gelu, known_gelu) and quick_gelu != bool(known_gelu):
        raise UserError(
            f'"{name if local else pretrained}" was trained {"with" if known_gelu else "without"} QuickGELU: '
            f"leave quick_gelu out, or say {str(bool(known_gelu)).lower()}."
        )
    if tag:
        quick_gelu = bool(tag.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
        info["source"] = f"open_clip tag {pretrained}"
    elif pretrained and not local:
        known = open_clip.list_pretrained_tags_by_model(name)
        _, info["sha256"] = read_weights(
            pretrained, sha256, f"give a path, or one of the tags {', '.join(known) or '(none for this model)'}."
        )
        info["source"] = pretrained
    if quick_gelu is not None:
        info["args"]["quick_gelu"] = quick_gelu
    try:
        with seeded(seed), root_logger_kept():
            clip = open_clip.create_model(
                name,
                pretrained=None if local else pretrained,
                precision="fp32",
                force_quick_gelu=bool(quick_gelu),
                # A text tower taken from the Hugging Face hub would otherwise be downloaded for a random model.
                pretrained_text=False,
                require_pretrained=bool(pretrained) or local,
                **(towers_beside(name) if local else {}),
            )
    except Exception as error:  # what a damaged file or config meets in OpenCLIP's own code
        reason = first_line(error)
        raise UserError(
            f'OpenCLIP cannot make "{name}" with weights "{pretrained}" ({reason}): give weights of it as a file.'
        ) from error
    check_finite(clip.state_dict(), str(info["source"]))
    cfg = clip.visual.preprocess_cfg
    size = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][-1]
    how = Preprocess(
        int(size), tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"] == "squash"
    )
    config = {**_model_cfg(name), **({"quick_gelu": quick_gelu} if quick_gelu is not None else {})}
    facts = {"num_features": int(config["embed_dim"]), "preprocess": how, "info": info}
    whole = {"model_cfg": config, "preprocess_cfg": dict(cfg)}
    return VisionLanguageBackbone(clip, context_name=name, config=whole, **facts).eval()


def _model_cfg(name: str) -> dict[str, Any]:
    import open_clip

    if name.startswith("local-dir:"):
        file = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))["model_cfg"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'OpenCLIP cannot make "{name}": "{file}" is no configuration of it ({first_line(error)}); write it anew.'
            ) from error
    return dict(open_clip.get_model_config(name) or {})


def _check_folder(folder: str) -> str:
    where = existing_folder(folder, "it should hold open_clip_config.json and the weights.")
    if not (where / "open_clip_config.json").is_file():
        raise UserError(f'"{where}" has no open_clip_config.json: name a folder that OpenCLIP wrote.')
    files = sorted(where.glob("*.safetensors"))
    if not files:
        raise UserError(f'"{where}" has no safetensors file: put the weights there as open_clip_model.safetensors.')
    check_magic(files[0], "safetensors")
    return file_digest(files[0])
