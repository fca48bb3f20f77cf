"""Characters rendered from the fonts that matplotlib ships: an unlimited, deterministic image source.

Every character of every font is drawn once into an atlas of signed distances to its outline (Green, "Improved
alpha-tested magnification for vector textures and special effects", SIGGRAPH 2007) and, beside it, of distances to
its skeleton (thinning of Zhang and Suen, CACM 1984). A distance makes variation cheap on whole batches of tensors:
stroke width is an offset, blur is a softness, and a skeleton drawn with a chosen width looks more like a pen than
like print.

Ink is bright on a dark ground, as in the handwritten digits of `cl_bench.data.digits`.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .tensor import TensorData

LETTERS: tuple[str, ...] = tuple(string.ascii_uppercase + string.ascii_lowercase)
DIGITS: tuple[str, ...] = tuple(string.digits)
PUNCTUATION: tuple[str, ...] = tuple("!?&#%@+*$=")

# Held out of every pretraining, one or two from each family, so that "accuracy on unseen fonts" means unseen fonts.
HELD_OUT_FONTS: tuple[str, ...] = (
    "DejaVuSans-BoldOblique",
    "DejaVuSerif-Italic",
    "STIXGeneralBolIta",
    "cmss10",
    "DejaVuSansMono",
    "STIXGeneral:sans-italic",
)
TRAIN_FONTS: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmti10",
    "cmtt10",
    "STIXGeneral:script",
    "STIXGeneral:bold-script",
    "STIXGeneral:sans",
    "STIXGeneral:sans-bold",
    "STIXGeneral:sans-bold-italic",
    "STIXGeneral:monospace",
)
FONTS: tuple[str, ...] = TRAIN_FONTS + HELD_OUT_FONTS

# Unicode keeps further alphabets as "mathematical alphanumeric symbols": (first capital, first digit or None).
_STYLES: dict[str, tuple[int, int | None]] = {
    "script": (0x1D49C, None),
    "bold-script": (0x1D4D0, None),
    "sans": (0x1D5A0, 0x1D7E2),
    "sans-bold": (0x1D5D4, 0x1D7EC),
    "sans-italic": (0x1D608, None),
    "sans-bold-italic": (0x1D63C, None),
    "monospace": (0x1D670, 0x1D7F6),
}
# Script letters that Unicode had assigned earlier, in "letterlike symbols".
_SCRIPT_HOLES = {
    "B": 0x212C,
    "E": 0x2130,
    "F": 0x2131,
    "H": 0x210B,
    "I": 0x2110,
    "L": 0x2112,
    "M": 0x2133,
    "R": 0x211B,
    "e": 0x212F,
    "g": 0x210A,
    "o": 0x2134,
}

_CELL = 64  # atlas cell, pixels
_BODY = 46  # height of a character in its cell; the margin keeps strokes inside after widening
_CHUNK = 256  # images drawn per call of the generator; fixed, so that a longer set begins with the shorter one


@dataclass(frozen=True, slots=True)
class Variation:
    """How far characters vary. Lengths are fractions of the image side unless said otherwise; (low, high) pairs are
    uniform.

    rotation (degrees) and shear are half-widths about zero; elastic is the standard deviation of a smooth
    displacement on a 4 x 4 grid; pen is the share drawn from the skeleton with a stroke of pen_width; low_resolution
    is the share shrunk to 8 x 8 pixels and enlarged again; texture is the amplitude of a smooth background; tint of a
    colour cast.
    """

    rotation: float = 12.0
    shear: float = 0.30
    height: tuple[float, float] = (0.70, 1.0)
    aspect: tuple[float, float] = (0.75, 1.25)
    shift: float = 0.06
    elastic: float = 0.035
    pen: float = 0.5
    pen_width: tuple[float, float] = (0.03, 0.09)
    weight: tuple[float, float] = (-0.012, 0.035)
    softness: tuple[float, float] = (0.02, 0.09)
    low_resolution: float = 0.35
    ink: tuple[float, float] = (0.6, 1.0)
    ground: tuple[float, float] = (0.0, 0.25)
    texture: float = 0.12
    tint: float = 0.08
    noise: tuple[float, float] = (0.0, 0.10)


class Atlas(NamedTuple):
    """Distances in atlas pixels, positive inside the ink, each (fonts, characters, cell, cell)."""

    outline: Tensor
    skeleton: Tensor


def characters(classes: str) -> tuple[str, ...]:
    """The characters of "digits" (10), "letters" (52), "all" (62) or "punctuation" (10); a label is a position in this
    tuple.
    """
    try:
        return {"digits": DIGITS, "letters": LETTERS, "all": DIGITS + LETTERS, "punctuation": PUNCTUATION}[classes]
    except KeyError:
        raise UserError(f'Unknown glyph classes "{classes}": use "letters", "digits", "all" or "punctuation".') from None


def fonts_for(classes: str, fonts: Sequence[str] | None = None) -> tuple[str, ...]:
    """The fonts (all, or the named ones) that hold every character of `classes`."""
    for name in fonts or ():
        if name not in FONTS:
            raise UserError(f'Unknown font "{name}": use some of {", ".join(FONTS)}.')
    needs_digits = set(DIGITS) & set(characters(classes))
    kept = tuple(
        f for f in (fonts or FONTS) if not needs_digits or _STYLES.get(f.partition(":")[2], (0, 0))[1] is not None
    )
    if classes == "punctuation":  # further alphabets have none, and the fonts of TeX keep them elsewhere
        kept = tuple(f for f in kept if ":" not in f and not f.startswith("cm"))
    if not kept:
        raise UserError(
            f'None of the fonts {", ".join(fonts or ())} holds the characters "{classes}": name another font.'
        )
    return kept


def _code_point(character: str, style: str) -> str:
    if not style:
        return character
    capital, digit = _STYLES[style]
    if style == "script" and character in _SCRIPT_HOLES:
        return chr(_SCRIPT_HOLES[character])
    if character in DIGITS:
        assert digit is not None
        return chr(digit + DIGITS.index(character))
    return chr(capital + LETTERS.index(character))


def _draw(character: str, font: str) -> np.ndarray:
    """One character, cut to its ink, scaled to the body height (or to the cell's width if it is broad) and centred:
    float (cell, cell).
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    name, _, style = font.partition(":")
    face = ImageFont.truetype(
        os.path.join(get_data_path(), "fonts", "ttf", f"{name}.ttf"), 96, layout_engine=ImageFont.Layout.BASIC
    )
    page = Image.new("L", (288, 288))
    ImageDraw.Draw(page).text((96, 72), _code_point(character, style), fill=255, font=face)
    ink = page.crop(page.getbbox())
    scale = min(_BODY / ink.height, (_CELL - 10) / ink.width)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS)
    cell = Image.new("L", (_CELL, _CELL))
    cell.paste(ink, ((_CELL - ink.width) // 2, (_CELL - ink.height) // 2))
    return np.asarray(cell, dtype=np.float32) / 255.0


def _thin(ink: np.ndarray) -> np.ndarray:
    """Skeletons of a stack of binary images (N, H, W) by the two-pass thinning of Zhang and Suen (1984)."""
    image = np.pad(ink.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    codes = np.arange(256)
    bits = (codes[:, None] >> np.arange(8)) & 1  # p2 .. p9, clockwise from north
    count, turns = bits.sum(1), ((bits == 0) & (np.roll(bits, -1, 1) == 1)).sum(1)
    usual = (count >= 2) & (count <= 6) & (turns == 1)
    n, e, s, w = bits[:, 0], bits[:, 2], bits[:, 4], bits[:, 6]
    passes = (usual & (n * e * s == 0) & (e * s * w == 0), usual & (n * e * w == 0) & (n * s * w == 0))
    around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    height, width = ink.shape[1:]
    changed = True
    while changed:
        changed = False
        for removable in passes:
            code = np.zeros(ink.shape, dtype=np.uint8)
            for bit, (dy, dx) in enumerate(around):
                code |= image[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] << bit
            gone = removable[code] & (image[:, 1:-1, 1:-1] == 1)
            image[:, 1:-1, 1:-1][gone] = 0
            changed |= bool(gone.any())
    return image[:, 1:-1, 1:-1].astype(bool)


@lru_cache(maxsize=8)
def atlas(classes: str, fonts: tuple[str, ...]) -> Atlas:
    """The atlas of these characters and fonts; about 3 ms per character of a font, kept for the process."""
    from scipy.ndimage import distance_transform_edt

    shape = (len(fonts), len(characters(classes)), _CELL, _CELL)
    grey = np.stack([_draw(c, f) for f in fonts for c in characters(classes)])
    ink = grey > 0.5
    outline = np.empty_like(grey)
    for i, drawn in enumerate(ink):
        outside, inside = distance_transform_edt(~drawn), distance_transform_edt(drawn)
        # Distances count to pixel centres: half a pixel brings the zero to the edge, the grey value refines it.
        outline[i] = np.where(drawn, inside - 0.5, 0.5 - outside)
    edge = (grey > 0.02) & (grey < 0.98) & (np.abs(outline) < 1)
    outline[edge] = grey[edge] - 0.5
    skeleton = np.stack([-distance_transform_edt(~line) for line in _thin(ink)])
    return Atlas(torch.from_numpy(outline).reshape(shape), torch.from_numpy(skeleton.astype(np.float32)).reshape(shape))


def glyph_batches(
    batch: int,
    *,
    classes: str = "letters",
    size: int = 32,
    seed: int | torch.Generator = 0,
    fonts: Sequence[str] | None = None,
    variation: Variation | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (x float32 (batch, 3, size, size) in [0, 1], y int64 (batch,)); the seed decides all of them."""
    chosen = fonts_for(classes, fonts)
    table = atlas(classes, chosen)
    rng = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    while True:
        y = torch.randint(len(characters(classes)), (batch,), generator=rng)
        font = torch.randint(len(chosen), (batch,), generator=rng)
        yield render(table, font, y, size, rng, variation or Variation()), y


def glyphs(
    n: int,
    *,
    classes: str = "letters",
    size: int = 32,
    seed: int = 0,
    fonts: Sequence[str] | None = None,
    variation: Variation | None = None,
) -> TensorData:
    """n characters as uint8 (n, 3, size, size); label = position in `characters(classes)`.

    The same seed gives the same images, and a longer set begins with the shorter one. `fonts` names some of `FONTS`
    (for example `HELD_OUT_FONTS`); fonts without digits are left out when digits are asked for. Unknown names raise
    `UserError`.
    """
    if n < 1 or size < 8:
        raise UserError(f"glyphs needs n >= 1 and size >= 8, got n={n} and size={size}.")
    stream = glyph_batches(_CHUNK, classes=classes, size=size, seed=seed, fonts=fonts, variation=variation)
    chunks = [
        (x.mul(255.0).round_().to(torch.uint8), y) for (x, y), _ in zip(stream, range(-(-n // _CHUNK)), strict=False)
    ]
    return TensorData(torch.cat([x for x, _ in chunks])[:n].clone(), torch.cat([y for _, y in chunks])[:n].clone())


def render(table: Atlas, font: Tensor, label: Tensor, size: int, rng: torch.Generator, how: Variation) -> Tensor:
    """Draw the characters (font[i], label[i]) with random variation: float32 (N, 3, size, size) in [0, 1]."""
    count = len(label)
    ink_at = coverage(table, font, label, size, rng, how)
    cast = torch.randn(count, 3, 1, 1, generator=rng) * how.tint
    pattern = F.interpolate(
        torch.rand(count, 1, 3, 3, generator=rng), size=(size, size), mode="bicubic", align_corners=True
    )
    behind = _uniform(rng, count, how.ground) + _uniform(rng, count, (0.0, how.texture)) * pattern
    ink = _uniform(rng, count, how.ink) + cast
    noise = torch.randn(count, 3, size, size, generator=rng) * _uniform(rng, count, how.noise)
    return (behind + ink_at * (ink - behind) + noise).clamp_(0.0, 1.0)


def coverage(
    table: Atlas,
    font: Tensor,
    label: Tensor,
    size: int,
    rng: torch.Generator,
    how: Variation,
    turn: Tensor | None = None,
    scale: Tensor | None = None,
    pen: Tensor | None = None,
) -> Tensor:
    """How much of each pixel is ink: float32 (N, 1, size, size) in [0, 1].

    `turn` (degrees) and `scale` (N,) are added to the drawn rotation and multiply the drawn height; `pen` (N,) bool says
    who is drawn from the skeleton in place of a draw by `how.pen`.
    """
    count = len(label)

    # Where each output pixel looks in the atlas cell: affine map of the output grid, plus a smooth displacement.
    degrees = _uniform(rng, count, (-how.rotation, how.rotation), 1)
    angle = (degrees if turn is None else degrees + turn[:, None]).deg2rad()
    slant, height = _uniform(rng, count, (-how.shear, how.shear), 1), _uniform(rng, count, how.height, 1)
    aspect = _uniform(rng, count, how.aspect, 1)
    height = height if scale is None else height * scale[:, None]
    body = _BODY / _CELL
    up, across = body / height, body / (height * aspect)
    cos, sin = angle.cos(), angle.sin()
    moved = _uniform(rng, count, (-2 * how.shift, 2 * how.shift), 2)
    affine = torch.stack(
        [
            torch.cat([across * (cos + slant * sin), across * (slant * cos - sin), moved[:, :1]], 1),
            torch.cat([up * sin, up * cos, moved[:, 1:]], 1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [count, 1, size, size], align_corners=False)
    bend = torch.randn(count, 2, 4, 4, generator=rng) * (2 * how.elastic)
    grid = grid + F.interpolate(bend, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)

    by_pen = _chance(rng, count, how.pen) if pen is None else pen.view(-1, 1, 1, 1)
    cells = torch.where(by_pen, table.skeleton[font, label][:, None], table.outline[font, label][:, None])
    distance = F.grid_sample(cells, grid, padding_mode="border", align_corners=False) / _CELL
    reach = torch.where(by_pen, _uniform(rng, count, how.pen_width), _uniform(rng, count, how.weight))
    ink = (0.5 + (distance + reach) / _uniform(rng, count, how.softness).clamp_min(1.0 / size)).clamp(0.0, 1.0)

    small = F.interpolate(F.adaptive_avg_pool2d(ink, 8), size=(size, size), mode="bicubic", align_corners=False)
    return torch.where(_chance(rng, count, how.low_resolution), small.clamp(0.0, 1.0), ink)


def _uniform(rng: torch.Generator, count: int, pair: tuple[float, float], *shape: int) -> Tensor:
    return torch.empty(count, *(shape or (1, 1, 1))).uniform_(*pair, generator=rng)


def _chance(rng: torch.Generator, count: int, share: float) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=rng) < share
