"""Avalanche's Naive strategy on tensors, importable where packages that it never calls here are not installed.

Avalanche imports its loggers', downloaders' and solvers' packages at the top. Those that are missing are stood in for by
empty modules: nothing of them is called by a Naive strategy without loggers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NEVER_CALLED = ("wandb", "GPUtil", "gdown", "quadprog", "qpsolvers", "pytorchcv", "dill", "tensorboard")


class _StandIn(types.ModuleType):
    """A module that has every name, each of them None."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that were not installed, and everything inside them."""

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.missing else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in() -> None:
    """Empty modules for what is missing."""
    sys.meta_path.append(_Finder({name for name in NEVER_CALLED if importlib.util.find_spec(name) is None}))


class Labelled(TensorDataset):
    """Images and labels, with the labels where Avalanche looks for them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.tensors[0][index], self.targets[index]


def naive(network: nn.Module, x: Tensor, y: Tensor, batch: int, epochs: int, device: torch.device) -> Callable[[], Any]:
    """A function that trains ``network`` on one experience of all the data."""
    stand_in()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    dataset = as_classification_dataset(Labelled(x, y))
    (experience,) = benchmark_from_datasets(train=[dataset], test=[dataset]).train_stream
    strategy = Naive(
        model=network, optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4), criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch, train_epochs=epochs, device=device, evaluator=EvaluationPlugin(loggers=[]),
    )
    return lambda: strategy.train(experience, num_workers=0)
