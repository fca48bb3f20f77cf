"""What an operation is worth in a whole step of a method: the step beside the part of it that an operator could take over.

    python benchmarks/speed_steps.py [--images 8] [--steps 3]

Writes results/speed/steps.json.

Two of the twelve blocks of a ViT-B/16 at 224 pixels, random weights, one thread, medians; of other depths the shares are the
same. `the rest of it` is the step without the operation, which is what a perfect operator would leave: more than `at most x` it
cannot gain, however fast it is. Small batches make the operation's share large: a projection costs the same for any number of
images. CoDyRA is timed with the gradient of every adapted weight as torch forms it, and with that of its factors alone. Two
things were tried on a ResNet-20 that answers on channels-last: BatchNorm folded into the convolutions before it, with sums and
ReLU in place, and smaller batches.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import operator
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method, TensorData
from cl_bench.adapters import _low_rank, attach
from cl_bench.backbones import Preprocess
from cl_bench.engine.allocator import keep_memory
from cl_bench.engine.layout import relaid
from cl_bench.registry import find
from cl_bench.rng import Rng

HERE = Path(__file__).resolve().parent
SPACE = LabelSpace(tuple(range(10)))


def vit() -> Backbone:
    """The first two blocks."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    trunk = VisionTransformer(img_size=224, patch_size=16, embed_dim=768, depth=2, num_heads=12, num_classes=0)
    return Backbone(trunk, num_features=768, preprocess=Preprocess(224, (0.5,) * 3, (0.5,) * 3))


def batch(images: int) -> tuple[Batch, Experience]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 224, 224), generator=draw, dtype=torch.uint8)
    y = torch.randint(0, 10, (images,), generator=draw)
    return Batch(x.float() / 255, y), Experience("synthetic", SPACE, TensorData(x, y))


def learned(method: Method, images: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, and of the hooks around the optimizer in it."""
    one, exp = batch(images)
    method.rng = Rng(1)
    method.begin(exp)
    if method.__class__.__name__ == "Gpm":  # a later task, with a quarter of the directions protected
        for name in method.layers:  # type: ignore[union-attr]
            d = method.backbone.get_submodule(name).weight.flatten(1).shape[1]
            draw = torch.randn(d, d // 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            method.bases.append(nn.Parameter(torch.linalg.qr(draw)[0], requires_grad=False))  # type: ignore[union-attr, operator]
    method.train()
    made = method.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    spent = []
    for _ in range(steps + 1):
        marks = [time.process_time()]
        for do in (lambda: method.training_step(one, 0).backward(),
                   lambda: (method.on_after_backward(), method.on_before_optimizer_step(optimizer)),
                   optimizer.step, lambda: method.on_train_batch_end(None, one, 0)):
            do()
            marks.append(time.process_time())
        optimizer.zero_grad()
        spent.append((marks[4] - marks[0], marks[2] - marks[1] + marks[4] - marks[3]))
    return statistics.median(a for a, _ in spent[1:]), statistics.median(b for _, b in spent[1:])


def answered(trunk: Callable[[Tensor], Any], x: Tensor, size: int, turns: int) -> float:
    """Median seconds of passing all images, in batches."""
    spent = []
    with torch.no_grad():
        for _ in range(turns + 1):
            began = time.process_time()
            for part in x.split(size):
                trunk(part)
            spent.append(time.process_time() - began)
    return statistics.median(spent[1:])


def of(name: str, images: int) -> Method:
    made: Method = find("cl_bench.methods", name)(vit(), epochs=1, batch_size=images)
    return made


def whole_steps(images: int, steps: int) -> list[dict[str, Any]]:
    """One row per method."""
    rows = []
    pays = _low_rank.pays
    for name, operation in (("osft", "project_out_"), ("gpm", "project_out_")):
        step, part = learned(of(name, images), images, steps)
        rows.append({"method": name, "operation": operation, "step ms": 1000 * step, "the rest of it ms": 1000 * (step - part),
                     "at most x": step / (step - part)})
    for name in ("mos", "ease"):
        method = of(name, images).eval()
        x = batch(images)[0].x
        step = answered(method.backbone.forward_features, x, images, 2 * steps)
        with method.adapters.off():  # type: ignore[union-attr, operator]
            rest = answered(method.backbone.forward_features, x, images, 2 * steps)
        rows.append({"method": name + ", a pass under one adapter", "operation": "grouped_lora", "step ms": 1000 * step,
                     "the rest of it ms": 1000 * rest, "at most x": step / rest})
    rows.append(mixture(images, steps))
    found = {}
    for side, on in (("dense", lambda *a: False), ("factors", pays)):
        _low_rank.pays = on
        found[side], _ = learned(of("codyra", images), images, steps)
    rows.append({"method": "codyra", "operation": "gradients of the factors alone", "step ms": 1000 * found["dense"],
                 "the rest of it ms": 1000 * found["factors"], "at most x": found["dense"] / found["factors"]})
    return rows


def mixture(images: int, steps: int) -> dict[str, Any]:
    """MoE-Adapters, the one method that gives each image adapters of its own: two of 22 in every block."""
    package = find("cl_bench.methods", "moe_adapters").__module__.rpartition(".")[0]
    backbone = vit().eval()
    adapters = attach(backbone, importlib.import_module(f"{package}._experts").Experts, r"blocks\.\d+")
    for _, expert in adapters.each():
        expert.grow(backbone.mean)  # type: ignore[operator]
        expert.gates[0].data.normal_()  # type: ignore[index, union-attr]
        expert.router = 0  # type: ignore[assignment]
    x = batch(images)[0].x
    step = answered(backbone.forward_features, x, images, 2 * steps)
    with adapters.off():
        rest = answered(backbone.forward_features, x, images, 2 * steps)
    return {"method": "moe_adapters, a pass", "operation": "grouped_lora", "step ms": 1000 * step,
            "the rest of it ms": 1000 * rest, "at most x": step / rest}


def folded(trunk: nn.Module) -> nn.Module:
    """BatchNorm in the convolutions before it, sums and ReLU in place."""
    from torch.fx.experimental.optimization import fuse

    twin = fuse(trunk)
    for node in twin.graph.nodes:
        if node.op == "call_function" and len(node.args[0].users) == 1:
            node.target = {torch.relu: torch.relu_, operator.add: operator.iadd}.get(node.target, node.target)
    twin.recompile()
    return twin


def tried(turns: int) -> list[dict[str, Any]]:
    """What a trunk that answers could do otherwise."""
    sys.path.insert(0, str(HERE / "gpu"))
    from learning import resnet20

    trunk = resnet20().model.eval()
    relaid(trunk)
    x = torch.rand(1024, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twin = folded(copy.deepcopy(trunk))
    relaid(twin)
    sides = {"as it is, batches of 256": (trunk, 256), "batches of 64": (trunk, 64), "folded, in place": (twin, 256),
             "folded, in place, batches of 64": (twin, 64)}
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, (network, size) in sides.items():
            spent[side].append(answered(network, x, size, 1))
    median = {side: statistics.median(s) for side, s in spent.items()}
    first = median["as it is, batches of 256"]
    return [{"a ResNet-20 answers 1,024 images": side, "ms": 1000 * s, "x": first / s} for side, s in median.items()]


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_memory()
    rows = [*whole_steps(o.images, o.steps), *tried(2 * o.steps + 1)]
    for row in rows:
        print(row, flush=True)
    sys.path.insert(0, str(HERE / "gpu"))
    from common import keep_figures

    keep_figures(o.out, "steps", __doc__, rows, settings={"images of a batch": o.images})


if __name__ == "__main__":
    main()
