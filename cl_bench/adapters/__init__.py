"""Parameter-efficient adapters: small trainable parts attached by name pattern to a frozen backbone.

One file per kind; ``cl-bench list adapters`` names them, and the kind ``peft`` is any linear tuner of Hugging Face PEFT.
``attach`` is the only way in::

    adapters = attach(backbone, "lora", at=r"blocks\\.\\d+\\.attn\\.qkv", r=8)
    adapters.add("second"); adapters.use("second")
    with adapters.off():
        features = backbone.forward_features(x)     # the frozen backbone
    adapters.merge_()                               # into the weights, exactly; the adapters are a no-op again
"""

from __future__ import annotations

from ._attach import FUSED4, AdapterSet, attach, layer_names, trunk_of
from ._attention import attend, width_of
from ._base import Adapter, LayerSite, WeightSite
from ._combine import combine
from ._gram import input_grams, moments_of, rows_of
from ._peft import load_peft, save_peft
from ._prox import soft_threshold

__all__ = [
    "FUSED4",
    "Adapter",
    "AdapterSet",
    "LayerSite",
    "WeightSite",
    "attach",
    "attend",
    "combine",
    "input_grams",
    "layer_names",
    "load_peft",
    "moments_of",
    "rows_of",
    "save_peft",
    "soft_threshold",
    "trunk_of",
    "width_of",
]
