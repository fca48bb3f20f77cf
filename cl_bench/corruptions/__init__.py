"""Common corruptions of ImageNet-C and CIFAR-10-C, computed in batches on the images' device.

``corrupt(x, "glass_blur", 5, generator=g)`` is the whole interface. Source: Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019); settings from ``hendrycks/robustness``,
in :mod:`cl_bench.corruptions.parameters`. Each image of a batch has its own random draws, as in the original.

What is equal and what is an approximation, against the authors' functions:

- Fed with the authors' random numbers, ``gaussian_noise``, ``glass_blur`` (with its copy in place of a swap),
  ``motion_blur``, ``zoom_blur``, ``snow``, ``fog``, ``defocus_blur``, ``brightness``, ``contrast``,
  ``elastic_transform``, ``pixelate`` and ``jpeg_compression`` give the authors' pixels but for rounding
  (see :mod:`cl_bench.corruptions.replay`). Rounding: float32 in place of float64.
- ``frost`` uses generated textures: **an approximation**, see :mod:`cl_bench.corruptions.frost_texture`. Give
  ``frost_textures`` to use the authors' photographs.
- ``shot_noise`` and ``impulse_noise`` draw from the same distributions in another way.
- Motion blur (also of snow) re-expresses ImageMagick's whole-pixel taps; its 16-bit rounding is not imitated: the result
  is cut to whole steps, as in the reference arrays, at most one step below ImageMagick's.
- The elastic transform's affine map is exact, where OpenCV before version 5 reads at multiples of 1/32 pixel.
- ``spatter`` re-expresses OpenCV's Canny, chamfer distance and equalisation; an image without a drop stays as it
  is, where the original divides by zero.
- ``jpeg_compression`` runs libjpeg on the CPU, whatever the device.
- ImageNet-C's files were stored once more as JPEG (quality 85); here nothing is stored, so that loss is absent.
- For sizes other than 32 and 224 the settings in pixels stay as published and only the elastic transform scales with
  the side; the authors' separate tables for 64 x 64 and 299 x 299 are not used.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from . import blur, digital, noise, weather
from .frost_texture import pool_for
from .parameters import EXTRA, NAMES, PARAMETERS, STANDARD
from .spatter import spatter
from .tools import Draws, floor_steps

__all__ = ["EXTRA", "NAMES", "STANDARD", "corrupt"]

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "spatter": spatter,
    "saturate": digital.saturate,
}

#: Images are worked on in parts of at most this many pixels: it bounds memory and keeps a part in the cache.
_PIXELS_PER_PART = 512 * 1024


def _check(x: Tensor, name: str, severity: int, resolution: str | None) -> str:
    if name not in _FUNCTIONS:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(NAMES)}."
        raise UserError(f"There is no corruption '{name}': {hint}")
    if isinstance(severity, bool) or not isinstance(severity, Integral) or not 1 <= severity <= 5:
        raise UserError(f"Severity {severity!r} is not one of 1, 2, 3, 4, 5: choose one of these.")
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < 4:
        raise UserError(f"Corruptions take images of shape (N, 3, H, W), sides of at least 4, not {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise UserError(f"Corruptions take float images in [0, 1], not {x.dtype}: divide uint8 images by 255.")
    if resolution is None:
        return "cifar" if x.shape[2] <= 64 else "imagenet"
    if resolution not in PARAMETERS:
        raise UserError(f"Resolution '{resolution}' is unknown: choose 'cifar', 'imagenet', or leave it out.")
    return resolution


@torch.no_grad()
def corrupt(
    x: Tensor,
    name: str,
    severity: int,
    *,
    generator: torch.Generator,
    resolution: str | None = None,
    frost_textures: str | Path | Sequence[Tensor] | None = None,
) -> Tensor:
    """A batch of images under one corruption.

    Args:
        x: float ``(N, 3, H, W)`` in [0, 1], on any device; taken to the nearest of 256 steps first. Not changed.
        name: one of ``NAMES`` (``STANDARD``, the fifteen of the published tables, and ``EXTRA``).
        severity: 1 to 5.
        generator: source of all random numbers; its device may differ from that of ``x``. Equal states give equal
            results on a CPU. The global generator is neither read nor changed.
        resolution: whose settings: "cifar" (32 x 32) or "imagenet" (224 x 224); None: "cifar" up to a height of 64.
        frost_textures: only for frost: a folder of pictures, or tensors ``(3, h, w)`` of 0 to 255; None: generated.

    Returns:
        float32 ``(N, 3, H, W)`` in [0, 1] on the device of ``x``, whole multiples of 1/255, cut down as the original does.

    Raises:
        UserError: unknown name, severity or resolution; a wrong shape or dtype; unusable frost textures.
    """
    resolution = _check(x, name, severity, resolution)
    function = _FUNCTIONS[name]
    if name == "frost":
        # Small images get the textures reduced to a fifth, as the authors do, lest a crop show a single needle.
        pool = pool_for(frost_textures, 5 if resolution == "cifar" else 1, (x.shape[2], x.shape[3]), x.device)
        function = partial(function, textures=pool)
    setting = PARAMETERS[resolution][name][severity - 1]
    draws = Draws(generator, x.device)
    result = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    step = max(1, _PIXELS_PER_PART // (x.shape[2] * x.shape[3]))
    for start in range(0, len(x), step):
        part = x[start : start + step].to(torch.float32, memory_format=torch.contiguous_format)
        part = part.mul(255.0).round_().clamp_(0.0, 255.0)
        result[start : start + step] = floor_steps(function(part, setting, draws)).div_(255.0)
    return result
