"""How methods look, on the page and in figures: a colour by name, a dash, a symbol; bounds are grey.

The first eight colours are at least 10 apart (CIEDE2000) for readers without and with each of the three kinds of colour
blindness (Machado et al. 2009), in both themes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["DARK", "LIGHT", "short_names", "slots"]

LIGHT = ("#0D6CCA", "#B65104", "#079163", "#B25A8F", "#B98601", "#2798DA", "#674887", "#753B1F")
DARK = ("#1392FA", "#EE7A36", "#03BBA2", "#FF93B2", "#EEBD18", "#9DDAFD", "#AE9ED2", "#CCD583")
BOUNDS = 12


def _hash(text: str) -> int:
    """FNV-1a: the same on every machine."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def slots(methods: Sequence[tuple[str, bool]], together: Iterable[Iterable[int]]) -> list[int]:
    """The place in the palette of each (label, is a bound). It comes from the method's name, so that it stays from page to
    page and when others join, and moves on only where another method of the same table (``together``: their numbers) has
    it already. Beyond the palette's end colours repeat, with other dashes and symbols."""
    beside: list[set[int]] = [set() for _ in methods]
    for members in together:
        group = set(members)
        for i in group:
            beside[i] |= group
    taken: list[int] = []
    for i, (label, bound) in enumerate(methods):
        used = {taken[j] for j in beside[i] if j < i and methods[j][1] == bound}
        count = BOUNDS if bound else len(LIGHT)
        first, step = _hash(re.split(r"[ (]", label)[0]) % count, 0
        while (slot := (first + step) % count + count * (step // count)) in used:
            step += 1
        taken.append(slot)
    return taken


def short_names(labels: Sequence[str]) -> list[str]:
    """Labels without their arguments where that keeps them apart."""
    plain = [re.split(r" ?\(", label)[0] for label in labels]
    return [short if plain.count(short) == 1 else label for short, label in zip(plain, labels, strict=True)]
