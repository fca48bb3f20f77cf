"""The two plain sources that transformed domains are made of: embedded digits and the user's MNIST."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from cl_bench import TensorData
from cl_bench.data.digits import DIGIT_NAMES, digits

from .domain_incremental import TransformedDomains
from .split_mnist import Files, mnist


class DigitDomains(TransformedDomains):
    """Domains over the digits that ship with scikit-learn."""

    def class_names(self) -> tuple[str, ...]:
        return DIGIT_NAMES

    def original(self, part: Literal["train", "test"]) -> TensorData:
        return digits(part)


class MnistDomains(TransformedDomains):
    """Domains over MNIST's IDX files in ``self.root``; ``self.files`` as in ``split_mnist``."""

    root: str
    files: Files

    def class_names(self) -> tuple[str, ...]:
        return DIGIT_NAMES

    def original(self, part: Literal["train", "test"]) -> TensorData:
        return self._plain[part]

    @cached_property
    def _plain(self) -> dict[str, TensorData]:
        return {part: mnist(self.root, part, self.files) for part in ("train", "test")}  # type: ignore[arg-type]
