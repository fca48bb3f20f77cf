"""Deployed learning: learn some classes, face a shifting unlabelled test stream, learn more, face it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from cl_bench import Experience, LabelSpace, TestSet
from cl_bench.data.tensor import labels_of
from cl_bench.ranges import Count, LegacySeed, Seed

from ._data import Shelf, numbers, pick
from .digits_c import DigitsC
from .split_digits import SplitDigits

__all__ = ["DeployedDigits"]


class DeployedDigits(SplitDigits):
    """Handwritten digits learned in steps, with a stream of corrupted digits of the classes known so far after each.

    Continual learning and test-time adaptation in one run: after every experience the model is deployed on unlabelled
    images under one corruption after another, answers among the classes it has learned, may adapt, and then learns the next
    classes from where the stream left it. The accuracy matrix is measured on the clean test images. The streams show
    corrupted versions of test images, without labels.

    Args:
        base, increment, order: the classes, as in ``split_digits``: 4 + 3 + 3 by default.
        corruptions: what every deployment meets, in this order.
        severity: 1 to 5.
        stream_seed: of the corruptions' noise and of the order of images.
        test_batch_size: images that arrive at once in the stream.
    """

    name: ClassVar[str] = "deployed_digits"
    family: ClassVar[str] = "deployed learning"
    paper: ClassVar[str] = "Hendrycks & Dietterich, ICLR 2019 (corruptions); Zenke et al., ICML 2017 (split)"

    def __init__(
        self,
        *,
        base: Count = 4,
        increment: Count = 3,
        order: LegacySeed | list[int] | None = None,
        corruptions: tuple[str, ...] = ("gaussian_noise", "motion_blur", "fog", "contrast"),
        severity: int = 3,
        stream_seed: Seed = 0,
        test_batch_size: Count = 36,
    ) -> None:
        super().__init__(base=base, increment=increment, order=order)
        self.corruptions, self.severity, self.stream_seed = tuple(corruptions), severity, stream_seed
        self.test_batch_size = test_batch_size
        self._corrupted = DigitsC(severity=severity, corruptions=list(corruptions), noise_seed=stream_seed)
        self._shelf = Shelf(4)

    def deployments(self) -> list[list[TestSet]]:
        """The streams, one list of segments after every experience."""
        return self._deployments

    @cached_property
    def _deployments(self) -> list[list[TestSet]]:
        made, seen = [], LabelSpace()
        for step, group in enumerate(self.groups(), 1):
            seen = seen | group
            made.append([self._segment(name, step, seen) for name in self.corruptions])
        return made

    def _segment(self, corruption: str, step: int, seen: LabelSpace) -> TestSet:
        data = self._corrupted.corrupted(corruption, self.severity)
        rows = torch.nonzero(torch.isin(labels_of(data), torch.tensor(seen.ids))).flatten().numpy()
        order = numbers("deployment", self.stream_seed, corruption, step).permutation(len(rows))
        name = f"{corruption} after step {step}"
        return TestSet(name, seen, pick([data], rows[order], self._shelf), corruption)

    def stream(self) -> Sequence[TestSet]:
        return [segment for deployment in self.deployments() for segment in deployment]

    def timeline(self) -> Iterable[Experience | TestSet]:
        for experience, deployment in zip(self.experiences(), self.deployments(), strict=True):
            yield experience
            yield from deployment

    def protocol(self) -> Mapping[str, Any]:
        return {**super().protocol(), "corruptions": list(self.corruptions), "severity": self.severity,
                "stream_seed": self.stream_seed, "test_batch_size": self.test_batch_size}
