"""FACIL's criteria and Fisher beside ours: EWC (``variant=facil``) and LwF."""

from __future__ import annotations

import importlib
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cl_bench import Method

from .checkouts import Row, importable
from .toys import FEATURES, cut, difference, experience, made, ready, sgd, trained, trunk

TASKS, SIZE, LR = [experience((0, 1), 1), experience((2, 3), 2), experience((4, 5), 3)], 4, 0.05


class Net(nn.Module):
    """A trunk ``model`` and a head per task, as FACIL's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.heads = trunk(), nn.ModuleList()
        self.task_offset: list[int] = []

    def add(self, method: Method) -> None:
        """A head for one more task, with the rows that ours has drawn."""
        self.task_offset.append(2 * len(self.heads))
        head, ours = nn.Linear(FEATURES, 2), method.head
        with torch.no_grad():
            head.weight.copy_(ours.weight[-2:])  # type: ignore[index, arg-type]
            head.bias.copy_(ours.bias[-2:])  # type: ignore[index, arg-type]
        self.heads.append(head)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.model(x)
        return [head(features) for head in self.heads]


def weights(side: Any) -> list[Tensor]:
    """Trunk and all rows of the classifier."""
    if isinstance(side, Net):
        return [*side.model.parameters(), torch.cat([h.weight for h in side.heads]), torch.cat([h.bias for h in side.heads])]  # type: ignore[misc]
    return [*side.backbone.model.parameters(), side.head.weight, side.head.bias]


def rows(tree: Path) -> list[Row]:
    """Three tasks of each."""
    with importable(tree / "src", ("loggers", "datasets"), ("approach",)):
        torch.set_default_dtype(torch.float64)
        made_of = {name: importlib.import_module(f"approach.{name}").Appr for name in ("ewc", "lwf")}
    return ewc(made_of["ewc"]) + lwf(made_of["lwf"])


def official(cls: Any, net: Net, **settings: Any) -> Any:
    """Their learner without what its constructor asks of the whole program."""
    made_ = object.__new__(cls)
    vars(made_).update(model=net, device=torch.device("cpu"), exemplars_dataset=[], **settings)
    return made_


def ewc(cls: Any) -> list[Row]:
    """Weights, Fisher and anchors, both with SGD, batches in the same order."""
    method = made("ewc", variant="facil", strength=50.0, batch_size=SIZE)
    net = Net()
    theirs = official(cls, net, lamb=50.0, alpha=0.5, sampling_type="max_pred", num_samples=-1,
                      fisher={n: torch.zeros_like(p) for n, p in net.model.named_parameters()})
    module: Any = sys.modules[type(method).__module__]
    plain = module.batches
    most, fishers = 0.0, 0.0
    for t, exp in enumerate(TASKS):
        ready(method, exp)
        net.add(method)
        if t == 0:
            net.model.load_state_dict(method.backbone.model.state_dict())
        trained(method, cut(exp, SIZE), sgd(method, LR))
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        theirs.optimizer = optimizer
        for x, y in cut(exp, SIZE):
            optimizer.zero_grad()
            theirs.criterion(t, net(x), y).backward()
            optimizer.step()
        with mock.patch.object(module, "batches", lambda data, n, shuffle, generator, device: plain(data, n, device=device)):
            method.end(exp)
        theirs.post_train_process(t, _Loader(cut(exp, SIZE)))
        most = max(most, difference(weights(method), weights(net)))
        anchor: Any = method.anchors[0]
        mine = {n: getattr(anchor, f"fisher{k}") for k, n in enumerate(anchor.names)}
        fishers = max(fishers, difference([mine[f"backbone.model.{n}"] for n in theirs.fisher], list(theirs.fisher.values())))
    return [Row("EWC variant=facil", "weights of three tasks, a head per task, both with SGD", most, 1e-12),
            Row("EWC variant=facil", "Fisher after each task", fishers, 1e-12)]


def lwf(cls: Any) -> list[Row]:
    """Weights after three tasks without warm-up, both with SGD."""

    def run(eps: float) -> float:
        method = made("lwf", strength=1.0, warmup=0, batch_size=SIZE)
        net = Net()
        theirs = official(cls, net, lamb=1.0, T=2.0)
        real = theirs.cross_entropy
        theirs.cross_entropy = lambda *a, **kw: real(*a, **{**kw, "eps": eps})
        most, old = 0.0, None
        for t, exp in enumerate(TASKS):
            ready(method, exp)
            net.add(method)
            if t == 0:
                net.model.load_state_dict(method.backbone.model.state_dict())
            method.on_train_epoch_start()
            trained(method, cut(exp, SIZE), sgd(method, LR))
            optimizer = torch.optim.SGD(net.parameters(), lr=LR)
            for x, y in cut(exp, SIZE):
                before = None if old is None else [o.detach() for o in old(x)]
                optimizer.zero_grad()
                theirs.criterion(t, net(x), y, before).backward()
                optimizer.step()
            method.end(exp)
            old = deepcopy(net)
            most = max(most, difference(weights(method), weights(net)))
        return most

    return [Row("LwF variant=paper", "weights of three tasks, a head per task, FACIL's criterion with its smoothing at 0",
                run(0.0), 1e-12),
            Row("LwF variant=paper", "the same, FACIL's criterion as shipped", run(1e-5), 1e-9,
                "it adds 1e-5 to the probabilities")]


class _Loader(list):
    """Batches that say their size and their data set's, as a DataLoader does."""

    batch_size = SIZE

    @property
    def dataset(self) -> Any:
        return range(sum(len(y) for _, y in self))
