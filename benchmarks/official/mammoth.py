"""Mammoth's ``observe()`` beside our steps: ER, DER++, A-GEM, EWC-online, LwF."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Batch, LabelSpace, Method
from cl_bench.memory import Memory

from .checkouts import Row, importable
from .toys import (
    FEATURES,
    STEPS,
    WIDTH,
    Plain,
    cut,
    difference,
    experience,
    made,
    ready,
    sgd,
    synchronised,
    trained,
    trunk,
)

CLASSES, SIZE, LR = 4, 4, 0.05
WHOLE = LabelSpace(range(CLASSES))
TASKS = [experience((0, 1), 1), experience((2, 3), 2)]
HEADS = ("allocated", "growing")
BOUND = 1e-12


def rows(tree: Path) -> list[Row]:
    """Every row that Mammoth's code is asked for."""
    stand_ins = ("kornia", "datasets", "utils.kornia_utils", "utils.magic", "utils.augmentations", "utils.conf", "utils.args",
                 "wandb", "quadprog")
    with importable(tree, stand_ins, ("models", "models.utils", "utils")):
        import utils.augmentations
        import utils.conf

        utils.augmentations.apply_transform = lambda x, transform, **kw: transform(x)
        utils.conf.get_device = lambda *a, **kw: torch.device("cpu")
        torch.set_default_dtype(torch.float64)
        found: list[Row] = []
        for head in HEADS:
            found += replay("er", head) + replay("derpp", head) + agem(head) + ewc(head) + lwf(head)
        return found


class Buffered:
    """Mammoth's buffer in double precision; what it draws is logged, and handed to ours."""

    def __init__(self, size: int, logits: bool = False) -> None:
        import numpy as np
        from utils.buffer import Buffer

        self.buffer = Buffer(size)
        self.buffer.examples = torch.zeros(size, WIDTH)
        self.buffer.labels = torch.zeros(size, dtype=torch.int64)
        if logits:
            self.buffer.logits = torch.zeros(size, CLASSES)
        self.choices: list[Tensor] = []
        self.slots: list[tuple[int, int]] = []
        choice, randint = np.random.choice, np.random.randint
        np.random.seed(0)  # noqa: NPY002

        def chosen(*args: Any, **kw: Any) -> Any:
            out = choice(*args, **kw)
            self.choices.append(torch.as_tensor(out).long())
            return out

        def slot(low: int, high: int) -> int:
            out = int(randint(low, high))
            self.slots.append((out, high))
            return out

        self.patches = [mock.patch("numpy.random.choice", chosen), mock.patch("numpy.random.randint", slot)]

    def handed(self) -> list[Any]:
        """Patches under which our memory draws what Mammoth's drew."""
        rows = synchronised(self.choices)
        late = iter(self.slots)
        real = torch.rand

        def rand(n: int, **kw: Any) -> Tensor:
            if kw.get("dtype") is not torch.float64:
                return real(n, **kw)
            pairs = [next(late) for _ in range(n)]
            return torch.tensor([(out + 0.5) / high for out, high in pairs])

        return [mock.patch.object(Memory, "draw_rows", lambda *a, **kw: rows()), mock.patch("torch.rand", rand)]


def theirs(name: str, net: Plain, loss: Callable[..., Tensor], buffered: Buffered | None = None, **args: Any) -> Any:
    """An official model on ``net``, plain SGD."""
    import importlib

    module = importlib.import_module(f"models.{name}")
    cls = next(c for c in vars(module).values() if getattr(c, "NAME", None) == name)
    net.get_params = lambda: torch.nn.utils.parameters_to_vector(net.parameters())  # type: ignore[assignment]
    net.get_grads = lambda: torch.cat([p.grad.view(-1) for p in net.parameters()])  # type: ignore[assignment, union-attr]

    def set_grads(new: Tensor) -> None:
        for p, g in zip(net.parameters(), new.split([p.numel() for p in net.parameters()]), strict=True):
            p.grad = g.view_as(p).clone()

    net.set_grads = set_grads  # type: ignore[assignment]
    data = Namespace(N_CLASSES=CLASSES, N_TASKS=2, SETTING="class-il", N_CLASSES_PER_TASK=2)
    settings = Namespace(optimizer="sgd", lr=LR, optim_wd=0.0, optim_mom=0.0, optim_nesterov=False, label_perc=1,
                         buffer_size=16, minibatch_size=5, batch_size=SIZE, n_epochs=1, **args)
    model = cls(net, loss, settings, None, dataset=data)
    model.transform = lambda x: x
    model.device = torch.device("cpu")
    if buffered is not None:
        model.buffer = buffered.buffer
    return model


