"""LAE's module itself beside ours, with adapters, LoRA and prefixes."""

from __future__ import annotations

import sys
import types
from argparse import Namespace
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .aper import VIT
from .checkouts import Row
from .learners import Recorded, bare, digits, embedded, looking, modules
from .toys import difference

SETTINGS = {"adapter": ("Adapter", {"down_sample": 5, "mode": "parallel", "scale": None}),
            "lora": ("LoRA", {"rank": 5, "scale": None}),
            "prefix": ("Prefix", {"length": 10, "key_scale": None, "val_scale": None, "compensatory": True})}
UNUSED = ("absl", "omegaconf", "torchinfo", "torchmetrics", "hydra", "libml.data", "libml.utils", "libml.model.backbone.swin",
          "libml.model.backbone.convnext")


class Core:
    """What the official module takes from its trainer: a growing head, and the model's answer."""

    def setup_model(self: Any) -> None:
        self.model.head.append(2)

    def __call__(self: Any, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]


class Deaf:
    """A meter that nobody reads."""

    def update(self, *args: Any) -> None:
        return None

    reset = update

    def compute(self) -> float:
        return 0.0


class Absent:
    """Stands for networks that are not compared."""


def lae(tree: Path) -> list[Row]:
    """Online and offline parts, head and answers over three experiences of three epochs, the first of each frozen."""
    core = types.ModuleType("libml.core")
    core.__dict__.update(Module=Core, ModuleConf=object, Conf=object, DataModule=object, App=object)
    sys.modules["libml.core"] = core
    names = "main", "libml.model", "libml.model.backbone.vit", "libml.model.avg_token", "libml.optim.optimizer"
    with ExitStack() as stack:
        with mock.patch("dataclasses.dataclass", lambda cls=None, **kw: cls):  # its defaults are refused by newer Pythons
            main, model, vits, pools, optim = stack.enter_context(modules(tree, *names, more=UNUSED))
        main.SwinTransformer = main.ConvNeXt = Absent
        main.Accuracy = Deaf
        sys.modules["libml.model.misc.scaler"].Scaler.extra_repr = lambda self: ""  # a parameter has no format any more
        return [row for pet in SETTINGS for row in compared(pet, main, model, vits, pools, optim)]


def compared(pet: str, main: Any, model: Any, vits: Any, pools: Any, optim: Any) -> list[Row]:
    experiences, tests = digits()
    ours = Recorded("lae", pet=pet, epochs=3, batch_size=8, freeze_epochs=1, decay=0.9, lr=0.01)
    method: Any = ours.method
    vit = looking(vits.VisionTransformer(**{k: v for k, v in VIT.items() if k != "num_classes"}))
    vit.load_state_dict({k: v for k, v in embedded().model.state_dict().items() if not k.startswith("head")})
    head = model.DynamicSimpleHead(num_features=64, pool=pools.AvgToken(start=0, end=1))
    kind, how = SETTINGS[pet]
    cfg = Namespace(adapt_blocks=[0, 1, 2], pet_cls=kind, pet_kwargs=how, num_freeze_epochs=1, ema_decay=0.9, num_emas=1,
                    eval_only_emas=False)
    learner = bare(main.MyModule, cfg=cfg, model=bare(model.Model, backbone=vit, head=head), val_task_accs=defaultdict(Deaf),
                   val_task_local_accs=defaultdict(Deaf))
    found = {"online": 0.0, "offline": 0.0, "head": 0.0, "answers": 0.0}
    for k, exp in enumerate(experiences):
        learner.current_task = k
        learner.datamodule = Namespace(num_old_classes=2 * k, num_classes_of=lambda t: 2)
        learner.setup_model()
        main.unfreeze(learner.pets)

        def copied(k: int = k) -> None:
            with torch.no_grad():
                for mine, theirs in pairs(pet, method, "default", learner.pets) if k == 0 else ():
                    theirs.copy_(mine)
                head.classifiers[k].weight.copy_(method.head.weight[2 * k :])
                head.classifiers[k].bias.copy_(method.head.bias[2 * k :])

        ours.learn(exp, k, copied)
        optimizer = optim.create_optimizer(Namespace(algo="Adam", lr=0.01, weight_decay=0.0, kwargs={}), head, learner.pets)
        for learner.current_epoch, batches in enumerate(ours.epochs):
            learner.pre_train_epoch()
            for at, batch in enumerate(batches):
                optimizer.zero_grad()
                learner.train_step((batch.x, batch.y), at)[0].backward()
                optimizer.step()
                learner.post_train_step()
        found["online"] = max(found["online"], difference(*zip(*pairs(pet, method, "default", learner.pets), strict=True)))
        for ema in learner.pets_emas:
            found["offline"] = max(found["offline"], difference(*zip(*pairs(pet, method, "offline", ema.module), strict=True)))
        rows = [torch.cat([getattr(c, name) for c in head.classifiers]) for name in ("weight", "bias")]
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias], rows))
        kept: list[Tensor] = []
        learner.val_acc = Namespace(update=lambda out, target, kept=kept: kept.append(out))
        with torch.no_grad():
            mine = method.predict(tests, method.seen).exp()
            learner.eval_epoch([(tests, torch.zeros(len(tests), dtype=torch.int64), torch.zeros(len(tests)))])
        theirs = kept[0] if k else kept[0].softmax(1) if float(kept[0].sum(1).max()) > 1.5 else kept[0]
        found["answers"] = max(found["answers"], difference([mine], [theirs]))
    told = {"online": "online parts after each of three experiences", "offline": "their moving average", "head": "head",
            "answers": "answers of 60 test images after each experience"}
    return [Row(f"lae, {pet}", told[key], value, 1e-5 if key == "answers" else 2e-6) for key, value in found.items()]


def pairs(pet: str, method: Any, name: str, pets: Any) -> list[tuple[Tensor, Tensor]]:
    """Our tensors and the official module's, block by block."""
    mine = [a for _, a in method.adapters.each(name)]
    out: list[tuple[Tensor, Tensor]] = []
    if pet == "adapter":
        for a, p in zip(mine, pets, strict=True):
            down, _, up, scale = p.layer
            out += [(a.down.weight, down.weight), (a.down.bias, down.bias), (a.up.weight, up.weight), (a.up.bias, up.bias),
                    (a.scale, scale.scale)]
    elif pet == "lora":
        places = [(p, side) for p in pets for side in (0, 1)]
        for a, (p, side) in zip(mine, places, strict=True):
            out += [(a.A, p.lora_A[side]), (a.B, p.lora_B[side]), (a.gain, p.scale[side].scale)]
    else:
        for a, p in zip(mine, pets, strict=True):
            out += [(a.keys, p.key.tokens), (a.values, p.val.tokens), (a.key_scale, p.key.scaler.scale),
                    (a.value_scale, p.val.scaler.scale)]
    return out


