"""The published strength of every corruption, number by number, from the scripts that made CIFAR-10-C and ImageNet-C."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from cl_bench.corruptions.parameters import EXTRA, NAMES, PARAMETERS, STANDARD

# hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py: one line per corruption, severities 1 to 5. Zoom blur is given as
# the end and the step of its range, elastic transform in shares of the image's side, the last number of spatter as mud or not.
CIFAR = """
gaussian_noise     0.04  0.06  0.08  0.09  0.10
shot_noise         500  250  100  75  50
impulse_noise      0.01  0.02  0.03  0.05  0.07
speckle_noise      0.06  0.1  0.12  0.16  0.2
gaussian_blur      0.4  0.6  0.7  0.8  1
glass_blur         (0.05,1,1)  (0.25,1,1)  (0.4,1,1)  (0.25,1,2)  (0.4,1,2)
defocus_blur       (0.3,0.4)  (0.4,0.5)  (0.5,0.6)  (1,0.2)  (1.5,0.1)
motion_blur        (6,1)  (6,1.5)  (6,2)  (8,2)  (9,2.5)
zoom_blur          (1.06,0.01)  (1.11,0.01)  (1.16,0.01)  (1.21,0.01)  (1.26,0.01)
fog                (0.2,3)  (0.5,3)  (0.75,2.5)  (1,2)  (1.5,1.75)
frost              (1,0.2)  (1,0.3)  (0.9,0.4)  (0.85,0.4)  (0.75,0.45)
snow               (0.1,0.2,1,0.6,8,3,0.95)  (0.1,0.2,1,0.5,10,4,0.9)  (0.15,0.3,1.75,0.55,10,4,0.9)  (0.25,0.3,2.25,0.6,12,6,0.85)  (0.3,0.3,1.25,0.65,14,12,0.8)
spatter            (0.62,0.1,0.7,0.7,0.5,0)  (0.65,0.1,0.8,0.7,0.5,0)  (0.65,0.3,1,0.69,0.5,0)  (0.65,0.1,0.7,0.69,0.6,1)  (0.65,0.1,0.5,0.68,0.6,1)
contrast           0.75  0.5  0.4  0.3  0.15
brightness         0.05  0.1  0.15  0.2  0.3
saturate           (0.3,0)  (0.1,0)  (1.5,0)  (2,0.1)  (2.5,0.2)
jpeg_compression   80  65  58  50  40
pixelate           0.95  0.9  0.85  0.75  0.65
elastic_transform  (0,0,0.08)  (0.05,0.2,0.07)  (0.08,0.06,0.06)  (0.1,0.04,0.05)  (0.1,0.03,0.03)
"""  # noqa: E501

# make_imagenet_c.py; elastic transform in pixels: the authors' 244 of 224, as they kept it.
IMAGENET = """
gaussian_noise     0.08  0.12  0.18  0.26  0.38
shot_noise         60  25  12  5  3
impulse_noise      0.03  0.06  0.09  0.17  0.27
speckle_noise      0.15  0.2  0.35  0.45  0.6
gaussian_blur      1  2  3  4  6
glass_blur         (0.7,1,2)  (0.9,2,1)  (1,2,3)  (1.1,3,2)  (1.5,4,2)
defocus_blur       (3,0.1)  (4,0.5)  (6,0.5)  (8,0.5)  (10,0.5)
motion_blur        (10,3)  (15,5)  (15,8)  (15,12)  (20,15)
zoom_blur          (1.11,0.01)  (1.16,0.01)  (1.21,0.02)  (1.26,0.02)  (1.31,0.03)
fog                (1.5,2)  (2,2)  (2.5,1.7)  (2.5,1.5)  (3,1.4)
frost              (1,0.4)  (0.8,0.6)  (0.7,0.7)  (0.65,0.7)  (0.6,0.75)
snow               (0.1,0.3,3,0.5,10,4,0.8)  (0.2,0.3,2,0.5,12,4,0.7)  (0.55,0.3,4,0.9,12,8,0.7)  (0.55,0.3,4.5,0.85,12,8,0.65)  (0.55,0.3,2.5,0.85,12,12,0.55)
spatter            (0.65,0.3,4,0.69,0.6,0)  (0.65,0.3,3,0.68,0.6,0)  (0.65,0.3,2,0.68,0.5,0)  (0.65,0.3,1,0.65,1.5,1)  (0.67,0.4,1,0.65,1.5,1)
contrast           0.4  0.3  0.2  0.1  0.05
brightness         0.1  0.2  0.3  0.4  0.5
saturate           (0.3,0)  (0.1,0)  (2,0)  (5,0.1)  (20,0.2)
jpeg_compression   25  18  15  10  7
pixelate           0.6  0.5  0.4  0.3  0.25
elastic_transform  (488,170.8,24.4)  (488,19.52,48.8)  (12.2,2.44,4.88)  (17.08,2.44,4.88)  (29.28,2.44,4.88)
"""  # noqa: E501


def published(table: str) -> dict[str, list[Any]]:
    """Name -> five settings."""
    rows = [line.split() for line in table.strip().splitlines()]
    return {name: [ast.literal_eval(v) for v in values] for name, *values in rows}


def numbers(setting: Any) -> list[float]:
    return [float(v) for v in (setting if isinstance(setting, tuple) else (setting,))]


CASES = [(size, name, k) for size, table in (("cifar", CIFAR), ("imagenet", IMAGENET)) for name in published(table)
         for k in range(5)]


@pytest.mark.parametrize(("size", "name", "k"), CASES, ids=lambda v: str(v))
def test_a_setting_is_the_published_one(size: str, name: str, k: int) -> None:
    wanted = numbers(published(CIFAR if size == "cifar" else IMAGENET)[name][k])
    side = 224 if (size, name) == ("imagenet", "elastic_transform") else 1
    assert numbers(PARAMETERS[size][name][k]) == pytest.approx([v / side for v in wanted], rel=1e-12)


def test_every_corruption_has_five_published_settings_in_both_sizes() -> None:
    for size, table in (("cifar", CIFAR), ("imagenet", IMAGENET)):
        assert set(PARAMETERS[size]) == set(published(table)) == set(NAMES) == {*STANDARD, *EXTRA}
        assert all(len(v) == 5 for v in PARAMETERS[size].values())
