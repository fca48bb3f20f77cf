"""Joint training: the upper bound, allowed to keep every image it has seen."""

from __future__ import annotations

import copy
from typing import ClassVar

from torch.utils.data import Dataset

from cl_bench import Backbone, Experience, Method, TensorData
from cl_bench.data.tensor import concat
from cl_bench.memory import Archive
from cl_bench.ranges import Amount, Count, Whole

__all__ = ["Joint"]


class Joint(Method):
    """Trains on everything seen so far, from the initial weights at every experience (upper bound).

    What it stores is counted: the archive's images appear in the record's growth. The same number of epochs is spent
    on the growing data, so each row of the matrix is the model that one would have trained on all data until then.
    """

    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "upper bound"
    shares_batches: ClassVar[bool] = True
    reference: ClassVar[str] = "upper bound"

    def __init__(self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 5, batch_size: Count = 32) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.archive = Archive()
        self.files: list[Dataset] = []  # data sets that are read from disk item by item are kept by reference
        self.initial = copy.deepcopy(dict(self.backbone.state_dict()))

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        first = not self.stored_samples()
        if isinstance(exp.data, TensorData):
            self.archive.add(exp.data)
        else:
            self.files.append(exp.data)
        if not first:
            self.backbone.load_state_dict(self.initial)
            self.head = self.make_head().to(self.device)
            self.head.grow(self.seen)

    def training_data(self, exp: Experience) -> Dataset:
        held: list[Dataset] = [self.archive.all()] if self.archive.samples else []
        return concat([*held, *self.files])

    def stored_samples(self) -> int:
        return super().stored_samples() + sum(len(f) for f in self.files)  # type: ignore[arg-type]
