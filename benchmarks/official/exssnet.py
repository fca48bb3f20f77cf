"""ExSSNeT's masked layers and its two training loops beside ours."""

from __future__ import annotations

import importlib
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .checkouts import Row, importable
from .toys import FEATURES, WIDTH, cut, difference, experience, made, ready, trained

TASKS, SIZE, LR, DENSITY = [experience((0, 1), 1), experience((2, 3), 2)], 4, 0.01, 0.3


class Net(nn.Module):
    """Two masked layers as 1 x 1 convolutions, as the official networks have them."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.one, self.two = conv(WIDTH, 9, 1, bias=False), conv(9, FEATURES, 1, bias=False)
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x[..., None, None])))).flatten(1))


def rows(tree: Path) -> list[Row]:
    """Masks, scores and weights of two tasks."""
    settings = types.ModuleType("args")
    settings.args = Namespace(  # type: ignore[attr-defined]
        num_tasks=2, sparsity=DENSITY, debug=False, iter_lim=-1, text_exp=False, device="cpu", log_interval=1000,
        batch_size=SIZE, epochs=1, ewc_lambda=0, workers=0, verbose=False)
    sys.modules["args"] = settings
    with importable(tree, (), ("models", "trainers")):
        torch.set_default_dtype(torch.float64)
        modules = importlib.import_module("models.modules")
        masking = importlib.import_module("trainers.default")
        weighing = importlib.import_module("trainers.weights")
    torch.manual_seed(31)
    official = Net(modules.MultitaskMaskConv)
    mine = Net(nn.Conv2d)
    mine.load_state_dict({k: v for k, v in official.state_dict().items() if "scores" not in k})
    method = made("exssnet", mine, FEATURES, lr=LR, weight_lr=LR, density=DENSITY, mask_epochs=1, weight_epochs=1,
                  batch_size=SIZE)
    layers = [official.one, official.two]
    out = list[Row]()
    for task, exp in enumerate(TASKS):
        ready(method, exp)
        head: Any = method.head
        head.requires_grad_(False)
        rows_of_task = slice(2 * task, 2 * task + 2)
        weight, bias = head.weight[rows_of_task].clone(), head.bias[rows_of_task].clone()
        official.head = _Fixed(weight, bias)
        for k, layer in enumerate(layers):
            layer.task = task
            layer.scores[task].data.copy_(method.scores[str(k)])
            layer.weight.requires_grad_(False)
            for t, scores in enumerate(layer.scores):
                scores.requires_grad_(t == task)
                scores.grad = None
        local = [(b.x, b.y - 2 * task) for b in cut(exp, SIZE)]
        loader, writer, criterion = Namespace(train_loader=_Loader(local)), mock.MagicMock(), nn.CrossEntropyLoss()
        optimizer: Any = method.configure_optimizers()["optimizer"]
        with mock.patch("builtins.print", lambda *a, **kw: None):
            adam = torch.optim.Adam([layer.scores[task] for layer in layers], lr=LR)
            masking.train(official, writer, loader, adam, criterion, 1, task)
            with mock.patch.object(type(method), "current_epoch", 0):
                trained(method, cut(exp, SIZE), optimizer)
            scores = difference([method.scores[str(k)] for k in range(2)], [layer.scores[task] for layer in layers])
            for layer in layers:
                layer.scores.requires_grad_(False)
                for s in layer.scores:
                    s.grad = None
                layer.weight.requires_grad_(True)
            free, active = weighing.get_editable_weights_mask_dict(official, "exclusive")
            adam = torch.optim.Adam([layer.weight for layer in layers], lr=LR)
            weighing.train(official, writer, _Loader(local), adam, criterion, 1, task, free, active)
            with mock.patch.object(type(method), "current_epoch", 1):
                trained(method, cut(exp, SIZE), optimizer)
        method.end(exp)
        masks = method.masks[-1].read()  # type: ignore[operator, union-attr]
        theirs = [modules.module_util.get_subnet(layer.scores[task].abs(), DENSITY).bool() for layer in layers]
        out += [
            Row("ExSSNeT", f"scores after six steps of task {task + 1}", scores, 1e-12),
            Row("ExSSNeT", f"mask bits of task {task + 1} that differ", float(sum(int((a != b).sum()) for a, b in
                                                                                zip(masks, theirs, strict=True))), 0.0),
            Row("ExSSNeT", f"weights after six more, {sum(int(f.sum()) for f in free.values())} of them free",
                difference([mine.one.weight, mine.two.weight], [layer.weight for layer in layers]), 1e-12),
        ]
    return out


class _Fixed(nn.Module):
    """A head that is not trained: the official code masks one head for all tasks, ours has rows per class."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


class _Loader(list):
    """Batches that say how many images there are, as a DataLoader does."""

    @property
    def dataset(self) -> Any:
        return range(sum(len(y) for _, y in self))
