"""MOS's learner itself beside ours: adapters with and without its merge, alignment on the same draws, the look-up."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .aper import VIT
from .checkouts import Row
from .ease import Bar, pair, split_qkv
from .learners import Epochs, Recorded, bare, digits, embedded, looking, modules, on_the_cpu, together, whole
from .shipped import STATE, dropout
from .toys import difference


def mos(tree: Path) -> list[Row]:
    """Three experiences without merging and with the released merge; then a head on which the look-up runs in circles."""
    rows = list[Row]()
    unused = "models.base", "easydict"
    with (modules(tree, "models.mos", "backbone.vit_mos", "utils.inc_net", empty=("models", "backbone", "utils"), more=unused)
          as (module, vits, nets), on_the_cpu()):
        module.tqdm, module.DataLoader = Bar, lambda parts, **kw: parts
        for name, momentum in (("merge-free", 0.0), ("released merge", 0.1)):
            rows += compared(name, momentum, module, vits, nets)
    return rows


def compared(name: str, momentum: float, module: Any, vits: Any, nets: Any) -> list[Row]:
    experiences, tests = digits()
    config = Namespace(ffn_adapt=True, ffn_option="parallel", ffn_adapter_layernorm_option="none", vpt_on=False, vpt_num=0,
                       ffn_adapter_init_option="lora", ffn_adapter_scalar="0.1", ffn_num=8, d_model=64, _device="cpu",
                       adapter_momentum=momentum)
    ours = Recorded("mos", epochs=2, batch_size=8, r=8, merge=momentum)
    method: Any = ours.method
    vit = vits.VisionTransformer(**{**VIT, "num_classes": 6}, tuning_config=config)
    vit.load_state_dict(split_qkv(embedded().model.state_dict()), strict=False)
    looking(vit)
    vit.out_dim = 64
    for at, p in vit.named_parameters():
        p.requires_grad_("adapter" in at or "head" in at)
    net = bare(nets.MOSNet, backbone=vit, fc=None, _device="cpu")
    args = {"optimizer": "sgd", "scheduler": "cosine", "tuned_epoch": 2, "adapter_momentum": momentum, "reg": 0.1,
            "ca_storage_efficient_method": "covariance"}
    learner = bare(module.Learner, _network=net, _device="cpu", args=args, init_lr=0.03, weight_decay=5e-4, min_lr=0.0,
                   batch_size=8, crct_epochs=30, ca_lr=0.005, ensemble=True, topk=5, cls_mean={}, cls_cov={}, cls2task={})
    found = {"adapters": 0.0, "means": 0.0, "covariances": 0.0, "head": 0.0, "prototypes": 0.0, "answers": 0.0}
    drift = 0.0
    for k, exp in enumerate(experiences):
        learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
        learner.cls2task |= {2 * k: k, 2 * k + 1: k}
        net.update_fc(2 * k + 2)
        noise: list[Tensor] = []

        def copied(k: int = k) -> None:
            with torch.no_grad():
                vit.head.weight[2 * k : 2 * k + 2] = method.head.weight[2 * k : 2 * k + 2]
                vit.head.bias[2 * k : 2 * k + 2] = method.head.bias[2 * k : 2 * k + 2]
            for (_, mine), theirs in zip(method.adapters.each(method.adapters.names[-1]), vit.cur_adapter, strict=True):
                theirs.dropout = dropout()
                for a, b in zip(pair(theirs), (mine.down, mine.up), strict=True):
                    if k == 0:
                        a.load_state_dict(b.state_dict())

        def drawn(*size: Any, real: Any = torch.randn, kept: list[Tensor] = noise, **kw: Any) -> Tensor:
            kept.append(real(*size, **kw))
            return kept[-1]

        def permuted(n: int, real: Any = torch.randperm, **kw: Any) -> Tensor:
            return torch.arange(n) if n >= 80 else real(n, **kw)  # of draws, not of images

        with mock.patch("torch.randn", drawn), together("torch.randperm", permuted):
            ours.learn(exp, k, copied)
        optimizer = learner.get_optimizer(vit)
        learner._init_train(Epochs(ours.epochs), None, optimizer, learner.get_scheduler(optimizer))
        newest = [a for _, a in method.adapters.each(method.adapters.names[-1])]
        found["adapters"] = max(found["adapters"], difference(
            [p for a in newest for layer in (a.down, a.up) for p in layer.parameters()],
            [p for a in vit.cur_adapter for layer in pair(a) for p in layer.parameters()]))
        vit.adapter_update()
        x, y = whole(exp)[0][1:]
        images = Namespace(get_dataset=lambda at, x=x, y=y, **kw: (None, None, [(0, x[y == int(at[0])], y[y == int(at[0])])]))
        learner.data_manager, learner.train_loader_for_protonet = images, whole(exp)
        learner.train_dataset = Namespace(labels=y.numpy())
        with still(config):
            learner._compute_mean(vit)
        gaussians, total = method.gaussians, 2 * k + 2
        means, covariances = (torch.stack([held[c] for c in range(total)]) for held in (learner.cls_mean, learner.cls_cov))
        found["means"] = max(found["means"], difference([gaussians.means], [means]))
        found["covariances"] = max(found["covariances"], difference(
            [gaussians.roots @ gaussians.roots.transpose(1, 2)], [covariances]))
        if k:
            draws = iter([part[c] for part in noise if part.ndim == 3 for c in range(total)])

            class Normal:
                def __init__(self, mean: Tensor, cov: Tensor) -> None:
                    self.mean, self.root = mean, torch.linalg.cholesky(cov)

                def sample(self, sample_shape: Any, draws: Any = draws) -> Tensor:
                    return self.mean + next(draws) @ self.root.T

            module.MultivariateNormal = module.MultivariateNormal if STATE.on else Normal
            in_order = together("torch.randperm", lambda n, **kw: torch.arange(n))
            with in_order, mock.patch.object(Tensor, "float", lambda t: t):
                learner.classifer_align(vit)
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias], [vit.head.weight, vit.head.bias]))
        vit.eval()
        learner.replace_fc()
        found["prototypes"] = max(found["prototypes"], difference(
            [method.nearest.sums / method.nearest.counts[:, None]], [net.fc.weight.data]))
        with still(config):
            found["answers"] = max(found["answers"], difference([answers(method, tests)], [official(learner, tests)]))
        if momentum and k:
            before = [p.clone() for p in vit.cur_adapter.parameters()]
            held = [p.data for p in vit.cur_adapter.parameters()]
            with torch.no_grad():
                vit(tests, adapter_id=k, train=True)
            drift = max(drift, difference(before, list(vit.cur_adapter.parameters())))
            for p, value in zip(vit.cur_adapter.parameters(), held, strict=True):
                p.data = value
    told = {"adapters": "adapters of three experiences", "means": "class means", "covariances": "class covariances",
            "head": "head after 30 epochs of alignment on the same draws", "prototypes": "prototypes under the first adapter",
            "answers": "answers of 60 test images after each experience"}
    bounds = {"adapters": 2e-6, "means": 2e-6}
    rows = [Row(f"mos, {name}", told[key], value, bounds.get(key, 1e-5)) for key, value in found.items()]
    if momentum:
        rows.append(Row(f"mos, {name}", "the newest adapters after one more pass in evaluation mode", drift, 1e-6,
                        expected="as released every pass merges, those that only look as well; the rows above do without"))
        return rows
    return rows if STATE.on else [*rows, circles(method, learner, vit, tests)]


@contextmanager
def still(config: Any) -> Iterator[None]:
    """Inside, passes do not merge."""
    kept, config.adapter_momentum = config.adapter_momentum, 0.0
    try:
        yield
    finally:
        config.adapter_momentum = kept


def answers(method: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return method.predict(x, method.seen).exp()


def official(learner: Any, x: Tensor) -> Tensor:
    """The summed softmaxes of ``_eval_cnn``."""
    kept, real = [], torch.topk

    def watched(outputs: Tensor, **kw: Any) -> Any:
        kept.append(outputs)
        return real(outputs, k=1, dim=1)

    with mock.patch("torch.topk", watched):
        learner._eval_cnn([(0, x, torch.zeros(len(x), dtype=torch.int64))])
    return kept[0]


def circles(method: Any, learner: Any, vit: Any, tests: Tensor) -> Row:
    """A head under which an image's features by the first adapter name the second task, and by the second the first."""
    with torch.no_grad():
        one, two = (vit(tests[:1], adapter_id=t, train=False)["features"][0] for t in (0, 1))
        apart, middle = (one - two) / (one - two).norm(), (one + two) / 2
        head, bias = torch.zeros(6, 64), torch.full((6,), -1e3)
        head[2], head[0], bias[2], bias[0] = apart, -apart, -apart @ middle, apart @ middle
        for side in (method.head, vit.head):
            side.weight.copy_(head)
            side.bias.copy_(bias)
        near = method.nearest(vit(tests, adapter_id=0, train=False)["features"])
        heads = torch.stack([method.head(vit(tests, adapter_id=t, train=False)["features"]) for t in range(3)])
    look_up = type(method).predict.__globals__["look_up"]
    _, tried = look_up(near, heads, torch.tensor(method.task), method.lookups)
    round_and_round = int((tried[:, -1] >= 0).sum())
    if not round_and_round:
        raise ValueError("no image goes in circles")
    return Row("mos, look-up", f"answers on a head that sends {round_and_round} of 60 images in circles, four adapters tried",
               difference([answers(method, tests)], [official(learner, tests)]), 1e-5)
