"""The two plain sources that transformed domains are made of: embedded digits and the user's MNIST."""

from __future__ import annotations

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
        if part not in self.__dict__.setdefault("_plain", {}):
            self.__dict__["_plain"][part] = mnist(self.root, part, self.files)
        return self.__dict__["_plain"][part]
