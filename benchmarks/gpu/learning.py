"""Learning steps per second: the harness, a bare loop over the same network, data and optimizer, and Avalanche's Naive.

Random weights, synthetic uint8 images that lie on the device, cross-entropy and AdamW. The sides take turns and each time
is the whole of `fit` (the fresh Trainer included) or of the loop, until the device is done; medians. ViT-B/16 and ResNet-50
at 224 pixels; ResNet-20 on CIFAR-sized images, where the loop's own cost shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import Part, in_turns, peak_mib
from torch import Tensor, nn

from cl_bench import Backbone, Experience, LabelSpace, TensorData
from cl_bench.backbones import Preprocess
from cl_bench.backbones.cifar_resnet import CifarResNet
from cl_bench.data.tensor import as_float
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.registry import find

CLASSES = 10
SPACE = LabelSpace(tuple(range(CLASSES)))


def vit() -> Backbone:
    """ViT-B/16 at 224 pixels, random weights."""
    made: Backbone = find("cl_bench.backbones", "timm_model")("vit_base_patch16_224")
    return made


def resnet50() -> Backbone:
    """ResNet-50 at 224 pixels, random weights."""
    made: Backbone = find("cl_bench.backbones", "torchvision_model")("resnet50")
    return made


def resnet20() -> Backbone:
    """The CIFAR ResNet-20 at 32 pixels, random weights."""
    torch.manual_seed(0)
    return Backbone(CifarResNet(3), num_features=64, preprocess=Preprocess(32, (0.5,) * 3, (0.25,) * 3))


def images(count: int, side: int, device: torch.device) -> TensorData:
    """Random images and labels on the device."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
    return TensorData(x.to(device), torch.randint(0, CLASSES, (count,), generator=draw).to(device))


class Network(nn.Module):
    """What a bare loop trains: the same trunk and a linear layer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.num_features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(x))


def harness(backbone: Backbone, data: TensorData, batch: int, epochs: int, compute: Compute,
            compiled: bool) -> Callable[[], Any]:
    """`fit` of the method `finetune`."""
    method = find("cl_bench.methods", "finetune")(copy.deepcopy(backbone), epochs=epochs, batch_size=batch, lr=1e-4)
    if compiled:
        method.backbone.model.compile()
    exp = Experience("synthetic", SPACE, data)
    return lambda: fit(method, exp, compute, 0)


def bare(backbone: Backbone, data: TensorData, batch: int, epochs: int, compute: Compute,
         compiled: bool) -> Callable[[], Any]:
    """The least that does the same: indexing, forward, backward, step."""
    device = data.x.device
    network = Network(copy.deepcopy(backbone)).to(device).train()
    if compiled:
        network.backbone.model.compile()
    half = compute.precision == "bf16-mixed"

    def loop() -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        for _ in range(epochs):
            for rows in torch.randperm(len(data)).to(device).split(batch):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    loss = F.cross_entropy(network(as_float(data.x[rows])), data.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return loop


def avalanche(backbone: Backbone, data: TensorData, batch: int, epochs: int) -> Callable[[], Any]:
    """Avalanche's Naive without metrics and loggers, on float images in memory, as its data set takes them."""
    import avalanche_side

    return avalanche_side.naive(Network(copy.deepcopy(backbone)), as_float(data.x).cpu(), data.y.cpu(), batch, epochs,
                                data.x.device)


def compare(part: Part, name: str, backbone: Backbone, data: TensorData, batch: int, epochs: int, turns: int,
            precision: str = "32-true", compiled: bool = False, with_avalanche: bool = False) -> None:
    """One row: steps per second of all sides."""
    compute = Compute(device=part.options.device, precision=precision)  # type: ignore[arg-type]
    arguments = (backbone, data, batch, epochs, compute, compiled)
    sides = {"ours": harness(*arguments), "bare": bare(*arguments)}
    if with_avalanche:
        made = part.attempt(f"Avalanche on {name}", lambda: avalanche(backbone, data, batch, epochs))
        if made is not None:
            sides["avalanche"] = made
    seconds = in_turns(sides, part.device, turns)
    steps = epochs * -(-len(data) // batch)
    peaks = {f"{side} peak MiB": peak_mib(part.device, sides[side]) for side in ("ours", "bare")}
    part.row(network=name, batch=batch, precision=precision, compiled=compiled, steps=steps,
             **{f"{side} steps/s": steps / s for side, s in seconds.items()},
             **{f"ours / {side}": seconds[side] / seconds["ours"] for side in seconds if side != "ours"}, **peaks)


def main() -> None:
    """All rows; the ones that compile come last."""
    part = Part("learning", __doc__ or "")
    large, side = (512, 224) if part.full else (2, 224)
    batch, turns = (64, 3) if part.full else (2, 1)

    def attempt(what: str, do: Callable[[], None], needs: float = 5.0) -> None:
        if not part.options.only or any(all(word in what for word in case.split()) for case in part.options.only):
            part.attempt(what, do, needs)
        else:
            part.skip(what, "not asked for")

    small = images(3200 if part.full else 128, 32, part.device)
    attempt("ResNet-20", lambda: compare(part, "ResNet-20, 32 px", resnet20(), small, 32, 2 if part.full else 1, turns,
                                         with_avalanche=True))
    data = images(large, side, part.device)
    rows: list[tuple[str, Callable[[], Backbone]]] = [("ViT-B/16", vit), ("ResNet-50", resnet50)]
    for precision in ("32-true", "bf16-mixed"):
        for name, make in rows if part.full or precision == "32-true" else rows[1:]:
            epochs = (2 if precision == "32-true" else 4) if part.full else 1
            attempt(f"{name} {precision}", lambda n=name, m=make, p=precision, e=epochs: compare(  # type: ignore[misc]
                part, n, m(), data, batch, e, turns, p, with_avalanche=p == "32-true"), needs=15)
    for name, make in rows:
        if not part.full:
            part.skip(f"{name} compiled", "on a GPU only")
            continue
        attempt(f"{name} compiled", lambda n=name, m=make: compare(  # type: ignore[misc]
            part, n, m(), data, batch, 6, 2, "bf16-mixed", compiled=True), needs=45)


if __name__ == "__main__":
    main()
