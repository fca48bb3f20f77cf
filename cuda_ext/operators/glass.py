"""The shuffle of ImageNet-C's glass blur: a walk over pixels, each of which copies what a near one holds at that moment."""

import torch
from torch import Tensor

from ..declaration import FLOATING, operator

__all__ = ["glass_origin"]


def _check(right: Tensor, down: Tensor, height: int, width: int, delta: int) -> None:
    rows, columns = max(height - 2 * delta, 0), max(width - 2 * delta, 0)
    if right.dim() != 4 or down.shape != right.shape or right.shape[2] != rows or right.shape[3] != columns:
        raise ValueError(f"glass_origin: steps have shapes {list(right.shape)} and {list(down.shape)}; give (images, passes, "
                         f"{rows}, {columns}) for {height} x {width} pixels and steps of up to {delta}.")
    if delta < 1 or right.dtype not in FLOATING or down.dtype != right.dtype or down.device != right.device:
        raise ValueError("glass_origin: steps are two floating tensors of one dtype and device, and delta is 1 or more.")


def _shape(right: Tensor, down: Tensor, height: int, width: int, delta: int) -> Tensor:
    _check(right, down, height, width, delta)
    return right.new_empty(right.shape[0], height * width, dtype=torch.int64)


@operator(fake=_shape)
def glass_origin(right: Tensor, down: Tensor, height: int, width: int, delta: int) -> Tensor:
    """Where each pixel comes from after the shuffles of Hendrycks and Dietterich's glass blur (ICLR 2019).

    Each pass walks from the bottom right to the top left over all pixels that are farther than `delta` from the border, and
    means to swap each with a near one; written on numpy views, its "swap" copies the near pixel over this one and leaves the
    near one alone. So a pixel takes what its neighbour holds at that moment: its value before the pass, or, where the walk has
    passed the neighbour already, what that one has taken. In plain torch such chains are followed to their ends by pointer
    jumping, a few gathers for all pixels, until nothing moves (which waits for a GPU); a kernel walks.

    Args:
        right, down: (N, passes, height - 2 delta, width - 2 delta), floating, whole numbers in -delta ... delta - 1: the step
            from each pixel to its partner, in the order of the walk.
        height, width: of the images.
        delta: the longest step.

    Returns:
        (N, height * width) int64: for each pixel the number of the pixel whose value it ends with.

    Raises:
        ValueError: for steps of other shapes, dtypes or devices.
        RuntimeError: gradients are being recorded and a step requires them.
    """
    _check(right, down, height, width, delta)
    origin = _one_pass(height, width, delta, right[:, 0], down[:, 0]) if right.shape[1] else torch.arange(
        height * width, device=right.device).repeat(right.shape[0], 1)
    for later in range(1, right.shape[1]):
        origin = origin.gather(1, _one_pass(height, width, delta, right[:, later], down[:, later]))
    return origin


def _one_pass(height: int, width: int, delta: int, right: Tensor, down: Tensor) -> Tensor:
    everywhere = torch.arange(height * width, device=down.device)
    inner = (slice(None), slice(delta + 1, height - delta + 1), slice(delta + 1, width - delta + 1))
    here = everywhere.view(1, height, width)[inner]
    target = (down * width).add_(right).long().flip(1, 2).add_(here)
    origin = everywhere.repeat(len(down), 1)
    origin.view(-1, height, width)[inner] = target
    if delta == 1:  # steps go up and left only, where the walk has not been
        return origin
    # Only a later index inside the walk has been passed. Chains point on to their end, which holds its first value.
    walked = torch.zeros(1, height, width, dtype=torch.bool, device=down.device)
    walked[inner] = True
    passed = walked.flatten()[target] & (target > here)
    link = everywhere.repeat(len(down), 1)
    link.view(-1, height, width)[inner] = torch.where(passed, target, here)
    while True:
        further = link.gather(1, link)
        if torch.equal(further, link):
            break
        link = further
    return origin.gather(1, link)