def twin(method: Method) -> Plain:
    """Mammoth's network with our weights; rows of classes that ours has not met are its own."""
    torch.manual_seed(21)
    net = Plain(trunk(), FEATURES, CLASSES)
    net.body.load_state_dict(method.backbone.model.state_dict())
    align(method, net)
    return net


def align(method: Method, net: Plain) -> None:
    """Copies the rows that our head has into their classifier."""
    head: Any = method.head
    with torch.no_grad():
        net.classifier.weight[: len(head.weight)].copy_(head.weight)
        net.classifier.bias[: len(head.bias)].copy_(head.bias)


def parameters(side: Any) -> list[Tensor]:
    """Trunk, then classifier."""
    if isinstance(side, Plain):
        return [*side.body.parameters(), side.classifier.weight, side.classifier.bias]
    return [*side.backbone.model.parameters(), side.head.weight, side.head.bias]


def batches(task: int) -> list[Batch]:
    return cut(TASKS[task], SIZE)[:STEPS]


def replay(name: str, head: str) -> list[Row]:
    """ER and DER++ over two tasks, the same images drawn and stored."""
    kw = {"alpha": 0.3, "beta": 0.5} if name == "derpp" else {}

    def run(limit: bool) -> float:
        method = made(name, lr=LR, buffer_size=16, minibatch=5, **kw)
        buffered = Buffered(16, logits=name == "derpp")
        net: Plain | None = None
        other: Any = None
        most = 0.0
        for task, exp in enumerate(TASKS):
            ready(method, exp, WHOLE if head == "allocated" else None)
            if net is None:
                net = twin(method)
                other = theirs(name, net, F.cross_entropy, buffered, **kw)
            elif head == "growing":
                align(method, net)
            seen = len(method.head.space)
            net.columns = slice(0, seen) if limit else None
            with ExitStack() as held:
                for patch in buffered.patches:
                    held.enter_context(patch)
                for x, y in batches(task):
                    other.observe(x, y, x, epoch=0)
            with ExitStack() as held:
                for patch in buffered.handed():
                    held.enter_context(patch)
                trained(method, batches(task))
            buffered.choices.clear()
            buffered.slots.clear()
            most = max(most, difference(parameters(method), parameters(net)))
        return most

    what = {"er": "ER", "derpp": "DER++"}[name]
    if head == "allocated":
        return [Row(what, "weights after two tasks, head with all classes from the start", run(False), BOUND)]
    out = [Row(what, "the same, growing head against the official one as shipped", run(False), 1e-6,
               "units of classes to come are in the official softmax" + (" and in its mean square" if kw else ""))]
    if name == "er":
        out.insert(0, Row(what, "the same, growing head, the official network's columns cut to the classes seen",
                          run(True), BOUND))
    return out


