"""T3A, the online SHOT of its repository, and RDumb beside ours; and what all comparisons of test-time methods share.

Both sides are given the same network in double precision and the same batches of CIFAR-10-C, one after another; what is
compared is what they answer to each, so a difference in any step shows in all that follow.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parity_tta import network, stream
from torch import Tensor, nn

from cl_bench import Backbone, LabelSpace, StreamFacts
from cl_bench.adaptation import Deployed, RobustNorm, TestTimeMethod
from cl_bench.data.tensor import batches
from cl_bench.registry import find
from cl_bench.rng import Rng

from .checkouts import Row, importable
from .learners import on_the_cpu
from .toys import difference

SPACE = LabelSpace(range(10))
STEPS, BATCH, CLOSE = 5, 16, 1e-9
Answer = Callable[[Tensor], Tensor]


def arriving(steps: int = STEPS, size: int = BATCH) -> list[Tensor]:
    """The first batch of as many corruptions, in double precision."""
    return [next(iter(batches(test.data, size)))[0].double() for test in stream().stream()[:steps]]


def deployed(backbone: Backbone) -> Deployed:
    """The network as our methods hold it: for the official side, so that parameters have the same names."""
    return Deployed(backbone, backbone.make_head()).requires_grad_(True)


def resnet20() -> Backbone:
    """The ResNet-20 of the tables in double precision."""
    made: Backbone = network(20).double()
    return made


def ours(name: str, backbone: Backbone, size: int = BATCH, space: LabelSpace = SPACE, **settings: Any) -> TestTimeMethod:
    """Our method, deployed."""
    method: TestTimeMethod = find("cl_bench.methods", name)(backbone, **settings).double().eval()
    method.rng = Rng(0)
    method.deploy(None, StreamFacts(size, space))
    return method


def answering(method: TestTimeMethod, space: LabelSpace = SPACE) -> Answer:
    """Our side of :func:`apart`."""
    return lambda x: method.predict(x, space)


def apart(mine: Answer, theirs: Answer, arriving: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of two sides' logits over all batches; how far ours moved between the first time and the
    second that it saw the first batch, which says that there was something to compare."""
    with torch.no_grad():
        first: Tensor | None = None
        most = 0.0
        for x in (*arriving, arriving[0]):
            a, b = mine(x).detach(), theirs(x).detach()
            first = a.clone() if first is None else first
            most = max(most, difference([a], [b]))
    return most, difference([first], [a])  # type: ignore[list-item]


def told(count: int, size: int, moved: float) -> str:
    """What a row compares."""
    return f"logits of {count} batches of {size}, a step after each (the steps move them by up to {moved:.2g})"


def batch_mode(model: nn.Module) -> nn.Module:
    """BatchNorm layers that use the batch's statistics in any mode, as most official code sets them."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return model


class Split(nn.Module):
    """DomainBed's two halves, sharing the network's parameters."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.hparams = {"lr": 1e-3, "weight_decay": 0.0}
        self.featurizer, self.classifier = Features(model), model.head.module if hasattr(model.head, "module") else model.head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.featurizer(x))  # type: ignore[no-any-return]


class Features(nn.Module):
    """Images to features."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.backbone.head = None  # the classifier is the other half

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_features(x.to(next(self.parameters()).dtype))  # type: ignore[operator, no-any-return]


def t3a(tree: Path) -> list[Row]:
    """T3A and the online SHOT of matsuolab/T3A."""
    with importable(tree, ("domainbed.networks", "domainbed.lib")):
        module: Any = importlib.import_module("domainbed.adapt_algorithms")
        return [*templates(module), *online_shot(module)]


def templates(module: Any) -> list[Row]:
    """Supports and templates, with the published limits and the one that the released code gets wrong."""
    def official(backbone: Backbone, limit: int) -> Answer:
        split, settings = Split(deployed(backbone)).eval(), {"cached_loader": False, "filter_K": limit}
        learner = module.T3A((3, 32, 32), 10, 1, settings, split)
        return lambda x: learner(x, adapt=True)

    rows, data = list[Row](), arriving()
    with mock.patch.object(Tensor, "float", Tensor.double):  # its one-hot labels
        for limit in (100, 20, 5):
            far, moved = apart(answering(ours("t3a", resnet20(), supports=limit)), official(resnet20(), limit), data)
            rows.append(Row("t3a", f"supports={limit}: " + told(STEPS, BATCH, moved), far, CLOSE))
        far, _ = apart(answering(ours("t3a", resnet20(), supports=0)), official(resnet20(), -1), data)
    rows.append(Row("t3a", "all supports (0 here, -1 there)", far, CLOSE,
                    "-1 slices the least certain support of every class away at every batch"))
    return rows


def online_shot(module: Any) -> list[Row]:
    """SHOT's online form; its weight of pseudo-labels is 0.1 there."""
    def official(backbone: Backbone, batch: bool, im: bool = False) -> Any:
        split = Split(deployed(backbone)).eval()
        split = batch_mode(split) if batch else split
        settings = {"cached_loader": False, "alpha": 1.0, "beta": 0.9, "theta": 0.3, "gamma": 1}
        return (module.SHOTIM if im else module.SHOT)((3, 32, 32), 10, 1, settings, split)

    rows, data = list[Row](), arriving()
    for im in (False, True):
        method = ours("shot", resnet20(), optimizer="adam", pseudo=0.0 if im else 0.3)
        learner = official(resnet20(), True, im)
        far, moved = apart(answering(method), lambda x, of=learner: of(x, adapt=True), data)
        rows.append(Row("shot, online form of matsuolab/T3A" + (", without pseudo-labels" if im else ""),
                        "BatchNorm by batch on both sides: " + told(STEPS, BATCH, moved), far, CLOSE))
    learner = official(resnet20(), False)
    far, _ = apart(answering(ours("shot", resnet20(), optimizer="adam")), lambda x: learner(x, adapt=True), data)
    rows.append(Row("shot, online form of matsuolab/T3A", "with its source statistics", far, CLOSE,
                    "it adapts in evaluation mode; here statistics are the batch's, as in the original and in LINs-lab/ttab"))
    return rows


