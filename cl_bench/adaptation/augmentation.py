"""CoTTA's test-time augmentation in batches: one draw of parameters per view, any number of views at once.

The original (qinenergy/cotta) applies torchvision transforms to the whole batch, so all images of a view share one
draw; that is kept. Padding, affine warp, centre crop and flip are one resampling here: at these ranges the warp never
reaches beyond the padded border, so sampling with border replication gives the same pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.tensor import sent
from ..rng import Rng

__all__ = ["augment", "draw_augmentations", "pixel_chunk"]

# columns of a draw: five colour factors, the order of the colour operations, geometry, blur, flip
_COLOUR = ("brightness", "contrast", "saturation", "hue", "gamma")
_ANGLE, _SCALE, _X, _Y, _SIGMA, _FLIP = range(10, 16)
_GREY = (0.2989, 0.587, 0.114)


def draw_augmentations(views: int, rng: Rng, size: int, soft: bool = False) -> Tensor:
    """Parameters of ``views`` augmentations of images of side ``size``: float64 (views, 16), on the CPU.

    Drawn on the CPU so that no step waits for a GPU. ``soft`` halves the ranges (CoTTA's option).
    """
    half = 0.5 if soft else 1.0
    u = torch.rand(views, 16, generator=rng.on("cpu"), dtype=torch.float64)
    low = torch.tensor([1 - 0.4 * half, 1 - 0.3 * half, 1 - 0.5 * half, -0.06 * half, 1 - 0.3 * half])
    high = torch.tensor([1 + 0.4 * half, 1 + 0.3 * half, 1 + 0.5 * half, 0.06 * half, 1 + 0.3 * half])
    out = u.clone()
    out[:, :5] = low + (high - low) * u[:, :5]
    out[:, 5:10] = u[:, 5:10].argsort(1).to(out)
    angle, spread = (8.0, 0.05) if soft else (15.0, 0.1)
    out[:, _ANGLE] = (2 * u[:, _ANGLE] - 1) * angle
    out[:, _SCALE] = 1 + (2 * u[:, _SCALE] - 1) * spread
    shift = 2 * size / 16  # a sixteenth of the padded side, in whole pixels as torchvision draws it
    out[:, _X : _Y + 1] = ((2 * u[:, _X : _Y + 1] - 1) * shift).round()
    out[:, _SIGMA] = 0.001 + (0.249 if soft else 0.499) * u[:, _SIGMA]
    out[:, _FLIP] = (u[:, _FLIP] < 0.5).to(out)
    return out


def augment(
    x: Tensor,
    rng: Rng,
    draws: Tensor | None = None,
    *,
    soft: bool = False,
    padding: str = "edge",
    blur: bool = True,
    noise: float = 0.005,
) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] to ``len(draws)`` augmented views of the batch, (views * N, 3, H, W), view by view.

    Args:
        x: the batch.
        rng: draws parameters (where ``draws`` is None: one view) and the additive noise.
        draws: rows of :func:`draw_augmentations`.
        padding: ``edge`` (CoTTA) or ``reflect`` (ROID, CMF).
        blur: Gaussian blur of 5 x 5; off in ROID and CMF.
        noise: standard deviation of additive noise, 0 for none (ROID and CMF).
    """
    if padding not in ("edge", "reflect"):
        raise ValueError(f"padding is 'edge' or 'reflect', not {padding!r}")
    if draws is None:
        draws = draw_augmentations(1, rng, x.shape[-1], soft)
    v = x.clamp(0, 1).unsqueeze(0).repeat(len(draws), 1, 1, 1, 1)
    v = _colour(v, draws)
    v = _warp(v, draws, padding, 2 if blur else 0)
    if blur:
        v = _blur(v, draws[:, _SIGMA])
    if noise > 0:
        v.add_(torch.randn(v.shape, generator=rng.on(v.device), device=v.device, dtype=v.dtype), alpha=noise)
    return v.clamp_(0, 1).flatten(0, 1)


def pixel_chunk(x: Tensor, most: int) -> int:
    """How many views of the batch fit one forward pass: one on a CPU, about 8 million pixels on a GPU."""
    if x.device.type == "cpu":
        return 1
    return max(1, min(most, (1 << 23) // (len(x) * x.shape[-1] * x.shape[-2])))


def _colour(v: Tensor, draws: Tensor) -> Tensor:
    """Colour jitter: every view applies the five operations in its own random order."""
    factors = draws[:, :5].to(v.dtype).to(v.device, non_blocking=True)
    order = draws[:, 5:10].to(torch.int64).tolist()
    for rank in range(5):
        for kind, name in enumerate(_COLOUR):
            rows = [k for k, o in enumerate(order) if o[rank] == kind]
            if not rows:
                continue
            if len(rows) == len(order):
                v = _adjust(v, name, factors[:, kind].view(-1, 1, 1, 1, 1))
            else:
                at = sent(torch.tensor(rows), v.device)
                v[at] = _adjust(v[at], name, factors[at, kind].view(-1, 1, 1, 1, 1))
    return v


def _adjust(v: Tensor, name: str, f: Tensor) -> Tensor:
    """One colour operation on (views, N, 3, H, W), in place where it can be; ``f`` one factor per view."""
    if name == "brightness":
        return v.mul_(f).clamp_(0, 1)
    if name == "gamma":
        return v.clamp_(1e-8, 1).pow_(f)
    if name == "hue":
        return _hue(v, f.squeeze(2))
    if name == "contrast":  # blend with the image's mean grey
        means = v.mean((-2, -1), keepdim=True)
        grey = sum(w * means[:, :, c : c + 1] for c, w in enumerate(_GREY))
    else:
        grey = sum(w * v[:, :, c : c + 1] for c, w in enumerate(_GREY))
    return v.mul_(f).add_((1 - f) * grey).clamp_(0, 1)


def _hue(v: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` (a share of the circle), as torchvision does through HSV.

    Everything is held times the chroma, so that nothing is divided; ``torch.where`` costs twenty additions on a CPU.
    """
    r, g, b = v.unbind(2)
    top = torch.maximum(torch.maximum(r, g), b)
    chroma = top - torch.minimum(torch.minimum(r, g), b)
    most_r, most_g = ((c - top).sign_().add_(1) for c in (r, g))  # 1 where red or green is the largest, else 0
    hue = (r - g).add_(chroma, alpha=4)  # in sixths of the circle; blue, unless green, unless red is the largest
    hue.addcmul_((b - r).add_(chroma, alpha=2).sub_(hue), most_g)
    hue.addcmul_((g - b).sub_(hue), most_r)
    hue.addcmul_(chroma, 6 * shift)
    two, three = 2 * chroma, 3 * chroma
    for channel, offset in enumerate((0, -2, -4)):  # a channel is full within 1 of its hue and gone beyond 2
        away = torch.add(hue, chroma, alpha=offset).abs_().sub_(three).abs_()  # 3 less the distance on the circle
        torch.sub(top, torch.minimum((two - away).clamp_(min=0), chroma), out=v[:, :, channel])
    return v


def _warp(v: Tensor, draws: Tensor, padding: str, margin: int) -> Tensor:
    """Pad, affine, centre crop (leaving ``margin`` pixels for the blur) and flip as one bilinear resampling."""
    views, n, _, height, width = v.shape
    d = draws.to(torch.float32)
    angle = d[:, _ANGLE] * (math.pi / 180)
    cos, sin = (angle.cos() / d[:, _SCALE]).view(-1, 1, 1), (angle.sin() / d[:, _SCALE]).view(-1, 1, 1)
    side = 1 - 2 * d[:, _FLIP].view(-1, 1, 1)
    ys = torch.arange(-margin, height + margin, dtype=torch.float32) - (height - 1) / 2
    xs = torch.arange(-margin, width + margin, dtype=torch.float32) - (width - 1) / 2
    out_y = ys.view(1, -1, 1) - d[:, _Y].view(-1, 1, 1)
    out_x = xs.view(1, 1, -1) * side - d[:, _X].view(-1, 1, 1)
    at_x, at_y = cos * out_x + sin * out_y, cos * out_y - sin * out_x  # pixels from the centre, (views, h, w)
    # grid_sample reflects about pixel centres with align_corners, as padding by reflection does
    corners = padding == "reflect"
    across, down = ((width - 1) / 2, (height - 1) / 2) if corners else (width / 2, height / 2)
    grid = torch.stack((at_x / across, at_y / down), dim=-1).to(v.dtype).to(v.device, non_blocking=True)
    grid = grid.unsqueeze(1).expand(-1, n, -1, -1, -1).flatten(0, 1) if views > 1 else grid.expand(n, -1, -1, -1)
    out = F.grid_sample(v.flatten(0, 1), grid, mode="bilinear",
                        padding_mode="reflection" if corners else "border", align_corners=corners)
    return out.unflatten(0, (views, n))


def _blur(v: Tensor, sigma: Tensor) -> Tensor:
    """Separable 5-tap Gaussian blur with one sigma per view; the margin of 2 pixels is consumed."""
    taps = torch.exp(-0.5 * (torch.arange(3.0, dtype=torch.float64) / sigma.unsqueeze(1)).square())
    taps = taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))
    # A tap that rounds away against 1 is left out: two thirds of the sigmas need no 5 taps, one third needs none.
    reach = int((taps[:, 1:].amax(0) > torch.finfo(v.dtype).eps / 4).sum())
    a, b, c = (t.view(-1, 1, 1, 1, 1) for t in taps.to(v.dtype).to(v.device, non_blocking=True).unbind(1))
    for dim in (-1, -2):
        n = v.shape[dim] - 4
        part = [v.narrow(dim, k, n) for k in range(5)]
        v = part[2] * a if reach else part[2]
        if reach > 0:
            v.add_((part[1] + part[3]).mul_(b))
        if reach > 1:
            v.add_((part[0] + part[4]).mul_(c))
    return v
