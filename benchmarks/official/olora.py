"""O-LoRA's layers and its trainer's step themselves beside ours, on the queries and values of the embedded ViT."""

from __future__ import annotations

import sys
import types
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkouts import Row
from .learners import Recorded, bare, digits, embedded, looking, modules
from .toys import difference

RANK, UNUSED = 4, ("peft.utils", "peft.import_utils", "bitsandbytes", "uie_collator", "uie_dataset_lora", "transformers")


class Fused(nn.Module):
    """A fused projection whose queries and values pass official layers."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.whole = fused.requires_grad_(False)
        self.q: Any = None
        self.v: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.whole(x)[..., 64:128], self.v(x)], -1)

    def begin(self, layers: Any, tasks: int) -> None:
        """Fresh official layers for the next task, the directions of the earlier ones beside each other and frozen."""
        for side, rows in (("q", slice(0, 64)), ("v", slice(128, 192))):
            old = getattr(self, side)
            made = layers.Linear("default", 64, 64, r=RANK, lora_alpha=RANK, r_sum=RANK * tasks)
            made.weight.data, made.bias.data = self.whole.weight.data[rows].clone(), self.whole.bias.data[rows].clone()
            if old is not None:
                held = [[getattr(old, f"{kind}_{p}")["default"].weight for kind in ("lora", "loranew")] for p in "AB"]
                down, up = torch.cat(held[0], 0), torch.cat(held[1], 1)
                made.lora_A["default"].weight.data, made.lora_B["default"].weight.data = down.detach(), up.detach()
            for name, p in made.named_parameters():
                p.requires_grad_("loranew_" in name)
            setattr(self, side, made)


def transformers() -> dict[str, types.ModuleType]:
    """The names that the trainer's file takes from ``transformers``, of which its step uses few."""
    import logging
    import typing

    names = {"TrainingArguments", "TrainerState", "TrainerControl", "EvalLoopOutput", "DataLoader", "IntervalStrategy"}
    trainer = types.ModuleType("transformers.trainer")
    trainer.__dict__.update({n: getattr(typing, n) for n in ("Dict", "Union", "Any", "Optional", "List", "Tuple")})
    trainer.__dict__.update({n: mock.MagicMock() for n in names}, nn=nn, logger=logging.getLogger("olora"),
                            is_sagemaker_mp_enabled=lambda: False)
    base = types.ModuleType("transformers.trainer_seq2seq")
    base.Seq2SeqTrainer = object  # type: ignore[attr-defined]
    back = types.ModuleType("transformers.trainer_callback")
    back.TrainerCallback = object  # type: ignore[attr-defined]
    return {m.__name__: m for m in (trainer, base, back)}


def olora(tree: Path) -> list[Row]:
    """Directions, head and logits over three experiences, with both penalties."""
    experiences, tests = digits()
    sys.modules |= transformers()
    found = {"directions": 0.0, "head": 0.0, "logits": 0.0}
    names = "peft.tuners.lora", "uie_trainer_lora"
    with modules(tree / "src", *names, empty=("peft", "peft.tuners"), more=UNUSED) as (layers, trainer):
        layers.transpose = lambda weight, flipped: weight.T if flipped else weight
        ours = Recorded("olora", epochs=2, batch_size=8, r=RANK, lr=0.01, lamda2=0.1)
        method: Any = ours.method
        vit = looking(embedded().model)
        for block in vit.blocks:
            block.attn.qkv = Fused(block.attn.qkv)
        net = nn.Module()
        net.body, net.head = vit.requires_grad_(False), nn.Linear(64, 6)
        args = Namespace(n_gpu=1, gradient_accumulation_steps=1, lamda_1=0.5, lamda_2=0.1)
        known = 0

        def logits(x: Tensor) -> Tensor:
            return net.head(vit.forward_head(vit.forward_features(x), pre_logits=True))[:, :known]  # type: ignore[operator, no-any-return]

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return F.cross_entropy(logits(batch.x)[:, known - 2 :], batch.y - (known - 2))

        learner = bare(trainer.UIETrainer, model=net, args=args, do_grad_scaling=False, use_apex=False, deepspeed=None,
                       _prepare_inputs=lambda inputs: inputs, compute_loss_context_manager=nullcontext, compute_loss=loss)
        for k, exp in enumerate(experiences):
            known = 2 * k + 2
            for block in vit.blocks:
                block.attn.qkv.begin(layers, k)
            sides = [getattr(block.attn.qkv, side) for block in vit.blocks for side in "qv"]

            def copied(sides: Any = sides, known: int = known) -> None:
                newest = [a for _, a in method.adapters.each(method.adapters.names[-1])]
                with torch.no_grad():
                    for mine, theirs in zip(newest, sides, strict=True):
                        theirs.loranew_A["default"].weight.copy_(mine.A)
                        theirs.loranew_B["default"].weight.copy_(mine.B)
                    net.head.weight[known - 2 : known] = method.head.weight[known - 2 : known]  # type: ignore[index, union-attr]
                    net.head.bias[known - 2 : known] = method.head.bias[known - 2 : known]  # type: ignore[index, union-attr]

            ours.learn(exp, k, copied)
            optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
            for batch in (batch for epoch in ours.epochs for batch in epoch):
                optimizer.zero_grad()
                learner.training_step(net, batch)
                optimizer.step()
            newest = [a for _, a in method.adapters.each(method.adapters.names[-1])]
            pairs = [both for a, side in zip(newest, sides, strict=True)
                     for both in ((a.A, side.loranew_A["default"].weight), (a.B, side.loranew_B["default"].weight))]
            found["directions"] = max(found["directions"], difference(*zip(*pairs, strict=True)))
            heads = [method.head.weight, method.head.bias], [net.head.weight, net.head.bias]
            found["head"] = max(found["head"], difference(*heads))
            net.eval()
            with torch.no_grad():
                found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [logits(tests)]))
    told = {"directions": "A and B after each of three experiences, lamda 0.5 and lamda2 0.1", "head": "head",
            "logits": "logits of 60 test images after each experience"}
    return [Row("olora", told[key], value, 1e-5 if key == "logits" else 2e-6) for key, value in found.items()]
