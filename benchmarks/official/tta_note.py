"""NOTE's own learner beside ours: instance-aware norm layers, the balanced reservoir, and steps on it."""

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

from cl_bench.registry import find

from .checkouts import Row, importable
from .learners import bare, on_the_cpu
from .toys import difference
from .tta import CLOSE, SPACE, arriving, deployed, ours, resnet20

IMAGES, BATCHES = 64, 3
OPTIONS = {"gpu_idx": 0, "iabn": True, "iabn_k": 4.0, "skip_thres": 1, "bn_momentum": 0.01, "use_learned_stats": True,
           "memory_type": "PBRS", "memory_size": 64, "update_every_x": 64, "temperature": 1.0, "epoch": 1, "no_optim": False,
           "no_adapt": False, "opt": {"num_class": 10, "batch_size": 128}}


class Drawn:
    """``random`` of the reservoir, from the draws that ours takes: the same classes, thresholds and images."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.evicted: list[Tensor] = []  # images that ours gave up, in order
        self.memory: Any = None

    def choice(self, found: list[int]) -> int:
        return found[int(torch.randint(len(found), (), generator=self.generator))]

    def uniform(self, low: float, high: float) -> float:
        return float(torch.rand((), generator=self.generator))

    def randrange(self, low: int, high: int) -> int:
        torch.randint(high, (), generator=self.generator)  # the same place in the sequence; the image is ours, wherever it lies
        image = self.evicted.pop(0)
        held = [feats for feats, *_ in self.memory.data if len(feats) == high]
        places = [k for feats in held for k, f in enumerate(feats) if torch.equal(f, image)]
        if len(places) != 1:
            raise RuntimeError("the image that ours gave up is not in the official memory")
        return places[0]


def rows(tree: Path) -> list[Row]:
    """Six times 64 images: what each is answered, what the memory holds, and weights and statistics after every step."""
    torch.set_default_dtype(torch.float64)
    data = arriving(BATCHES, IMAGES)
    torch.cuda.set_device = lambda *a: None  # type: ignore[assignment]
    conf = types.ModuleType("conf")
    conf.__dict__["args"] = Namespace(**OPTIONS)
    sys.modules["conf"] = conf
    stand_ins = ("tqdm", "sklearn", "pandas", "utils.logging", "utils.normalize_layer")
    with importable(tree, stand_ins), on_the_cpu():
        module: Any = importlib.import_module("learner.note")
        memory, iabn = (importlib.import_module(f"utils.{name}") for name in ("memory", "iabn"))
        rows = compared(module, memory, iabn, data, "as it is here", "its entropy is a mean over classes too, with 1e-6 in the "
                        "logarithm; what Adam does not scale away")
        where = str(find("cl_bench.methods", "note").__module__)
        with mock.patch(f"{where}.entropy", lambda z: -(z.softmax(1) * (z.softmax(1) + 1e-6).log()).mean(1)):
            return [*compared(module, memory, iabn, data, "with its form of the entropy here too"), *rows]


def compared(module: Any, memory: Any, iabn: Any, data: list[Tensor], how: str, why: str = "") -> list[Row]:
    method: Any = ours("note", resnet20(), IMAGES)
    net = deployed(resnet20())
    iabn.convert_iabn(net)
    net.eval()
    images, seen = torch.cat(data), list[Tensor]()
    unknown = torch.zeros(len(images), dtype=torch.int64)
    learner = bare(module.NOTE, net=net, mem=memory.PBRS(capacity=64), fifo=memory.FIFO(capacity=64), previous_train_loss=0,
                   target_train_set=(images, unknown, unknown), log_loss_results=lambda *a, **k: 0)
    for p in net.parameters():
        p.requires_grad = False
    for layer in net.modules():  # as its constructor, which also reads data and a checkpoint
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.momentum = True, OPTIONS["bn_momentum"]
            layer.weight.requires_grad_(True)
            layer.bias.requires_grad_(True)
    learner.optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, weight_decay=0.0)
    drawn = Drawn(method.rng.on("cpu").initial_seed())
    drawn.generator.set_state(method.rng.on("cpu").get_state())
    drawn.memory, memory.random = learner.mem, drawn
    learner.evaluation_online = lambda at, condition, samples: seen.append(answered(net, samples[0][0]))
    watch(method, drawn)
    module.DataLoader = lambda dataset, **kw: [(dataset.tensors[0],)]  # one batch holds the memory: its order is a sum's
    found = {"logits": 0.0, "affine": 0.0, "statistics": 0.0}
    wrong, first, moved = 0, torch.zeros(0), 0.0
    for k, x in enumerate((*data, data[0])):
        mine = method.predict(x, SPACE)
        if k < len(data):
            seen.clear()
            for i in range(IMAGES):
                learner.train_online(k * IMAGES + i + 1)
            theirs = torch.cat(seen)
            found["logits"] = max(found["logits"], difference([mine], [theirs]))
            held = torch.stack(learner.mem.get_memory()[0])
            wrong += sorted(h.sum().item() for h in held) != sorted(h.sum().item() for h in method.bank[: len(method.owners)])
            layers = [m for m in net.modules() if isinstance(m, iabn.InstanceAwareBatchNorm2d)]
            own = [m for m in method.model.modules() if hasattr(m, "momentum") and hasattr(m, "mean")]
            found["affine"] = max(found["affine"], difference([p for m in own for p in (m.weight, m.bias)],
                                                              [p for m in layers for p in (m._bn.weight, m._bn.bias)]))
            kept = [p for m in layers for p in (m._bn.running_mean, m._bn.running_var)]
            found["statistics"] = max(found["statistics"], difference([p for m in own for p in (m.mean, m.var)], kept))
        first = mine if k == 0 else first
        moved = difference([first], [mine])
    text = f"{BATCHES} x {IMAGES} images, a step after each {IMAGES}"
    return [Row("note", f"{how}: memories that hold another image after {text}", float(wrong), 0.0),
            Row("note", f"{how}: logits of {text} (the steps move them by up to {moved:.2g})", found["logits"], CLOSE, why),
            Row("note", f"{how}: running statistics after the last step", found["statistics"], CLOSE, why),
            Row("note", f"{how}: affine parameters after the last step", found["affine"], CLOSE, why)]


def answered(net: nn.Module, x: Tensor) -> Tensor:
    """What the official network answers to one image."""
    net.eval()
    with torch.no_grad():
        return net(x.unsqueeze(0))  # type: ignore[no-any-return]


def watch(method: Any, drawn: Drawn) -> None:
    """Keep the images that our memory gives up, in order."""
    remember = method.remember

    def remembered(x: Tensor, z: Tensor) -> None:
        held = [*method.bank[: len(method.owners)].clone()]
        slot, row = method.slot, iter(range(len(x)))

        def chosen(label: int) -> int | None:
            at, k = slot(label), next(row)
            if at is not None and at < len(held):
                drawn.evicted.append(held[at])
                held[at] = x[k]
            elif at is not None:
                held.append(x[k])
            return at  # type: ignore[no-any-return]

        method.__dict__["slot"] = chosen
        remember(x, z)
        method.__dict__.pop("slot")

    method.__dict__["remember"] = remembered
