"""Descriptions of classes from a file of the user's, their key words, and pieces of them that a text tower can read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cl_bench import UserError
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.data.files import existing_file

Told = Mapping[str, tuple[str, tuple[str, ...]]]  # class -> its description, and its key words, the best first

HOW = 'a JSON object of classes by name, each a description or {"description": "...", "keywords": ["...", ...]}'


def read_descriptions(path: str) -> Told:
    """Descriptions and key words by class. Where a class has no ``keywords``, they are found (:func:`key_words`).

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        held = json.loads(existing_file(path, f"it should hold {HOW}.").read_text(encoding="utf-8"))
    except ValueError as fault:
        raise UserError(f'"{path}" is no file of descriptions: it should hold {HOW}.') from fault
    if not (isinstance(held, dict) and held):
        raise UserError(f'"{path}" is no file of descriptions: it should hold {HOW}.')
    entries = {name: value if isinstance(value, dict) else {"description": value} for name, value in held.items()}
    for name, entry in entries.items():
        if odd := sorted(entry.keys() - {"description", "keywords"}):
            raise UserError(f'"{path}" says "{odd[0]}" of "{name}": it should hold {HOW}.')
        if not _said(entry.get("description")):
            raise UserError(f'"{path}" has no description of "{name}": it should hold {HOW}.')
        given = entry.get("keywords", [])
        if not (isinstance(given, list) and all(map(_said, given))):
            raise UserError(f'"{path}" has the key words of "{name}" in another form: it should hold {HOW}.')
    found = key_words({name: entry["description"] for name, entry in entries.items()})
    return {n: (e["description"], tuple(e["keywords"]) if "keywords" in e else found[n]) for n, e in entries.items()}


def _said(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def key_words(descriptions: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The words of each description, those first that tell it from the others: by TF-IDF as scikit-learn's TfidfVectorizer
    has it, a word's count times ``ln((1 + n) / (1 + df)) + 1`` where ``df`` of ``n`` descriptions have it, and of equal ones
    those that come first. Left out are single letters, scikit-learn's English stop words and the words of the name."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    def words(text: str) -> list[str]:
        return re.findall(r"\b\w\w+\b", text.lower().replace("_", " "))

    counts = {n: Counter(w for w in words(d) if w not in ENGLISH_STOP_WORDS) for n, d in descriptions.items()}
    having = Counter(w for c in counts.values() for w in c)
    score = {w: math.log((1 + len(counts)) / (1 + df)) + 1 for w, df in having.items()}
    kept = {n: [w for w in c if w not in words(n)] for n, c in counts.items()}
    return {n: tuple(sorted(kept[n], key=lambda w: -c[w] * score[w])) for n, c in counts.items()}


def pieces(backbone: VisionLanguageBackbone, text: str) -> list[str]:
    """The whole of a text in parts that the text tower can read: halved between words, or inside of one that is too long by
    itself, until every part fits."""
    text = text.strip()
    if backbone.token_count(text) <= backbone.context_length or len(text) < 2:
        return [text] if text else []
    middle = len(text) // 2
    cut = next((k for k in (text.rfind(" ", 0, middle + 1), text.find(" ", middle)) if k > 0), middle)
    return [*pieces(backbone, text[:cut]), *pieces(backbone, text[cut:])]
