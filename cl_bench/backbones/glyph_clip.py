"""The embedded vision-language model, pretrained on described characters; `tools/pretrain_clip.py` makes its weights.

No handwriting is in its pretraining. The card beside the weights says data, seed, command, accuracy and sha256.
"""

from __future__ import annotations

from ..errors import UserError
from .glyph import WEIGHTS, card_digest
from .open_clip_models import open_clip_model
from .vision_language import VisionLanguageBackbone

__all__ = ["glyph_clip"]


def glyph_clip() -> VisionLanguageBackbone:
    """Small CLIP on 16 x 16 pixels (vision transformer of 5 blocks, text transformer of 3), pretrained on rendered letters,
    digits, marks and textures with sentences about them; the image tower starts as ``glyph_vit``.

    Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021, in OpenCLIP's own
    classes: OpenCLIP alone reads its folder. It answers for classes that have names, such as "capital letter a".

    Raises:
        UserError: the embedded weights are missing or not those of their card.
    """
    backbone = open_clip_model(f"local-dir:{WEIGHTS / 'glyph_clip'}")
    if backbone.info["sha256"] != card_digest("glyph_clip"):
        raise UserError("The embedded weights of glyph_clip are not those that their card states: install cl-bench again.")
    backbone.tokenizer()  # read now, so that no later step opens a file
    backbone.info.update(name="glyph_clip", args={}, source="cl_bench.backbones/weights/glyph_clip")
    return backbone
