"""The data that is there without a download: rendered glyphs and handwritten digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_bench.data import glyphs as module
from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.data.glyphs import (
    DIGITS,
    FONTS,
    HELD_OUT_FONTS,
    LETTERS,
    TRAIN_FONTS,
    Variation,
    characters,
    fonts_for,
    glyph_batches,
    glyphs,
)
from cl_bench.errors import UserError

FEW = ("DejaVuSans", "cmr10")
STILL = Variation(
    rotation=0, shear=0, height=(0.8, 0.8), aspect=(1, 1), shift=0, elastic=0, pen=0, weight=(0, 0), softness=(0.03, 0.03),
    low_resolution=0, ink=(1, 1), ground=(0, 0), texture=0, tint=0, noise=(0, 0),
)  # fmt: skip


def test_glyphs_are_decided_by_their_seed_and_a_longer_set_begins_with_the_shorter():
    a, b = glyphs(300, seed=3, fonts=FEW), glyphs(40, seed=3, fonts=FEW)
    assert a.x.shape == (300, 3, 32, 32) and a.x.dtype == torch.uint8 and a.y.dtype == torch.int64
    assert torch.equal(a.x[:40], b.x) and torch.equal(a.y[:40], b.y)
    assert not torch.equal(glyphs(40, seed=4, fonts=FEW).x, b.x)
    assert glyphs(8, size=16, fonts=FEW).x.shape == (8, 3, 16, 16)


def test_glyphs_leave_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    glyphs(10, fonts=FEW)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


def test_labels_cover_the_characters_asked_for():
    assert characters("all") == DIGITS + LETTERS and len(characters("all")) == 62
    for classes, count in (("digits", 10), ("letters", 52), ("all", 62)):
        assert set(glyphs(1500, classes=classes, size=8, fonts=FEW).y.tolist()) == set(range(count))


def test_a_label_means_its_character():
    """Without variation an image is its atlas cell: I is narrower than W, O is hollow, and 1 in "all" is drawn as in
    "digits".
    """
    data = glyphs(256, seed=0, fonts=("DejaVuSans",), variation=STILL)

    def picture(character: str) -> torch.Tensor:
        return data.x[data.y == LETTERS.index(character)][0, 0].float() / 255

    def width(image: torch.Tensor) -> int:
        return int((image.amax(0) > 0.5).sum())

    assert width(picture("I")) * 2 < width(picture("W"))
    assert picture("O")[16, 16] < 0.1 < 0.9 < picture("O").amax()
    first = {
        c: next(x for x, y in zip(d.x, d.y.tolist(), strict=True) if characters(c)[y] == "1")
        for c in ("digits", "all")
        for d in [glyphs(512, classes=c, fonts=("DejaVuSans",), variation=STILL)]
    }
    assert torch.equal(first["digits"], first["all"])


def test_every_font_draws_every_character_differently():
    """A font without a character draws the same box for all that it lacks."""
    for font in FONTS:
        chars = characters("all") if font in fonts_for("all") else LETTERS
        drawn = {module._draw(c, font).tobytes() for c in chars}
        # Scaled to one height some pairs of capital and small letter are the same outline (in sans: o, s, v, w, x, z).
        assert len(drawn) > 0.85 * len(chars), font
        assert all(module._draw(c, font).max() > 0.9 for c in "AgZ"), font


def test_held_out_fonts_are_held_out():
    assert not set(TRAIN_FONTS) & set(HELD_OUT_FONTS)
    assert set(FONTS) == set(TRAIN_FONTS) | set(HELD_OUT_FONTS)


def test_fonts_without_digits_are_left_out_only_where_digits_are_asked_for():
    assert "STIXGeneral:script" in fonts_for("letters")
    assert "STIXGeneral:script" not in fonts_for("digits") and "DejaVuSans" in fonts_for("digits")
    with pytest.raises(UserError, match="holds the characters"):
        fonts_for("digits", ["STIXGeneral:script"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n": 4, "classes": "greek"}, "greek"), ({"n": 4, "fonts": ["Comic"]}, "Comic"), ({"n": 0}, "n >= 1")],
)
def test_wrong_arguments_say_what_to_do(arguments, message):
    with pytest.raises(UserError, match=message):
        glyphs(**arguments)


def test_a_broader_pen_leaves_more_ink():
    ink = []
    for width in (0.03, 0.06, 0.09):
        how = Variation(pen=1.0, pen_width=(width, width))
        x, _ = next(glyph_batches(64, fonts=FEW, variation=how, seed=1))
        ink.append(float(x.mean()))
    assert ink[0] < ink[1] < ink[2]


def test_a_skeleton_is_thin_and_lies_in_the_ink():
    ink = np.stack([module._draw(c, "DejaVuSans-Bold") > 0.5 for c in "AOgx"])
    lines = module._thin(ink)
    assert not (lines & ~ink).any() and lines.any((1, 2)).all()
    blocks = lines[:, :-1, :-1] & lines[:, 1:, :-1] & lines[:, :-1, 1:] & lines[:, 1:, 1:]
    assert blocks.sum() <= 4, "a skeleton holds 2 x 2 blocks at crossings at most"


def test_ink_is_bright_in_glyphs_and_in_digits():
    edge = torch.ones(32, 32, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    for data in (glyphs(256, fonts=FEW), digits("test")):
        assert data.x.float()[..., ~edge].mean() > 1.3 * data.x.float()[..., edge].mean()


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1438, 359) and len(DIGIT_NAMES) == 10
    share = test.y.bincount() / (train.y.bincount() + test.y.bincount())
    assert share.min() > 0.19 and share.max() < 0.21
    assert sorted(torch.cat([train.y, test.y]).tolist()) == sorted(load_digits().target.tolist())
    rows = {x.numpy().tobytes() for x in torch.cat([train.x, test.x])}
    assert len(rows) == 1797, "an image is in both parts, or twice in one"
    assert train.x.shape[1:] == (3, 32, 32) and torch.equal(train.x[:, 0], train.x[:, 2])
    assert digits("test").digest() == test.digest()
    with pytest.raises(UserError, match="valid"):
        digits("valid")


def test_the_split_and_the_pixels_of_the_digits_do_not_change():
    """Numbers of earlier runs hold for these bytes; a change here must raise the protocol version."""
    assert digits("train").digest() == "4b4d1dc4ae9e4aae"
    assert digits("test").digest() == "32c62036f88205bb"


def test_the_digits_are_those_of_scikit_learn() -> None:
    """Its file is read without the package; the package says what is in it."""
    from sklearn.datasets import load_digits

    from cl_bench.data import digits as module

    x, y = load_digits(return_X_y=True)
    table = module._table()
    assert (table[:, :-1] == x).all() and (table[:, -1] == y).all() and table.shape == (1797, 65)
