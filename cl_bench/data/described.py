"""Rendered characters and textures with sentences that say what they show: pairs for contrastive learning, and labels
of many kinds (character, case, font family, colour, ground, size, rotation) for the same images.

Every image has one value per attribute; a sentence claims some of them and is silent about the rest. Whether a sentence
is true of an image is thus known exactly, for all pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .digits import DIGIT_NAMES
from .glyphs import LETTERS, TRAIN_FONTS, Variation, atlas, coverage, fonts_for
from .tensor import TensorData

MARKS: tuple[str, ...] = (
    "exclamation mark", "question mark", "ampersand", "number sign", "percent sign", "at sign", "plus sign", "asterisk",
    "dollar sign", "equals sign",
)  # fmt: skip
TEXTURES: tuple[str, ...] = (
    "horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard", "dots", "rings", "waves", "speckles",
)  # fmt: skip
COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.95), "black": (0.04, 0.04, 0.04), "grey": (0.5, 0.5, 0.5), "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.15), "blue": (0.12, 0.2, 0.85), "yellow": (0.95, 0.9, 0.1), "purple": (0.6, 0.1, 0.7),
    "orange": (0.95, 0.5, 0.05), "cyan": (0.1, 0.8, 0.85),
}  # fmt: skip
FAMILIES: tuple[str, ...] = ("sans", "serif", "typewriter", "script", "pen")
SIZES: tuple[str, ...] = ("big", "tiny")
TURNS: tuple[str, ...] = ("upright", "tilted left", "tilted right")
ATTRIBUTES: tuple[str, ...] = ("thing", "letter", "case", "family", "colour", "ground", "size", "turn", "kind")
KINDS: tuple[str, ...] = ("letter", "digit", "mark", "texture")

_FIRST = {"letter": 0, "digit": len(LETTERS), "mark": len(LETTERS) + 10, "texture": len(LETTERS) + 20}
_HEIGHT, _TILT = (1.0, 0.6), (0.0, 28.0, -28.0)  # of the sizes (times the drawn height) and turns (degrees)


def letter_name(letter: str) -> str:
    """ "capital letter a" or "small letter a"."""
    return f"{'capital' if letter.isupper() else 'small'} letter {letter.lower()}"


THINGS: tuple[str, ...] = (
    *(letter_name(c) for c in LETTERS), *(f"digit {n}" for n in DIGIT_NAMES), *MARKS, *TEXTURES,
)  # fmt: skip


def family_of(font: str) -> int:
    """Position in `FAMILIES` of a font of matplotlib."""
    if "script" in font:
        return 3
    if "Mono" in font or "monospace" in font or font == "cmtt10":
        return 2
    return 0 if font.startswith("DejaVuSans") or ":sans" in font or font == "cmss10" else 1


@dataclass(frozen=True, slots=True)
class Look:
    """What images are drawn of. kinds: some of `KINDS`, each as likely as its share says; fonts: some of the fonts of
    `glyphs`; inks and grounds: some of `COLOURS`; plain: the share that is light on black; how: the glyphs' variation.
    """

    kinds: tuple[str, ...] = KINDS
    shares: tuple[float, ...] = (0.5, 0.2, 0.15, 0.15)
    fonts: tuple[str, ...] = TRAIN_FONTS
    inks: tuple[str, ...] = tuple(COLOURS)
    grounds: tuple[str, ...] = tuple(COLOURS)
    plain: float = 0.3
    how: Variation = Variation(rotation=8.0, shear=0.25, height=(0.85, 1.0))  # noqa: RUF009 - frozen
    jitter: float = 0.07  # of ink and ground, standard deviation per channel
    noise: tuple[float, float] = (0.0, 0.08)
    texture: tuple[float, float] = (2.0, 5.0)  # periods across the image


def described(count: int, rng: torch.Generator, look: Look | None = None, size: int = 32) -> tuple[Tensor, Tensor]:
    """Images float32 (count, 3, size, size) in [0, 1] and their attributes int64 (count, len(ATTRIBUTES)), -1 = none."""
    look = look or Look()
    kind = torch.multinomial(torch.tensor(look.shares[: len(look.kinds)]), count, replacement=True, generator=rng)
    kind = torch.tensor([KINDS.index(k) for k in look.kinds])[kind]
    facts = torch.full((count, len(ATTRIBUTES)), -1)
    facts[:, 8] = kind
    cover = torch.zeros(count, 1, size, size)
    for number, name in enumerate(KINDS):
        at = torch.nonzero(kind == number).flatten()
        if len(at):
            made = _textures(len(at), rng, look, size) if name == "texture" else _characters(name, len(at), rng, look, size)
            cover[at], facts[at, :9] = made[0], torch.where(made[1] >= 0, made[1], facts[at])
    paint = torch.tensor(list(COLOURS.values()))
    names = list(COLOURS)
    inks, grounds = (torch.tensor([names.index(n) for n in some]) for some in (look.inks, look.grounds))
    ink = inks[torch.randint(len(inks), (count,), generator=rng)]
    ground = grounds[torch.randint(len(grounds), (count,), generator=rng)]
    plain = torch.rand(count, generator=rng) < look.plain
    ground = torch.where(plain, names.index("black"), ground)
    ink = torch.where(plain & (torch.rand(count, generator=rng) < 0.5), names.index("white"), ink)
    ground = torch.where(ink == ground, (ground + 1) % len(names), ground)  # what cannot be seen cannot be described
    facts[:, 4], facts[:, 5] = ink, ground
    both = torch.stack([paint[ink], paint[ground]])
    both = (both + torch.randn(2, count, 3, generator=rng) * look.jitter).clamp(0, 1)[..., None, None]
    light = torch.empty(count, 1, 1, 1).uniform_(0.75, 1.0, generator=rng)
    noise = torch.randn(count, 3, size, size, generator=rng) * torch.empty(count, 1, 1, 1).uniform_(
        *look.noise, generator=rng
    )
    return (light * (both[1] + cover * (both[0] - both[1])) + noise).clamp_(0, 1), facts


def described_data(
    count: int, seed: int, attribute: str, look: Look | None = None, size: int = 32
) -> tuple[TensorData, Tensor]:
    """`described` as uint8 data whose labels are one attribute, and all attributes; the seed decides both."""
    x, facts = described(count, torch.Generator().manual_seed(seed), look, size)
    return TensorData(x.mul(255).round_().to(torch.uint8), facts[:, ATTRIBUTES.index(attribute)]), facts


def _characters(kind: str, count: int, rng: torch.Generator, look: Look, size: int) -> tuple[Tensor, Tensor]:
    classes = {"letter": "letters", "digit": "digits", "mark": "punctuation"}[kind]
    fonts = fonts_for(classes, look.fonts)
    label = torch.randint({"letter": 52, "digit": 10, "mark": 10}[kind], (count,), generator=rng)
    font = torch.randint(len(fonts), (count,), generator=rng)
    pen = torch.rand(count, generator=rng) < look.how.pen
    big, turn = (torch.randint(n, (count,), generator=rng) for n in (2, 3))
    family = torch.where(pen, 4, torch.tensor([family_of(f) for f in fonts])[font])
    facts = torch.full((count, len(ATTRIBUTES)), -1)
    facts[:, 0] = label + _FIRST[kind]
    if kind == "letter":
        facts[:, 1], facts[:, 2] = label % 26, label // 26
    facts[:, 3], facts[:, 6], facts[:, 7] = family, big, turn
    cover = coverage(atlas(classes, fonts), font, label, size, rng, look.how, turn=torch.tensor(_TILT)[turn],
                     scale=torch.tensor(_HEIGHT)[big], pen=pen)  # fmt: skip
    return cover, facts


def _textures(count: int, rng: torch.Generator, look: Look, size: int) -> tuple[Tensor, Tensor]:
    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1).uniform_(low, high, generator=rng)

    which = torch.randint(len(TEXTURES), (count,), generator=rng)
    line = torch.linspace(0, 1, size)
    y, x = (axis.expand(count, size, size) for axis in torch.meshgrid(line, line, indexing="ij"))
    periods, phase, lean = drawn(*look.texture), drawn(0, 2 * math.pi), drawn(-0.15, 0.15)
    turned, wave = 2 * math.pi * periods, drawn(0.08, 0.2)
    side = torch.where(torch.rand(count, 1, 1, generator=rng) < 0.5, 1.0, -1.0)
    radius = ((x - drawn(0.35, 0.65)) ** 2 + (y - drawn(0.35, 0.65)) ** 2).sqrt()
    grain = torch.nn.functional.interpolate(torch.randn(count, 1, size // 2, size // 2, generator=rng), scale_factor=2)[:, 0]
    fields = torch.stack([
        torch.sin(turned * (y + lean * x) + phase), torch.sin(turned * (x + lean * y) + phase),
        torch.sin(turned * (x + side * (1 + lean) * y) / math.sqrt(2) + phase),
        torch.sin(turned * x + phase) * torch.sin(turned * y + phase),
        torch.cos(turned * x + phase) + torch.cos(turned * y + phase) - 0.9,
        torch.sin(2 * turned * radius + phase),
        torch.sin(turned * (y + wave * torch.sin(4 * math.pi * x + phase)) + phase), grain,
    ])  # fmt: skip
    field = fields[which, torch.arange(count)]
    facts = torch.full((count, len(ATTRIBUTES)), -1)
    facts[:, 0] = which + _FIRST["texture"]
    return (0.5 + 3 * field).clamp(0, 1)[:, None], facts


# ------------------------------------------------------------------------------------------------------- sentences
def sentences(facts: Tensor, rng: torch.Generator) -> tuple[list[str], Tensor]:
    """One sentence per image, about a random part of its attributes, and what it claims: (N, A), -1 = silent."""
    chance = torch.rand(len(facts), 8, generator=rng).tolist()
    texts, claims = [], torch.full_like(facts, -1)
    for row, (fact, draw) in enumerate(zip(facts.tolist(), chance, strict=True)):
        text, said = _sentence(fact, draw)
        texts.append(text)
        for attribute in said:
            claims[row, attribute] = fact[attribute]
    return texts, claims


def _sentence(fact: Sequence[int], draw: Sequence[float]) -> tuple[str, list[int]]:
    thing, letter, case, family, colour, ground, size, turn, kind = fact
    colours = list(COLOURS)
    said: list[int] = []
    if draw[0] < 0.65:
        noun, said = THINGS[thing], [0]
    elif letter >= 0 and draw[0] < 0.75:
        noun, said = f"letter {'abcdefghijklmnopqrstuvwxyz'[letter]}", [1]
    elif case >= 0 and draw[0] < 0.80:
        noun, said = f"{('capital', 'small')[case]} letter", [2]
    elif draw[0] < 0.88:
        noun, said = KINDS[kind], [8]
    else:
        noun = "thing"
    words = []
    if size >= 0 and draw[1] < 0.25:
        words.append(SIZES[size])
        said.append(6)
    if draw[2] < 0.35 or noun == "thing":
        words.append(colours[colour])
        said.append(4)
    text = " ".join([*words, noun])
    if family >= 0 and draw[3] < 0.25:
        text += " drawn with a pen" if family == 4 else f" in a {FAMILIES[family]} font"
        said.append(3)
    if turn >= 0 and draw[4] < 0.25:
        text += f", {TURNS[turn]}"
        said.append(7)
    if draw[5] < 0.25:
        text += f" on a {colours[ground]} background"
        said.append(5)
    article = "" if noun.endswith(("stripes", "dots", "rings", "waves", "speckles")) and thing >= _FIRST["texture"] else "a "
    starts = ("a photo of {}.", "a picture of {}.", "{}.", "{}")
    return starts[int(draw[6] * len(starts))].format(article + text), said


def true_of(claims: Tensor, facts: Tensor) -> Tensor:
    """(images, sentences) bool: whether each sentence is true of each image."""
    silent = claims[None] < 0
    return (silent | (claims[None] == facts[:, None])).all(-1)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word of the sentences, in a fixed order."""
    words = ("a", "photo", "picture", "of", "thing", "in", "font", "drawn", "with", "pen", "on", "background", "capital",
             "small", "letter")  # fmt: skip
    names = [*THINGS, *COLOURS, *FAMILIES, *SIZES, *TURNS, *KINDS, *"abcdefghijklmnopqrstuvwxyz"]
    return tuple(dict.fromkeys([*words, *(word for name in names for word in name.split())]))


def pairs(batch: int, seed: int, look: Look | None = None) -> Iterator[tuple[Tensor, list[str], Tensor]]:
    """Endless batches of images, sentences, and which sentence is true of which image."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        x, facts = described(batch, rng, look)
        texts, claims = sentences(facts, rng)
        yield x, texts, true_of(claims, facts)
