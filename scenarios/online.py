"""Online learning: any learning scenario, every image seen once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cl_bench import Scenario, Wrapper

__all__ = ["Online"]


class Online(Wrapper):
    """A single pass over every experience of another scenario (Split-Digits by default).

    Methods' own ``epochs`` are capped at one; what a method replays from its memory does not count as another pass.

    Args:
        of: the scenario whose experiences are learned in one pass.
    """

    family: ClassVar[str] = "online"
    paper: ClassVar[str] = "Aljundi et al., CVPR 2019; Mai et al., Neurocomputing 2022"
    max_epochs = 1

    def __init__(self, of: Scenario | None = None) -> None:
        if of is None:
            from .split_digits import SplitDigits

            of = SplitDigits()
        super().__init__(of)

    def protocol(self) -> Mapping[str, Any]:
        return {**self.of.protocol(), "online": True}
