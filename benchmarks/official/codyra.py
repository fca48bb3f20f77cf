"""CoDyRA's layers and its training loop themselves beside ours, on all linears of the embedded ViT.

The loop is written for CLIP. Here its image tower answers with the logits of a linear head, its text tower with unit vectors,
and its temperature is 1, so that what it computes is cross-entropy among the current classes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .checkouts import Row
from .learners import Epochs, Recorded, digits, embedded, looking, modules, on_the_cpu
from .shipped import unaligned
from .toys import difference

RANK, STEPS = 4, 120  # 60 of them after the dense half: the released walk closes nothing in fewer than 50
UNUSED = "open_clip", "torch.utils.tensorboard", "clip", "scenario_datasets"


class Length1(Tensor):
    """What the loop divides by its length, and must not here."""

    def norm(self, *args: Any, **kw: Any) -> Any:  # type: ignore[override]
        return torch.ones(())


class Pairs(Epochs):
    """The recorded epochs as (images, columns among the current classes)."""

    def __init__(self, epochs: Any, known: int) -> None:
        super().__init__(epochs)
        self.known = known

    def __iter__(self) -> Iterator[Any]:
        return iter([(x, y - self.known) for _, x, y in super().__iter__()])


class Adapted(nn.Module):
    """Official layers in the place of a linear one: one, or one for each third of its rows."""

    def __init__(self, made: Any, plain: nn.Linear, parts: int) -> None:
        super().__init__()
        size = plain.out_features // parts
        self.parts = nn.ModuleList(made(plain.in_features, size, r=RANK) for _ in range(parts))
        for k, part in enumerate(self.parts):
            rows = slice(k * size, (k + 1) * size)
            part.weight.data, part.bias.data = plain.weight.data[rows].clone(), plain.bias.data[rows].clone()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x)[0] for part in self.parts], -1)

    def whole(self) -> Tensor:
        """The weight as it answers, before the official merge."""
        return torch.cat([p.weight + (p.lora_B * p.gate) @ p.lora_A for p in self.parts])


class Clip(nn.Module):
    """What the loop asks of CLIP, over a transformer and a linear head; ``lora`` in a name is what it trains."""

    def __init__(self, vit: Any, classes: int) -> None:
        super().__init__()
        self.vit, self.lora_head, self.known = vit, nn.Linear(64, classes), 0
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, x: Tensor) -> tuple[Tensor, int]:
        features = self.vit.forward_head(self.vit.forward_features(x), pre_logits=True)
        return self.lora_head(features)[:, : self.known].as_subclass(Length1), 0

    def encode_text(self, columns: Tensor) -> tuple[Tensor, int]:
        return torch.eye(self.known)[columns], 0


def codyra(tree: Path) -> list[Row]:
    """Weights, gates that stay open, head and logits over three experiences, with the released proximal step."""
    experiences, tests = digits()
    found, wrong = {"weights": 0.0, "head": 0.0, "logits": 0.0}, 0
    with modules(tree, "loralib.codyra", "models.codyra", more=UNUSED, empty=("models",)) as (layers, module), on_the_cpu():
        ours = Recorded("codyra", iterations=STEPS, batch_size=8, rank=RANK, kappa_max=0.02, lr=0.005, released_prox=True)
        method: Any = ours.method
        vit = looking(embedded().model)
        official: dict[str, Adapted] = {}
        for at in method.adapters.sites:
            where, _, name = at.rpartition(".")
            plain = vit.get_submodule(at)
            official[at] = Adapted(layers.codyra_Linear, plain, 3 if name == "qkv" else 1)
            setattr(vit.get_submodule(where), name, official[at])
        net = Clip(vit, 6)
        words = ["a", "b"]
        told = Namespace(template=["{}"], classnames=words)
        args = Namespace(seen_classes=[], mtil_eval=False, load=None, save="run", rank=RANK, iterations=STEPS, lr=0.005, wd=0.0,
                         warmup_length=0, max_kappa=0.02, lambda_num=50, dense_iters=0.5, target_encoder="text", ls=0.0)
        counts = list[str]()
        learn = module.train_model
        for k, exp in enumerate(experiences):
            start: list[Tensor] = []

            def copied(start: list[Tensor] = start) -> None:
                parts = [a for _, a in method.adapters.each()]
                start += [t.detach().clone() for a in parts for t in (a.A, a.B, a.gate)]
                start += [method.head.weight.detach().clone(), method.head.bias.detach().clone()]

            ours.learn(exp, k, copied)
            net.known = 2 * k + 2

            def train(*given: Any, start: list[Tensor] = start, known: int = 2 * k) -> None:
                held = [t for site in official.values() for p in site.parts for t in (p.lora_A, p.lora_B, p.gate)]
                with unaligned(), torch.no_grad():
                    for mine, theirs in zip(start, held, strict=False):
                        theirs.copy_(mine.reshape(theirs.shape))
                    net.lora_head.weight[known : known + 2] = start[-2][known:]
                    net.lora_head.bias[known : known + 2] = start[-1][known:]
                learn(*given)

            module.train_model = train
            module.utils.torch_save_lora = lambda *given: None

            def columns(texts: list[str], k: int = k) -> Tensor:  # of the classes seen before, or of those at hand
                return torch.arange(2 * k, 2 * k + 2) if texts == words else torch.arange(len(texts))

            args.seen_classes = [f"seen {j}" for j in range(2 * k)]
            with mock.patch.object(Tensor, "float", lambda self: self.double()):
                module.finetune(args, net, columns, f"step {k}", told, Pairs(ours.epochs, 2 * k))
            net.eval()
            mine = [method.adapters.weight(at) for at in official]
            found["weights"] = max(found["weights"], difference(mine, [site.whole() for site in official.values()]))
            opened = {at: sum(int(p.gate.count_nonzero()) for p in site.parts) for at, site in official.items()}
            wrong += sum(method.open_ranks[k][at] != count for at, count in opened.items())
            counts.append(f"{sum(opened.values())}")
            heads = [method.head.weight, method.head.bias], [net.lora_head.weight, net.lora_head.bias]
            found["head"] = max(found["head"], difference(*heads))
            with torch.no_grad():
                answers = net.encode_image(tests)[0].as_subclass(Tensor)
                found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [answers]))
    every = sum(len(site.parts) for site in official.values()) * RANK
    what, gates = "codyra, released_prox", f"sites with another number of open gates ({', '.join(counts)} of {every} in all)"
    named = {"weights": "all adapted weights after each of three experiences of 120 steps", "head": "head",
             "logits": "logits of 60 test images after each experience"}
    return [Row(what, gates, float(wrong), 0.0),
            *(Row(what, named[key], value, 1e-5 if key == "logits" else 2e-6) for key, value in found.items())]
