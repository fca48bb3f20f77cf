"""SHOT's own training loop beside ours: information maximisation on the same batches."""

from __future__ import annotations

import importlib
import io
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cl_bench.adaptation import Deployed

from .checkouts import Row, importable
from .learners import on_the_cpu
from .toys import difference
from .tta import BATCH, CLOSE, SPACE, STEPS, Split, arriving, deployed, ours, resnet20

LR = 1e-2


class Walk:
    """A loader of given batches, (images, labels, numbers), whose iterator still has the ``next`` of its day."""

    def __init__(self, data: list[Tensor]) -> None:
        self.data = [(x, torch.zeros(len(x)), torch.arange(k * len(x), (k + 1) * len(x))) for k, x in enumerate(data)]

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Any:
        return Started(iter(self.data))


class Started:
    """Its iterator."""

    def __init__(self, left: Iterator[Any]) -> None:
        self.left = left

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.left)

    next = __next__


class Part(nn.Module):
    """A part of the network that is loaded already."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.in_features = body, 64

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    def load_state_dict(self, *args: Any, **kw: Any) -> Any:
        return None


def rows(tree: Path) -> list[Row]:
    """``train_target`` for one epoch; rates and weight decay follow its schedule on both sides."""
    torch.set_default_dtype(torch.float64)
    data = arriving()
    with importable(tree / "object", ("tqdm", "sklearn", "data_list")), on_the_cpu():
        module: Any = importlib.import_module("image_target")
        alone = official(module, data, 0.0)
        labelled = official(module, data, 0.3)
    rows, decayed = list[Row](), mine(data, 0.0)
    moved = difference([decayed], [before(data)])
    text = f"logits of a batch after {STEPS} batches of {BATCH} (the steps move them by up to {moved:.2g})"
    with mock.patch(f"{find_module()}.entropy", lambda z: -(z.softmax(1) * (z.softmax(1) + 1e-5).log()).sum(1)):
        rows.append(Row("shot, information maximisation of tim-learn/SHOT", "with its 1e-5 in the logarithm here too: " + text,
                        difference([mine(data, 0.0)], [alone]), CLOSE))
    rows.append(Row("shot, information maximisation of tim-learn/SHOT", "as it is here: " + text,
                    difference([decayed], [alone]), CLOSE,
                    "it adds 1e-5 to every probability in the logarithm; the online form of matsuolab/T3A does not"))
    rows.append(Row("shot, with pseudo-labels of tim-learn/SHOT", text, difference([mine(data, 0.3)], [labelled]), CLOSE,
                    "its labels are a whole target set's by nearest centroid; online, confident images label themselves"))
    return rows


def find_module() -> str:
    """Where our method lives."""
    from cl_bench.registry import find

    return str(find("cl_bench.methods", "shot").__module__)


def mine(data: list[Tensor], pseudo: float) -> Tensor:
    """Ours, with the rates and the weight decay of the official program's schedule."""
    method = ours("shot", resnet20(), lr=LR, pseudo=pseudo)
    for k, x in enumerate(data, 1):
        method.opt.param_groups[0].update(lr=LR * (1 + 10 * k / len(data)) ** -0.75, weight_decay=1e-3)
        method.predict(x, SPACE)
    return method.answer(data[0], SPACE)


def before(data: list[Tensor]) -> Tensor:
    """Ours before any step."""
    return ours("shot", resnet20()).answer(data[0], SPACE)


def official(module: Any, data: list[Tensor], pseudo: float) -> Tensor:
    """The official loop's network after one pass, asked for the first batch."""
    model: Deployed = deployed(resnet20())
    split = Split(model).train()  # as modules are made; it calls train() itself only where it labels
    module.data_load = lambda args: {"target": Walk(data), "test": Walk(data)}
    module.network = Namespace(ResBase=lambda res_name: Part(split.featurizer),
                               feat_bottleneck=lambda **kw: Part(nn.Identity()),
                               feat_classifier=lambda **kw: Part(split.classifier))
    args = Namespace(net="resnet50", classifier="bn", bottleneck=64, layer="wn", class_num=10, output_dir_src="", lr=LR,
                     lr_decay1=1.0, lr_decay2=1.0, max_epoch=1, interval=1, cls_par=pseudo, dset="office-home", ent=True,
                     gent=True, epsilon=1e-5, ent_par=1.0, name="", out_file=io.StringIO(), issave=False, distance="cosine",
                     threshold=0)
    with mock.patch("torch.load", lambda *a, **kw: None):
        parts = module.train_target(args)
    with torch.no_grad():
        for part in parts:
            part.train()
        return parts[2](parts[1](parts[0](data[0])))  # type: ignore[no-any-return]