def own_task(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image among the classes of its own task."""
    mine = torch.arange(logits.shape[1]) // 2 == (y // 2)[:, None]
    return F.cross_entropy(logits.masked_fill(~mine, -torch.inf), y)


def agem(head: str) -> list[Row]:
    """A-GEM over two tasks; every image of a task is stored, the memory's draws are the same."""

    def run(masked: bool, limit: bool, rate: float = 0.5) -> tuple[float, int]:
        n = len(TASKS[0].data)  # type: ignore[arg-type]
        method = made("agem", lr=rate, patterns=n, sample_size=7, masked=masked)
        buffered = Buffered(2 * n)
        net: Plain | None = None
        other: Any = None
        most, projected = 0.0, 0
        for task, exp in enumerate(TASKS):
            ready(method, exp, WHOLE if head == "allocated" else None)
            if net is None:
                net = twin(method)
                other = theirs("agem", net, own_task if masked else F.cross_entropy, buffered)
                other.args.minibatch_size = 7
                other.opt = torch.optim.SGD(net.parameters(), lr=rate)
            elif head == "growing":
                align(method, net)
            net.columns = slice(0, len(method.head.space)) if limit else None
            module: Any = __import__("models.agem", fromlist=["project"])
            real = module.project

            def counted(*args: Any, real: Any = real, **kw: Any) -> Tensor:
                nonlocal projected
                projected += 1
                return real(*args, **kw)

            with ExitStack() as held:
                for patch in [*buffered.patches, mock.patch.object(module, "project", counted)]:
                    held.enter_context(patch)
                for x, y in batches(task) * 4:
                    other.observe(x, y, x, epoch=0)
                data: Any = exp.data
                other.end_task(Namespace(train_loader=[(data.x, data.y, data.x)], N_TASKS=2))
            # ours draws a permutation of all that is stored and takes its first part
            choice = synchronised(buffered.choices)
            with mock.patch("torch.randperm", choice):
                trained(method, batches(task) * 4)
            buffered.choices.clear()
            buffered.slots.clear()
            method.end(exp)
            method.memories[-1].x, method.memories[-1].y = data.x, data.y  # in the order in which theirs lie
            most = max(most, difference(parameters(method), parameters(net)))
        return most, projected

    if head == "allocated":
        plain, n = run(False, False)
        masked, m = run(True, False)
        return [Row("A-GEM", f"weights after two tasks, head with all classes from the start; {n} gradients projected", plain,
                    BOUND if n else -1.0),
                Row("A-GEM masked", f"the same, each image among its own task's classes; {m} gradients projected", masked,
                    BOUND if m else -1.0)]
    return [Row("A-GEM", "growing head, the official network's columns cut to the classes seen", run(False, True)[0], BOUND),
            Row("A-GEM masked", "growing head, official as shipped: no class to come is asked", run(True, False)[0], BOUND),
            Row("A-GEM", "growing head against the official one as shipped", run(False, False)[0], 1e-6,
                "units of classes to come are in the official softmax")]


def ewc(head: str) -> list[Row]:
    """EWC-online (``variant=mammoth``) over two tasks, both with SGD: Fisher, penalty, weights."""

    def run(masked: bool, cut_fisher: bool, adamw: bool = False) -> tuple[float, float]:
        method = made("ewc", variant="mammoth", strength=2.0, gamma=0.7, masked=masked, batch_size=SIZE, lr=LR)
        net: Plain | None = None
        other: Any = None
        weights = 0.0
        for task, exp in enumerate(TASKS):
            ready(method, exp, WHOLE if head == "allocated" else None)
            if net is None:
                net = twin(method)
                other = theirs("ewc_on", net, own_task if masked else F.cross_entropy, e_lambda=2.0, gamma=0.7)
            elif head == "growing":
                align(method, net)
                if other.checkpoint is not None:  # rows that did not exist at the anchor are free: their Fisher is zero
                    other.checkpoint = net.get_params().data.clone().where(other.fish == 0, other.checkpoint)
            trained(method, batches(task), None if adamw else sgd(method, LR))
            for x, y in batches(task):
                other.observe(x, y, x, epoch=0)
            weights = max(weights, difference(parameters(method), parameters(net)))
            method.end(exp)
            now = 2 * task, 2 * task + 2
            columns = slice(*now) if masked else slice(0, len(method.head.space))
            if cut_fisher:
                net.columns = columns
            whole: Any = exp.data
            shift = now[0] if cut_fisher and masked else 0
            loader = [(x, y - shift) for x, y in zip(whole.x.split(SIZE), whole.y.split(SIZE), strict=True)]
            other.end_task(Namespace(train_loader=loader))
            net.columns = None
            if head == "growing" and not masked:
                break  # the second task's softmax would have units of classes to come in the official code, see ER
        anchor: Any = method.anchors[0]
        fisher = dict(zip(anchor.names, [getattr(anchor, f"fisher{k}") for k in range(len(anchor.names))], strict=True))
        official = dict(zip([n for n, _ in net.named_parameters()], other.fish.split([p.numel() for p in net.parameters()]),
                            strict=True))  # type: ignore[union-attr]
        pairs = [(fisher[f"backbone.model.{n[5:]}"] if n.startswith("body.") else fisher[f"head.{n[11:]}"], f)
                 for n, f in official.items()]
        off = max(float((a.flatten() - b[: a.numel()]).abs().max()) for a, b in pairs)
        return weights, off

    if head == "growing":
        weights, fisher = run(True, True)
        return [Row("EWC-online masked", "weights of two tasks, growing head, each task among its own classes", weights, BOUND),
                Row("EWC-online masked", "Fisher after two tasks, the official network's columns cut to the trained ones",
                    fisher, BOUND)]
    weights, fisher = run(False, False)
    return [
        Row("EWC-online", "weights of two tasks, head with all classes from the start, both with SGD", weights, BOUND),
        Row("EWC-online", "Fisher after two tasks", fisher, BOUND),
        Row("EWC-online masked", "Fisher, official as shipped", run(True, False)[1], 1e-6,
            "its Fisher is of the softmax over all units, where the loss was among the task's own"),
        Row("EWC-online", "weights with our optimizer", run(False, False, adamw=True)[0], 1e-6, "AdamW in place of SGD"),
    ]


def lwf(head: str) -> list[Row]:
    """LwF (``variant=mammoth``): old answers taken after the warm-up, cross-entropy over the classes seen."""

    def run(variant: str) -> float:
        method = made("lwf", variant=variant, strength=0.5, lr=LR, batch_size=SIZE)
        net: Plain | None = None
        other: Any = None
        most = 0.0
        for task, exp in enumerate(TASKS):
            ready(method, exp, WHOLE if head == "allocated" else None)
            if net is None:
                net = twin(method)
                other = theirs("lwf", net, F.cross_entropy, alpha=0.5, softmax_temp=2.0)
            elif head == "growing":
                align(method, net)
            other._current_task, other._n_past_classes, other._n_seen_classes = task, 2 * task, 2 * task + 2
            data: Any = exp.data
            kept = _Indexed(data.x, data.y)
            loader = _Loader(kept, [(x, y) for x, y in batches(task)])
            other.begin_task(Namespace(train_loader=loader))
            epochs = [batches(task)] * method.epochs_for(exp) if task else [batches(task)]
            epochs = epochs[: 2 if task else 1]
            for epoch, parts in enumerate(epochs):
                with mock.patch.object(type(method), "current_epoch", epoch):
                    method.on_train_epoch_start()
                    trained(method, parts, sgd(method, LR))
            for k, (x, y) in enumerate(batches(task)):
                logits = kept.logits[SIZE * k : SIZE * (k + 1)] if task else None
                other.observe(x, y, x, logits=logits, epoch=0)
            method.end(exp)
            most = max(most, difference(parameters(method), parameters(net)))
        return most

    what = "weights after two tasks with a warm-up before the second, both with SGD, "
    if head == "allocated":
        return [Row("LwF variant=mammoth", what + "head with all classes from the start", run("mammoth"), BOUND)]
    return [Row("LwF variant=mammoth", what + "growing head", run("mammoth"), BOUND),
            Row("LwF variant=paper", what + "growing head", run("paper"), 1e-6,
                "cross-entropy among the new classes, old answers from before the warm-up")]


class _Indexed:
    """A data set as Mammoth's: (augmented, label, plain) by index; it hangs the old answers on it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.data, self.targets = x, y
        self.extra_return_fields: tuple[str, ...] = ()
        self.logits = torch.zeros(0)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.data[k], self.targets[k], self.data[k]


class _Loader(list):
    def __init__(self, dataset: _Indexed, parts: Any) -> None:
        super().__init__(parts)
        self.dataset = dataset


__all__ = ["rows"]
