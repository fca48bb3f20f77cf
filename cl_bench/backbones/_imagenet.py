"""The names under which ImageNet's classes are known, beside those that weights bring."""

from __future__ import annotations

from functools import cache

from ..data.classes import numbered

__all__ = ["imagenet_names"]


@cache
def imagenet_names() -> tuple[tuple[str, ...], ...]:
    """WordNet ids, published numbers and first names ("tench") of the 1,000 classes, each in label order."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    first = tuple(names.partition(",")[0] for names in known.label_descriptions())
    return tuple(known.label_names()), numbered(range(1000)), first
