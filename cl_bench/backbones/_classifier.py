"""Whether a linear layer taken off a network is all of the network's answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["first_line", "probe", "same"]


@torch.no_grad()
def probe(model: nn.Module, size: int | None) -> Tensor | None:
    """What a network answers in evaluation mode to one random image of ``size`` pixels (its mode is kept); None without one.

    Raises:
        UserError: where it takes no image of that size.
    """
    if not size:
        return None
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    was = [(m, m.training) for m in model.modules()]
    try:
        return model.eval()(image)
    except Exception as error:  # whatever the network's own code meets
        raise UserError(f"The model cannot answer for images of {size} x {size} pixels ({first_line(error)}): give another "
                        "image_size.") from error
    finally:
        for module, training in was:
            module.training = training


def same(ours: Tensor | None, own: Tensor | None) -> bool:
    """Whether two answers are one, up to rounding; where none was asked for, nothing speaks against it."""
    if ours is None or own is None:
        return True
    return ours.shape == own.shape and torch.allclose(ours, own, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
