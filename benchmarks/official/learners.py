"""Official learners themselves on the embedded ViT and Split-Digits, fed with the batches that ours was fed with."""

from __future__ import annotations

import copy
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import timm.layers.helpers
import timm.models.vision_transformer
import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, Method, Scenario
from cl_bench.data.tensor import as_float
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.registry import find

from .checkouts import Row, importable
from .shipped import STATE, shuffled, unaligned
from .toys import difference

DOUBLE, SINGLE = Compute("cpu", "64-true"), Compute("cpu")
STAND_INS = ("timm.models.registry", "timm.models.helpers", "datasets", "tqdm", "torchvision", "inc_net")


def embedded() -> Backbone:
    """The embedded ViT in double precision, without the letters' classifier; images enter as the float32 that they are."""
    made: Backbone = find("cl_bench.backbones", "glyph_vit")()
    made.head, made.classes = None, ()
    return made.double()


def looking(vit: Any) -> Any:
    """An official transformer behind our preprocessing."""
    see = embedded().preprocess
    vit.patch_embed.register_forward_pre_hook(lambda module, given: (see(given[0]),))
    return vit


def digits(tasks: int = 3, per_class: int = 12) -> tuple[list[Experience], Tensor]:
    """Experiences of two digits, and test images of all of them."""
    scenario: Scenario = find("cl_bench.scenarios", "split_digits")(per_class=per_class, order=list(range(10)))
    found, count = scenario.test_sets()[:tasks], 1000 if STATE.on else 20
    tests = torch.cat([t.data.x[:count] for t in found])  # type: ignore[attr-defined]
    STATE.labels = torch.cat([t.data.y[:count] for t in found])  # type: ignore[attr-defined]
    return list(scenario.experiences()[:tasks]), as_float(tests)


class Recorded:
    """Our method on one experience after another; what its steps were given, epoch by epoch."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, **kw: Any) -> None:
        torch.manual_seed(max(0, STATE.seed))
        self.dtype = dtype
        self.method: Method = find("cl_bench.methods", name)(embedded().to(dtype), **kw)
        self.widen()
        self.epochs: list[list[Batch]] = []
        step = self.method.training_step

        def watched(batch: Batch, batch_idx: int) -> Any:
            if batch_idx == 0:
                self.epochs.append([])
            self.epochs[-1].append(Batch(batch.x.detach().clone(), batch.y.clone()))
            return step(batch, batch_idx)

        self.method.__dict__["training_step"] = watched

    def widen(self) -> None:
        """All of it in double precision; in single precision what a method keeps in double stays so."""
        if self.dtype == torch.float64:
            self.method.double()

    def learn(self, exp: Experience, seed: int, before: Any = None) -> None:
        """``before`` is called between ``begin`` and the first step."""
        self.epochs.clear()
        begin = self.method.begin

        def begun(e: Experience) -> None:
            begin(e)
            self.widen()
            for module in self.method.modules():
                if isinstance(getattr(module, "dropout", None), float) and not STATE.on:
                    module.dropout = 0.0  # type: ignore[assignment]
            if before is not None:
                with unaligned():
                    before()

        self.method.__dict__["begin"] = begun
        fit(self.method, exp, DOUBLE if self.dtype == torch.float64 else SINGLE, seed + 1000 * max(0, STATE.seed))
        self.method.__dict__.pop("begin")
        self.widen()


def together(name: str, stand_in: Any) -> Any:
    """A patch that makes both sides draw the same; nothing where each draws for itself."""
    return nullcontext() if STATE.on else mock.patch(name, stand_in)


class Epochs:
    """A loader that gives the recorded epochs, one per walk, as (index, images, labels)."""

    def __init__(self, epochs: list[list[Batch]]) -> None:
        self.epochs = [list(e) for e in epochs]
        self.left = iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs[0])

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        if STATE.on:  # a walk of its own; one more than ours where its training asks for more
            epoch = shuffled(next(self.left, self.epochs[-1]))
            return iter([(k, x, y) for k, (x, y) in enumerate(epoch)])
        return iter([(k, b.x, b.y) for k, b in enumerate(next(self.left))])


def whole(exp: Experience) -> list[tuple[int, Tensor, Tensor]]:
    """All images of an experience in one batch, in order."""
    data: Any = exp.data
    return [(0, as_float(data.x), data.y)]


class Trunk(nn.Module):
    """Our backbone where theirs would be: images in, features out (in a dictionary where theirs answers so)."""

    def __init__(self, backbone: Backbone, named: bool = False) -> None:
        super().__init__()
        self.body, self.named = backbone, named

    def forward(self, x: Tensor, **kw: Any) -> Any:
        features = self.body.forward_features(x)
        return {"features": features} if self.named else features


def bare(cls: Any, **attributes: Any) -> Any:
    """A learner without what its constructor asks of the whole program."""
    made = object.__new__(cls)
    if isinstance(made, nn.Module):
        nn.Module.__init__(made)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Inside, ``.cuda()`` and ``.to(device="cuda")`` stay where they are."""
    real = Tensor.to

    def to(self: Tensor, *args: Any, **kw: Any) -> Tensor:
        if kw.get("device") == "cuda":
            kw["device"] = "cpu"
        return real(self, *args, **kw)

    def cuda(self: Tensor, *args: Any, **kw: Any) -> Tensor:
        return self.clone() if self.requires_grad and self.is_leaf else self  # as there, what comes back is no leaf

    whole = mock.patch.object(nn.Module, "cuda", lambda self, *a: self)
    with mock.patch.object(Tensor, "cuda", cuda), whole, mock.patch.object(Tensor, "to", to):
        yield


