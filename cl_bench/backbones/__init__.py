"""Pretrained networks behind one contract: features from images in [0, 1], preprocessing and digest of their weights.

Factories are found by name through the entry-point group `cl_bench.backbones`; `base.Backbone` is what they return.
"""

from .base import Backbone, Preprocess

__all__ = ["Backbone", "Preprocess"]
