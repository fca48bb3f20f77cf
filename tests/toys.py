"""Small methods, networks and data for the tests of the engine, the meter and the checker."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, LabelSpace, Method, Scenario, TensorData, TestSet
from cl_bench.backbones.base import Preprocess


def tiny_backbone(seed: int = 0) -> Backbone:
    """Two linear layers with a norm between and after them; 8 features from 3 x 4 x 4 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8))
    return Backbone(model, num_features=8, preprocess=Preprocess(None))


def coded(n: int, classes: int = 4) -> TensorData:
    """Images that say which row they are (grey value = row), labels ``row % classes``."""
    assert n <= 256
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous()
    return TensorData(x, torch.arange(n) % classes)


def rows_of(x: Tensor) -> Tensor:
    """The rows that :func:`coded` images stand for."""
    return (x[:, 0, 0, 0] * 255).round().long()


class Lazy(Dataset):
    """The same images one at a time, as a data set of files gives them."""

    def __init__(self, data: TensorData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.x[index], int(self.data.y[index])


class Oracle(Method):
    """Answers row r with ``table[r]``: predictions made by hand."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(tiny_backbone())
        self.table = table

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.table.to(x.device)[rows_of(x)]


class Logging(Method):
    """Keeps what happens to it: ("adapt" | "answer" | "feedback", rows, labels)."""

    adapts: ClassVar[bool] = True
    passes: ClassVar[int] = 1  # forward passes per batch

    def __init__(self) -> None:
        super().__init__(tiny_backbone())
        self.head.grow(LabelSpace((0, 1, 2, 3)))
        self.log: list[tuple[str, list[int], list[int]]] = []

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.log.append(("adapt", rows_of(x).tolist(), []))
        for _ in range(self.passes - 1):
            self(x)
        return super().predict(x, space)

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.log.append(("answer", rows_of(x).tolist(), []))
        return super().answer(x, space)

    def feedback(self, x: Tensor, y: Tensor) -> None:
        self.log.append(("feedback", rows_of(x).tolist(), y.tolist()))


class Supervised(Logging):
    """May have late labels."""

    needs: ClassVar[frozenset[str]] = frozenset({"labels"})


class Slow(Logging):
    """Three forward passes per batch."""

    passes: ClassVar[int] = 3


class Stream(Scenario):
    """Domains of :func:`coded` images."""

    answers = "all"

    def __init__(self, sizes: tuple[int, ...] = (8,), batch: int = 2, gives: tuple[str, ...] = (), **settings: float) -> None:
        self.sizes, self.test_batch_size = sizes, batch
        self.__dict__.update(settings, gives=frozenset(gives))

    def stream(self) -> list[TestSet]:
        return [TestSet(f"domain {k}", LabelSpace((0, 1, 2, 3)), coded(n)) for k, n in enumerate(self.sizes)]