def rdumb(tree: Path) -> list[Row]:
    """RDumb's class with CIFAR's margins in place of the ones of ImageNet that stand in it; a reset within the batches."""
    with importable(tree, ("models.cotta", "models.conjugate"), empty=("models",)):
        registry, functional = (importlib.import_module(f"models.{name}") for name in ("registery", "functional"))
        sys.modules["models"].__dict__.update(AdaptiveModel=registry.AdaptiveModel, register=registry.register,
                                              functional=functional)
        module: Any = importlib.import_module("models.rdumb")

        def official(backbone: Backbone) -> Any:
            learner = module.RDumb(deployed(backbone))
            learner.e_margin, learner.d_margin = 0.4 * math.log(10), 0.4
            return learner

        method, learner = ours("rdumb", resnet20(), optimizer="sgd", lr=2.5e-4, period=4), official(resnet20())
        learner.total_steps = 996  # it is at 1,000 after four batches
        far, moved = apart(answering(method), learner, arriving())
        kept = f"; {method.counts['selected']} images kept by the two filters"
        return [Row("rdumb", told(STEPS, BATCH, moved) + f", a reset after four{kept}", far, CLOSE),
                Row("rdumb", "images kept by one side alone",
                    float(abs(method.counts["selected"] - learner.num_samples_update_2)), 0.0)]


def rotta(tree: Path) -> list[Row]:
    """RoTTA's class: its memory, its norm layers and its steps; one augmentation for both sides that draws nothing."""
    def turned(x: Tensor, *args: Any, **kw: Any) -> Tensor:
        return 0.9 * x.flip(-1)

    size, method = 64, ours("rotta", resnet20(), 64)
    stand_ins = ("core.utils.custom_transforms",)
    with importable(tree, stand_ins, empty=("core", "core.adapter", "core.utils")), on_the_cpu():
        module: Any = importlib.import_module("core.adapter.rotta")
        settings = Namespace(MEMORY_SIZE=64, UPDATE_FREQUENCY=64, NU=0.001, ALPHA=0.05, LAMBDA_T=1.0, LAMBDA_U=1.0)
        cfg = Namespace(ADAPTER=Namespace(RoTTA=settings), CORRUPTION=Namespace(NUM_CLASS=10), OPTIM=Namespace(STEPS=1))
        learner = module.RoTTA(cfg, deployed(resnet20()), lambda params: torch.optim.Adam(params, lr=1e-3))
        learner.transform = turned
        where = sys.modules[type(method).__module__]
        with mock.patch.object(Tensor, "float", Tensor.double), mock.patch.object(where, "augment", turned):
            far, moved = apart(answering(method), learner, arriving(3, size))
    mine, theirs = ({round(float(x.sum()), 9) for x in held} for held in (method.bank.images(), learner.mem.get_memory()[0]))
    layers = [m for m in learner.model.modules() if hasattr(m, "source_mean")]
    own = [m for m in method.model.modules() if isinstance(m, RobustNorm)]
    kept = difference([t for m in own for t in (m.mean, m.var)], [t for m in layers for t in (m.source_mean, m.source_var)])
    return [Row("rotta", told(3, size, moved), far, CLOSE),
            Row("rotta", "images in one memory alone", float(len(mine ^ theirs)), 0.0),
            Row("rotta", "running statistics of the student", kept, CLOSE)]


def only(path: Path, names: Sequence[str], **known: Any) -> Namespace:
    """Functions of a script that runs when it is imported: their definitions alone, among what they need as ``known``."""
    import ast

    body = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name in names]
    module = types.ModuleType(path.stem)
    module.__dict__.update(known)
    exec(compile(ast.Module(body, []), str(path), "exec"), module.__dict__)
    return Namespace(**{name: getattr(module, name) for name in names}, module=module)
