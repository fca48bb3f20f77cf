"""Continual test-time adaptation on the device: 15 corruptions made there, then TENT, CoTTA and ROID beside plain procedures.

ResNet-50 and ViT-B/16 with random weights and a head of 1,000 classes, 224 pixels, batches of 64 (a cut in a rehearsal):
milliseconds per batch of `predict` and of the procedure as published (plain_procedures.py), in turns, medians; memory
peaks of one batch. `source` beside `forward` says what the contract itself costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from common import Part, in_turns, milliseconds, peak_mib
from learning import images, resnet50, vit
from plain_procedures import PROCEDURES
from torch import Tensor, nn

from cl_bench import Backbone, LabelSpace
from cl_bench.corruptions import STANDARD, corrupt
from cl_bench.data.tensor import as_float
from cl_bench.registry import find
from cl_bench.rng import Rng

CLASSES = 1000


def with_head(backbone: Backbone) -> Backbone:
    """A backbone with a random classifier, drawn from a fixed seed."""
    torch.manual_seed(0)
    backbone.head = nn.Linear(backbone.num_features, CLASSES)
    backbone.classes = tuple(str(k) for k in range(CLASSES))
    return backbone.eval()


def ours(name: str, backbone: Backbone, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`predict` of a deployed method."""
    method = find("cl_bench.methods", name)(copy.deepcopy(backbone)).to(device).eval()
    method.rng = Rng(0)
    with torch.enable_grad():
        method.deploy(None)
    method.to(device)
    space = LabelSpace(tuple(range(CLASSES)), backbone.classes)

    def step(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(method.adapts):
            return method.predict(x, space)

    return step


def forward(backbone: Backbone, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network alone."""
    network = copy.deepcopy(backbone).to(device).eval()

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x)

    return step


def compare(part: Part, label: str, name: str, backbone: Backbone, x: Tensor, turns: int) -> None:
    """One row: a method and its plain procedure."""
    other = forward(backbone, part.device) if name == "source" else PROCEDURES[name](
        copy.deepcopy(backbone).to(part.device), x.shape[-1])
    sides = {"ours": ours(name, backbone, part.device), "plain": other}
    seconds = in_turns({side: lambda do=do: do(x) for side, do in sides.items()}, part.device, turns)  # type: ignore[misc]
    peaks: dict[str, Any] = {f"{side} peak MiB": peak_mib(part.device, lambda do=do: do(x)) for side, do in sides.items()}  # type: ignore[misc]
    part.row(network=label, method=name, batch=len(x), **{f"{side} ms": 1000 * s for side, s in seconds.items()},
             **{"plain / ours": seconds["plain"] / seconds["ours"]}, **peaks)


def main() -> None:
    """Corruptions, then methods."""
    part = Part("streams", __doc__ or "")
    batch = 64 if part.full else 2
    data = images(batch, 224, part.device)
    x = as_float(data.x)
    generator = torch.Generator(part.device).manual_seed(0)

    def corruptions() -> None:
        for name in STANDARD if part.full else STANDARD[:2]:
            spent = milliseconds(lambda n=name: corrupt(x, n, 5, generator=generator), part.device, 3, 1)  # type: ignore[misc]
            part.row(corruption=name, batch=batch, ms=spent, **{"images/s": 1000 * batch / spent})

    part.attempt("corruptions", corruptions)
    for name in ("source", "tent", "roid", "cotta"):
        for label, make in (("ResNet-50", resnet50), ("ViT-B/16", vit)):
            if not part.full and (label != "ResNet-50" or name == "cotta"):
                part.skip(f"{name} on {label}", "on a GPU only")
                continue
            turns = 3 if name == "cotta" or not part.full else 10
            part.attempt(f"{name} on {label}", lambda n=name, lb=label, m=make, t=turns: compare(  # type: ignore[misc]
                part, lb, n, with_head(m()), x, t), needs=12)


if __name__ == "__main__":
    main()
