"""Updates of weights as plain data, by site: what merging several of them into one starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import UserError

__all__ = ["combine"]


def combine(deltas: Sequence[Mapping[str, Tensor]], scales: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The scaled sum of updates, site by site: task arithmetic (Ilharco et al., ICLR 2023). Nothing given is changed.

    Args:
        deltas: of one network each, ``{site: (shape of its weight)}``, as :meth:`AdapterSet.deltas` gives them; a site that
            one of them lacks takes part without it.
        scales: one factor per update; None = 1 each.

    Raises:
        UserError: for another number of scales than updates, or shapes that differ at a site.
    """
    factors = [1.0] * len(deltas) if scales is None else list(scales)
    if len(factors) != len(deltas):
        raise UserError(f"{len(deltas)} updates and {len(factors)} scales: give one scale per update.")
    whole: dict[str, Tensor] = {}
    for update, factor in zip(deltas, factors, strict=True):
        for at, delta in update.items():
            if at in whole and whole[at].shape != delta.shape:
                raise UserError(f"updates of {at} have the shapes {tuple(whole[at].shape)} and {tuple(delta.shape)}; combine "
                                "updates of one network.")
            whole[at] = whole[at] + factor * delta if at in whole else factor * delta
    return whole