@contextmanager
def modules(tree: Path, *names: str, empty: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> Iterator[list[Any]]:
    """Official modules by name, in double precision; ``more`` that are only imported and not used."""
    sys.modules |= {"timm.models.layers": timm.layers, "timm.models.layers.helpers": timm.layers.helpers}  # their older names
    with importable(tree, (*STAND_INS, *more), empty):
        torch.set_default_dtype(torch.float64)
        yield [importlib.import_module(name) for name in names]


def ncm(tree: Path) -> list[Row]:
    """PILOT's SimpleCIL: prototypes and cosine logits after three experiences."""
    experiences, tests = digits()
    with modules(tree, "models.simplecil", "backbone.linears", empty=("models", "utils", "backbone"),
                 more=("utils.inc_net", "models.base")) as (module, linears):
        ours = Recorded("ncm")
        fc = linears.CosineLinear(64, 6)
        network = bare(nn.Module, backbone=Trunk(copy.deepcopy(ours.method.backbone)), fc=fc)
        learner = bare(module.Learner, _network=network, _device=torch.device("cpu"))
        for k, exp in enumerate(experiences):
            ours.learn(exp, k)
            learner.train_dataset = Namespace(labels=exp.data.y.numpy())  # type: ignore[attr-defined]
            learner.replace_fc(whole(exp), network, None)
    with torch.no_grad():
        mine = ours.method.predict(tests, ours.method.seen)
        theirs = fc(network.backbone(tests))["logits"]
    head: Any = ours.method.head
    return [Row("ncm (PILOT, SimpleCIL)", "prototypes", difference([head.sums / head.counts[:, None]], [fc.weight.data]), 2e-6),
            Row("ncm (PILOT, SimpleCIL)", "logits of 60 test images", difference([mine], [theirs]), 2e-6)]


def ranpac(tree: Path) -> list[Row]:
    """RanPAC's statistics, ridge and head after three experiences, without a first session."""
    rows = list[Row]()
    for kind, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        experiences, tests = digits(per_class=100)  # more images than features: else small ridges tie
        with modules(tree, "RanPAC", "utils.toolkit") as (module, _), on_the_cpu():
            torch.set_default_dtype(dtype)
            ours = Recorded("ranpac", dtype, m=60, pet="none", selection=kind)
            fc: Any = Namespace(weight=nn.Parameter(torch.zeros(6, 60)), W_rand=None, use_RP=True)
            convnet = Trunk(copy.deepcopy(ours.method.backbone))
            network: Any = Namespace(fc=fc, convnet=lambda x, of=convnet, dtype=dtype: of(x).to(dtype))
            network.eval = lambda network=network: network
            project: Any = ours.method.project.to(dtype) if not STATE.on else torch.randn(64, 60)
            learner = bare(module.Learner, _network=network, args={"use_RP": True, "M": 60}, total_classnum=6, is_dil=False,
                           W_rand=project)
            torch.set_default_dtype(dtype)
            learner.Q, learner.G = torch.zeros(60, 6), torch.zeros(60, 60)
            wrong, ridges = 0, []
            chosen = learner.optimise_ridge_parameter
            learner.optimise_ridge_parameter = lambda f, y, chosen=chosen, kept=ridges: kept.append(chosen(f, y)) or kept[-1]
            one_hot = module.target2onehot
            module.target2onehot = lambda y, n, one_hot=one_hot, dtype=dtype: one_hot(y, n).to(dtype)
            for k, exp in enumerate(experiences):
                with together("torch.randperm", lambda n, **kw: torch.arange(n)):  # whose last fifth chooses the ridge
                    ours.learn(exp, k)
                torch.set_default_dtype(dtype)
                _, x, y = whole(exp)[0]
                learner.replace_fc([(0, *(shuffled([(x, y)])[0] if STATE.on else (x, y)))])
                wrong += ours.method.ridge != float(ridges[-1])
            with torch.no_grad():
                mine = ours.method.predict(tests, ours.method.seen)
                h = torch.relu(convnet(tests).to(dtype) @ project)
                theirs = h @ fc.weight.data.T
        apart = difference([mine], [theirs]) / float(mine.abs().max())
        told = ", ".join(f"{r:.0e}" for r in ridges)
        rows += [Row(f"ranpac, selection={kind}", f"ridges of three experiences that differ ({told})", float(wrong), 0.0),
                 Row(f"ranpac, selection={kind}", "logits of 60 test images, of the largest", apart,
                     2e-6 if kind == "float64" else 1e-3)]
    return rows


def slca(tree: Path) -> list[Row]:
    """SLCA's two stages over three experiences: slow training, statistics, alignment on the same draws."""
    experiences, tests = digits()
    rows = list[Row]()
    names = ("models.slca", "models.base", "convs.linears", "utils.inc_net")
    unused = "convs.cifar_resnet", "convs.resnet", "convs.vits"
    with modules(tree, *names, empty=("models", "convs"), more=unused) as (module, base, _, nets):
        ours = Recorded("slca", epochs=3, milestone=2, batch_size=8)
        net = bare(nets.FinetuneIncrementalNet, convnet=Trunk(copy.deepcopy(ours.method.backbone), named=True), fc=None,
                   old_fc=None, fc_scale_mu=-1)
        type(net).feature_dim = 64
        net.extract_vector = lambda x: net.convnet(x)["features"]
        learner = bare(module.SLCA, _network=net, _device=torch.device("cpu"), _multiple_gpus=[0], _known_classes=0,
                       task_sizes=[], bcb_lrscale=0.01, fix_bcb=False, log_path="", logit_norm=0.1, test_loader=None,
                       _compute_accuracy=lambda *a: 0.0, _class_means=None, data_memory=None)
        module.epochs, module.milestones, module.lrate, module.ca_epochs = 3, [2], 0.01, 5
        base.DataLoader = lambda parts, **kw: parts
        stage, bounds = {"body": 0.0, "head": 0.0, "means": 0.0, "roots": 0.0, "aligned": 0.0, "logits": 0.0}, {}
        for k, exp in enumerate(experiences):
            learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
            learner.task_sizes.append(2)
            noise: list[Tensor] = []
            randn = torch.randn

            def drawn(*size: Any, randn: Any = randn, noise: list[Tensor] = noise, **kw: Any) -> Tensor:
                noise.append(randn(*size, **kw))
                return noise[-1]

            def copy_rows(k: int = k) -> None:
                net.update_fc(2)
                head: Any = ours.method.head
                with torch.no_grad():
                    net.fc.heads[k][0].weight.copy_(head.weight[2 * k : 2 * k + 2])
                    net.fc.heads[k][0].bias.copy_(head.bias[2 * k : 2 * k + 2])

            def permuted(n: int, real: Any = torch.randperm, **kw: Any) -> Tensor:
                return torch.arange(n) if n >= 512 else real(n, **kw)  # of draws, not of images

            with mock.patch("torch.randn", drawn), together("torch.randperm", permuted):
                ours.learn(exp, k, copy_rows)
            learner._stage1_training(Epochs(ours.epochs), None)
            mine: Any = ours.method
            bodies = [list(b.model.parameters()) for b in (mine.backbone, net.convnet.body)]
            stage["body"] = max(stage["body"], difference(*bodies))
            rows_of = [torch.cat([h[0].weight for h in net.fc.heads]), torch.cat([h[0].bias for h in net.fc.heads])]
            stage["head"] = max(stage["head"], difference([mine.head.weight, mine.head.bias], rows_of))
            net.fc.backup()
            x, y = whole(exp)[0][1:]
            data = Namespace(get_dataset=lambda at, x=x, y=y, **kw: (None, None, [(0, x[y == int(at[0])], y[y == int(at[0])])]))
            net.convnet.body.model.eval()
            learner._compute_class_mean(data, check_diff=False, oracle=False)
            g = mine.gaussians
            stage["means"] = max(stage["means"], difference([g.means], [torch.as_tensor(learner._class_means)]))
            stage["roots"] = max(stage["roots"], difference([g.roots @ g.roots.transpose(1, 2)], [learner._class_covs]))
            if k:
                draws = iter([part[c] for part in noise if part.ndim == 3 for c in range(2 * k + 2)])

                class Normal:
                    def __init__(self, mean: Tensor, cov: Tensor) -> None:
                        self.mean, self.root = mean, torch.linalg.cholesky(cov.double())

                    def sample(self, sample_shape: Any, draws: Any = draws) -> Tensor:
                        return self.mean + next(draws) @ self.root.T

                module.MultivariateNormal = module.MultivariateNormal if STATE.on else Normal
                in_order = together("torch.randperm", lambda n, **kw: torch.arange(n))
                with in_order, mock.patch.object(Tensor, "float", lambda t: t):
                    learner._stage2_compact_classifier(2)
                got = [torch.cat([h[0].weight for h in net.fc.heads]), torch.cat([h[0].bias for h in net.fc.heads])]
                stage["aligned"] = max(stage["aligned"], difference([mine.aligned.weight, mine.aligned.bias], got))
            with torch.no_grad():
                stage["logits"] = max(stage["logits"], difference([mine.predict(tests, mine.seen)], [net(tests)["logits"]]))
            net.fc.recall()
    told = {"body": "backbone after stage 1 of each of three experiences", "head": "heads after stage 1, old ones frozen",
            "means": "class means", "roots": "class covariances", "aligned": "aligned heads after 5 epochs on the same draws",
            "logits": "logits of 60 test images after each experience"}
    bounds = {"roots": 1e-5, "aligned": 1e-5, "logits": 1e-5}
    rows += [Row("slca", told[key], value, bounds.get(key, 2e-6)) for key, value in stage.items()]
    return rows
