"""GPM's and TRGP's functions beside ours, on a small network with the layers that their code expects."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cl_bench import Batch, Experience, LabelSpace, Method, TensorData

from .checkouts import Row, importable
from .toys import difference, made, ready, trained

STAND_INS = ("torchvision", "matplotlib", "seaborn", "pandas")
IMAGES, PIXELS, LR, BATCH = 125, 10, 0.05, 25
CHANNELS, KERNELS, WIDTHS = (3, 4, 5, 6), (4, 3, 2), (24, 8, 7)
SAMPLES = (24, 100, 100, 125, 125)
BOUND, FIRST = 1e-12, 0.9


class Affine(nn.Module):
    """In place of the official BatchNorm, which answers with the statistics of the batch: its weights and biases alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


class Net(nn.Module):
    """Three convolutions and two linear layers, built of the given classes."""

    def __init__(self, conv: Any, linear: Any) -> None:
        super().__init__()
        for k in range(3):
            setattr(self, f"conv{k + 1}", conv(CHANNELS[k], CHANNELS[k + 1], KERNELS[k], bias=False))
            setattr(self, f"bn{k + 1}", Affine(CHANNELS[k + 1]))
        for k in range(2):
            setattr(self, f"fc{k + 1}", linear(WIDTHS[k], WIDTHS[k + 1], bias=False))
            setattr(self, f"bn{k + 4}", Affine(WIDTHS[k + 1]))
        self.act: OrderedDict[str, Tensor] = OrderedDict()

    def features(self, x: Tensor, *spaces: Any) -> Tensor:
        for k in range(5):
            name = ("conv1", "conv2", "conv3", "fc1", "fc2")[k]
            x = x.flatten(1)[:, : WIDTHS[0]] if k == 3 else x
            self.act[name] = x
            given = {key: space[k] for key, space in zip(("space1", "space2"), spaces, strict=False)}
            x = torch.relu(getattr(self, f"bn{k + 1}")(getattr(self, name)(x, **given)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Official(Net):
    """The same with a head per task, and what their functions ask of a network."""

    def __init__(self, conv: Any, linear: Any, spaces: bool) -> None:
        super().__init__(conv, linear)
        self.fc3 = nn.ModuleList(nn.Linear(WIDTHS[-1], 2, bias=False) for _ in range(2))
        sizes = [PIXELS]
        for kernel in KERNELS[:2]:
            sizes.append(sizes[-1] - kernel + 1)
        self.map, self.ksize, self.in_channel = [*sizes, *WIDTHS[:2]], list(KERNELS), list(CHANNELS[:3])
        self.spaces = spaces

    def forward(self, x: Tensor, space1: Any = (None,) * 5, space2: Any = (None,) * 5) -> list[Tensor]:  # type: ignore[override]
        features = self.features(x, space1, space2) if self.spaces else self.features(x)
        return [head(features) for head in self.fc3]


def task(k: int) -> Experience:
    """Two classes of images, in random order; the second task's differ from the first's."""
    g = torch.Generator().manual_seed(k)
    y = torch.randint(2, (IMAGES,), generator=g)
    pattern = torch.randn(4, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(50))[2 * k : 2 * k + 2]
    x = pattern[y] + 0.5 * torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=g)
    return Experience(f"task {k}", LabelSpace((2 * k, 2 * k + 1)), TensorData(x, y + 2 * k))


def start(kind: str, module: Any, official: Official, **kw: Any) -> Method:
    """Our method with their weights, taking inputs in their order."""
    net = Net(nn.Conv2d, nn.Linear)
    net.load_state_dict({k: v for k, v in official.state_dict().items() if "scale" not in k and "fc3" not in k}, strict=True)
    method = made(kind, net, WIDTHS[-1], lr=LR, batch_size=BATCH, threshold=FIRST, threshold_step=0.003, images=SAMPLES, **kw)
    method.sample = lambda exp: [Batch(exp.data.x[:IMAGES], exp.data.y[:IMAGES])]  # type: ignore[method-assign, assignment]
    return method


def heads(method: Method, official: Official, k: int) -> None:
    """Our head's rows of task k, as theirs are; without bias, as theirs."""
    head: Any = method.head
    with torch.no_grad():
        head.weight[2 * k : 2 * k + 2].copy_(official.fc3[k].weight)  # type: ignore[union-attr, arg-type]
        head.bias.zero_()
    head.bias.requires_grad_(False)


def parts(exp: Experience) -> list[Batch]:
    data: Any = exp.data
    return [Batch(x, y) for x, y in zip(data.x.split(BATCH), data.y.split(BATCH), strict=True)] * 2


def weights(side: Any) -> list[Tensor]:
    """Of the five layers."""
    net = side.backbone.model if isinstance(side, Method) else side
    return [getattr(net, name).weight for name in ("conv1", "conv2", "conv3", "fc1", "fc2")]


def spans(bases: Any) -> list[Tensor]:
    """Projectors, which tell spaces apart whatever the signs of their directions."""
    found = [torch.as_tensor(b.detach() if isinstance(b, Tensor) else b).double() for b in bases]
    return [b @ b.T for b in found]


def turned(space: Tensor, scale: Tensor) -> Tensor:
    """S (Q - I) S^T, the same whatever the signs of the directions S."""
    k = space.shape[1]
    return space @ (scale.detach()[:k, :k] - torch.eye(k)) @ space.T


def gpm(tree: Path) -> list[Row]:
    """GPM's training, inputs and bases over two tasks."""
    with importable(tree, STAND_INS):
        torch.set_default_dtype(torch.float64)
        module: Any = importlib.import_module("main_cifar100")
    torch.manual_seed(11)
    official = Official(nn.Conv2d, nn.Linear, spaces=False)
    method = start("gpm", module, official)
    args, cpu, criterion = Namespace(batch_size_train=BATCH), torch.device("cpu"), nn.CrossEntropyLoss()
    held: list[Any] = []
    rows = list[Row]()
    for k in range(2):
        exp = task(k)
        data: Any = exp.data
        ready(method, exp)
        heads(method, official, k)
        trained(method, parts(exp))
        with mock.patch("numpy.random.shuffle", lambda r: None), mock.patch("builtins.print", lambda *a: None):
            optimizer = torch.optim.SGD(official.parameters(), lr=LR)
            for _ in range(2):
                if k == 0:
                    module.train(args, official, cpu, data.x, data.y - 2 * k, optimizer, criterion, k)
                else:
                    projectors = [torch.as_tensor(u @ u.T) for u in held]
                    module.train_projected(args, official, cpu, data.x, data.y - 2 * k, optimizer, criterion, projectors, k)
            inputs = module.get_representation_matrix(official, cpu, data.x, data.y)
            held = module.update_GPM(official, inputs, [FIRST + 0.003 * k] * 5, held)
        method.end(exp)
        rows.append(Row("GPM", f"weights after {10} steps of task {k + 1}" + (", gradients projected" if k else ""),
                        difference(weights(method), weights(official)), BOUND))
        rows.append(Row("GPM", f"bases after task {k + 1}: projectors", difference(spans(method.bases), spans(held)), 1e-9))
        sizes = [int(b.shape[1]) for b in held]
        rows.append(Row("GPM", f"directions per layer after task {k + 1}: {', '.join(map(str, sizes))}",
                        float(sum(abs(b.shape[1] - s) for b, s in zip(method.bases, sizes, strict=True))), 0.0))
    return rows


def trgp(tree: Path) -> list[Row]:
    """TRGP's regimes, scaled weights and steps; CUBER where no old task's gradient agrees."""
    with importable(tree, STAND_INS):
        torch.set_default_dtype(torch.float64)
        module: Any = importlib.import_module("main_cifar100")
    module.log, module.print_log = None, lambda *a, **kw: None

    def run(trained_affine: bool = False, plain: bool = True) -> dict[str, float]:
        """``plain``: our inputs, too, are taken through the weights without the task's scales."""
        torch.manual_seed(11)
        official = Official(module.Conv2d, module.Linear, spaces=True)
        method = start("cuber", module, official, epsilon1=module.Eplison_1, epsilon2=2.0)  # above every cosine
        statistics: Any = method.statistics  # type: ignore[attr-defined]
        if plain:
            method.statistics = lambda exp, run: statistics(exp, method.backbone.forward_features)  # type: ignore[assignment]
        args, cpu, criterion = Namespace(batch_size_train=BATCH), torch.device("cpu"), nn.CrossEntropyLoss()
        memory: dict[str, Any] = {}
        names, all_spaces, found = [f"cifar100-{k}" for k in range(2)], list[Any](), dict[str, float]()
        for k in range(2):
            exp = task(k)
            data: Any = exp.data
            y = data.y - 2 * k
            slots = "space_list", "grad_list", "regime", "selected_task"
            memory[names[k]] = {str(i): {slot: {} for slot in slots} for i in range(6)}
            with mock.patch("numpy.random.shuffle", lambda r: None), mock.patch("builtins.print", lambda *a: None):
                normal = [p for n, p in official.named_parameters() if "scale" not in n]
                scales = [p for n, p in official.named_parameters() if "scale" in n]
                optimizer = torch.optim.SGD([{"params": normal}, {"params": scales, "lr": LR}], lr=LR)
                optimizer.zero_grad = partial(optimizer.zero_grad, set_to_none=False)  # type: ignore[method-assign]
                if k == 0:
                    ready(method, exp)
                    heads(method, official, k)
                    for _ in range(2):
                        module.train(args, official, cpu, data.x, y, optimizer, criterion, k)
                    trained(method, parts(exp))
                    found["first"] = difference(weights(method), weights(official))
                else:
                    for name, p in official.named_parameters():
                        if name.startswith("bn"):
                            p.requires_grad_(trained_affine)
                            p.grad = torch.zeros_like(p)
                    module.grad_proj_cond(args, official, data.x, y, memory, names[k], k, names, cpu, optimizer, criterion)
                    mine = memory[names[k]]
                    old = memory[names[0]]
                    space = [torch.as_tensor(old[str(i)]["space_list"]) if mine[str(i)]["regime"][0] == "2" else None
                             for i in range(5)]
                    regimes = [int(mine[str(i)]["regime"][0]) for i in range(5)]
                    ready(method, exp)
                    heads(method, official, k)
                    found["regimes"] = float(sum(method.regimes[i, 0] != r for i, r in enumerate(regimes)))
                    found["strong"] = regimes.count(2)
                    projectors = [torch.as_tensor(u @ u.T) for u in all_spaces]
                    for _ in range(2):
                        module.train_projected_regime(args, official, cpu, data.x, y, optimizer, criterion, memory, names[k],
                                                      names, all_spaces, k, projectors, 1, space1=space, space2=[None] * 5)
                    trained(method, parts(exp))
                    found["weights"] = difference(weights(method), weights(official))
                    layers = ("conv1", "conv2", "conv3", "fc1", "fc2")
                    at = [i for i in range(5) if f"1_{i}_0" in method.scales]
                    own = [turned(method.subspace(i, 0), method.scales[f"1_{i}_0"]) for i in at]
                    theirs = [turned(torch.as_tensor(old[str(i)]["space_list"]), getattr(official, layers[i]).scale1)
                              for i in at]
                    found["scales"], found["number"] = difference(own, theirs), len(at)
                inputs, grads = module.get_representation_and_gradient(args, official, cpu, optimizer, criterion, k, data.x, y)
                all_spaces = module.get_space_and_grad(args, official, inputs, grads, [FIRST + 0.003 * k] * 5, memory, names[k],
                                                       names, k, all_spaces)
            method.end(exp)
            if k == 0:
                found["bases"] = difference(spans(method.bases), spans(all_spaces))
            elif not trained_affine:
                own = [method.subspace(i, 1) for i in range(5)]
                theirs = [memory[names[1]][str(i)]["space_list"] for i in range(5)]
                found["own"] = float(sum(abs(a.shape[1] - b.shape[1]) for a, b in zip(own, theirs, strict=True)))
                found["own_span"] = difference(spans(own), spans(theirs))
                found["joint"] = float(max(a.shape[1] - b.shape[1] for a, b in zip(method.bases, all_spaces, strict=True)))
        return found

    f, affine, scaled = run(), run(trained_affine=True), run(plain=False)
    same = "CUBER as TRGP (no old gradient agrees)"
    return [
        Row(same, "weights after 10 steps of task 1", f["first"], BOUND),
        Row(same, "bases after task 1: projectors", f["bases"], 1e-9),
        Row(same, f"regimes of the five layers, {f['strong']:.0f} strongly related", f["regimes"],
            0.0 if f["strong"] else -1.0),
        Row(same, "weights after 10 steps of task 2 through scaled weights, gradients projected", f["weights"], BOUND),
        Row(same, f"what {f['number']:.0f} scale matrices do to a weight, after them", f["scales"],
            BOUND if f["number"] else -1.0),
        Row(same, "directions of task 2's own space, its inputs taken through the weights without scales", f["own"], 0.0),
        Row(same, "task 2's own space, likewise: projectors", f["own_span"], 1e-9),
        Row(same, "task 2's own space: projectors", scaled["own_span"], 1e-9,
            "TRGP takes a task's inputs through the weights without its scales, CUBER here through those that it uses"),
        Row(same, "directions of the joint space after task 2, the most in one layer", f["joint"], 0.0,
            "TRGP leaves a task's first new direction out of the joint space"),
        Row(same, "weights where the official code goes on training norm parameters", affine["weights"], 1e-9,
            "TRGP stops freezing weights and biases of norms after the first task, GPM and CUBER here do not"),
    ]
