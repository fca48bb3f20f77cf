"""Colours by name, far enough apart for every kind of eye."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cl_bench.compare.style import DARK, LIGHT, short_names, slots

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
BLIND = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]])}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(p: np.ndarray, q: np.ndarray) -> float:
    """Sharma, Wu & Dalal 2005."""
    (l1, a1, b1), (l2, a2, b2) = p, q
    c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(c ** 7 / (c ** 7 + 25 ** 7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    dh = (h2 - h1 + 180) % 360 - 180
    dl, dc, dh_ = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2))
    lm, cm = (l1 + l2) / 2, (c1 + c2) / 2
    hm = (h1 + h2) / 2 if abs(h1 - h2) <= 180 else (h1 + h2 + 360) / 2 if h1 + h2 < 360 else (h1 + h2 - 360) / 2
    t = (1 - 0.17 * np.cos(np.radians(hm - 30)) + 0.24 * np.cos(np.radians(2 * hm)) + 0.32 * np.cos(np.radians(3 * hm + 6))
         - 0.2 * np.cos(np.radians(4 * hm - 63)))
    sl, sc, sh = 1 + 0.015 * (lm - 50) ** 2 / np.sqrt(20 + (lm - 50) ** 2), 1 + 0.045 * cm, 1 + 0.015 * cm * t
    turn = -np.sin(np.radians(60 * np.exp(-((hm - 275) / 25) ** 2))) * 2 * np.sqrt(cm ** 7 / (cm ** 7 + 25 ** 7))
    return float(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh_ / sh) ** 2 + turn * (dc / sc) * (dh_ / sh)))


def test_the_distance_is_the_published_one():
    assert ciede2000(np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])) == pytest.approx(2.0425, abs=1e-4)
    assert ciede2000(np.array([50, 2.5, 0]), np.array([58, 24, 15])) == pytest.approx(19.4535, abs=1e-4)


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_the_first_eight_colours_are_ten_apart(palette, kind):
    assert len(palette) >= 8
    seen = [lab(BLIND[kind] @ linear(color)) for color in palette[:8]]
    assert min(ciede2000(p, q) for p, q in itertools.combinations(seen, 2)) >= 10


@pytest.mark.parametrize("palette,ground", [(LIGHT, "#ffffff"), (DARK, "#13171b")], ids=["light", "dark"])
def test_lines_stand_out_from_the_ground(palette, ground):
    def luminance(color: str) -> float:
        return float(XYZ[1] @ linear(color))

    for color in palette:
        low, high = sorted((luminance(color), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_a_place_comes_from_the_name_and_moves_only_for_a_neighbour():
    alone = slots([("lora", False)], [[0]])[0]
    many = [(name, False) for name in ("aaa", "ewc", "lora", "osft", "tent")]
    apart = slots(many, [[k] for k in range(5)])
    assert apart[2] == alone, "others change nothing where they share no table"
    together = slots(many, [range(5)])
    assert len(set(together)) == 5
    assert slots([("lora(lr=0.1)", False)], [[0]])[0] == alone, "arguments are not the name"
    crowd = slots([(f"m{k}", False) for k in range(30)], [range(30)])
    assert len(set(crowd)) == 30 and max(crowd) < 32, "colours repeat only when all are taken"


def test_short_names_keep_methods_apart():
    assert short_names(["lora(lr=1)", "ncm"]) == ["lora", "ncm"]
    assert short_names(["lora(lr=1)", "lora(lr=2)"]) == ["lora(lr=1)", "lora(lr=2)"]
