"""SEMA's learner itself beside ours: when it expands, experts, routers and descriptors, and answers."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cl_bench import Batch

from .aper import VIT
from .checkouts import Row
from .ease import Bar, split_qkv
from .learners import Epochs, Recorded, bare, digits, embedded, looking, modules, on_the_cpu
from .shipped import STATE, unaligned
from .toys import difference

BATCH, SCAN, MEMORY, EPOCHS, DESCRIBED, THRESHOLD = 8, 128, 48, 2, 6, 0.9


class Loader(Epochs):
    """Recorded walks over the data; the official learner makes another loader of its ``dataset``."""

    dataset = None


def sema(tree: Path) -> list[Row]:
    """Three experiences. A scan sees all images in one batch, so that both sides scan the same; the record is as long as two
    epochs of descriptors, so that what the official code records in its other phase has left it."""
    names = "models.sema", "backbone.vit_sema", "backbone.sema_block", "utils.inc_net"
    with modules(tree, *names, empty=("models", "backbone", "utils"), more=("models.base",)) as found, on_the_cpu():
        return compared(*found)


def compared(module: Any, vits: Any, blocks: Any, nets: Any) -> list[Row]:
    experiences, tests = digits()
    ours = Recorded("sema", epochs=EPOCHS, batch_size=BATCH, r=8, memory=MEMORY, expandable=2, threshold=THRESHOLD, lr=0.05,
                    descriptor_epochs=DESCRIBED, scan_size=SCAN)
    method: Any = ours.method
    config = Namespace(ffn_adapt=True, ffn_option="parallel", ffn_adapter_layernorm_option="none", vpt_on=False, vpt_num=0,
                       ffn_adapter_init_option="lora", ffn_adapter_scalar="1.0", ffn_num=8, d_model=64, rd_dim=10,
                       buffer_size=MEMORY, exp_threshold=THRESHOLD, adapt_start_layer=1, adapt_end_layer=2)
    vit = looking(vits.VisionTransformer(**VIT, tuning_config=config))
    told = vit.load_state_dict(split_qkv(embedded().model.state_dict()), strict=False)
    for name, p in vit.named_parameters():
        p.requires_grad_(name in told.missing_keys)
    net = bare(nets.SEMAVitNet, backbone=vit, fc=nn.Linear(64, 6))
    args = {"optimizer": "sgd", "func_epoch": EPOCHS, "rd_epoch": DESCRIBED, "rd_lr": 0.01, "detect_batch_size": SCAN,
            "init_lr": 0.05, "weight_decay": 5e-4, "min_lr": 0.0}
    learner = bare(module.Learner, _network=net, _device=torch.device("cpu"), args=args, init_lr=0.05,
                   _compute_accuracy=lambda model, loader: model.eval() and 0.0)
    module.tqdm = Bar
    walks, fresh = list[tuple[int, list[Batch]]](), list[tuple[int, Any]]()
    walk, train, scan = method.shuffled, method.fit_loop, method.scan
    mixtures = [m.adapter_module for m in vit.blocks]

    def shuffled(exp: Any, size: int) -> Iterator[Batch]:
        walks.append((size, list(walk(exp, size))))
        return iter(walks[-1][1])

    def fit_loop(exp: Any, parameters: Any, loss: Any, *how: Any) -> None:
        at = method.grown[-1] if method.grown else -1
        if method.grown and at not in [k for k, _ in fresh]:
            fresh.append((at, copy.deepcopy(method.mixtures[at].experts[-1])))
        train(exp, parameters, loss, *how)

    method.__dict__.update(shuffled=shuffled, fit_loop=fit_loop)
    add = blocks.SEMAModules.add_adapter

    def added(self: Any, initialize: bool = False) -> None:
        add(self, initialize)
        if not initialize and not STATE.on:
            same(dict(fresh)[self.layer_id], self.adapters[-1], self.new_router, 0)

    found = {"experts": 0.0, "descriptors": 0.0, "routers": 0.0, "records": 0.0, "head": 0.0, "logits": 0.0}
    wrong, grown = 0, list[str]()
    for k, exp in enumerate(experiences):
        learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
        walks.clear()
        fresh.clear()
        known = 2 * k + 2

        def rows(known: int = known) -> None:
            with unaligned(), torch.no_grad():
                net.fc.weight[known - 2 : known] = method.head.weight[known - 2 : known]
                net.fc.bias[known - 2 : known] = method.head.bias[known - 2 : known]

        def first(known: int = known) -> None:
            rows(known)
            for mine, theirs in zip(method.mixtures, mixtures, strict=True):
                same(mine.experts[0], theirs.adapters[0], theirs.router, 0)

        def scanned(exp: Any, rows: Any = rows, done: list[int] = [], k: int = k) -> Any:  # noqa: B006
            if k not in done:  # the first look, before anything of this experience was trained
                done.append(k)
                rows()
            return scan(exp)

        method.__dict__["scan"] = scanned
        ours.learn(exp, k, first if k == 0 else None)
        trained = [parts for size, parts in walks if size == BATCH]
        steps = [*ours.epochs, *trained] if not method.grown else trained
        module.DataLoader = lambda data, held=[p for s, p in walks if s == SCAN], **kw: Epochs(held) if held else None
        with mock.patch.object(blocks.SEMAModules, "add_adapter", added):
            learner._train(Loader(steps), None)
        net.eval()
        for mine, theirs in zip(method.mixtures, mixtures, strict=True):
            wrong += len(mine.experts) != len(theirs.adapters)
            for at, (a, b) in enumerate(zip(mine.experts, theirs.adapters, strict=not STATE.on)):
                pairs = parts_of(a, b)
                found["experts"] = max(found["experts"], difference(*zip(*pairs[:4], strict=True)))
                if b.rd is not None:  # a block that cannot grow has no use for its router
                    row = [theirs.router.weight[at : at + 1], theirs.router.bias[at : at + 1]]
                    found["routers"] = max(found["routers"], difference([a.router.weight, a.router.bias], row))
                    found["descriptors"] = max(found["descriptors"], difference(*zip(*pairs[4:], strict=True)))
                    found["records"] = max(found["records"], difference([a.errors], [b.rd_loss_record.record]))
        grown.append("/".join(str(len(m.adapters)) for m in mixtures))
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias], [net.fc.weight, net.fc.bias]))
        with torch.no_grad():
            mine, theirs = method.predict(tests, method.seen), net(tests)["logits"][:, :known]
            found["logits"] = max(found["logits"], difference([mine], [theirs]))
    named = {"experts": "experts of three experiences", "descriptors": "their auto-encoders", "routers": "router rows",
             "records": "recorded errors", "head": "head", "logits": "logits of 60 test images after each experience"}
    return [Row("sema", f"blocks with another number of experts ({', '.join(grown)} after each experience)", float(wrong), 0.0),
            *(Row("sema", named[key], value, 1e-5 if key == "logits" else 2e-6) for key, value in found.items())]


def parts_of(mine: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Our expert's tensors and the official module's: four of the bottleneck, then four of the auto-encoder."""
    layers = [(mine.adapter.down, theirs.functional.down_proj), (mine.adapter.up, theirs.functional.up_proj)]
    if theirs.rd is not None:
        layers += [(mine.descriptor[0], theirs.rd.encoder), (mine.descriptor[1], theirs.rd.decoder)]
    return [both for a, b in layers for both in ((a.weight, b.weight), (a.bias, b.bias))]


def same(mine: Any, theirs: Any, router: Any, row: int) -> None:
    """Start the official module as ours started."""
    with torch.no_grad():
        for a, b in parts_of(mine, theirs):
            b.copy_(a)
        router.weight[row : row + 1] = mine.router.weight
        router.bias[row : row + 1] = mine.router.bias
