"""Test-time methods on an ImageNet stream beside the public implementations, on the same tensors.

    python benchmarks/parity_tta_imagenet.py --checkouts DIR                # writes results/parity/tta_imagenet.md

``DIR`` holds mariodoebler/test-time-adaptation at the commit that ``official/checkouts.py`` names; ``../shared`` (or
``$CL_BENCH_SHARED``) the images and weights. EfficientNet-Lite0 with its own classifier of 1,000 at 128 pixels; images of 600
classes, a third of them under each of three corruptions computed on the fly at severity 5, batches of 50; both sides with
the published ImageNet values (``preset: imagenet`` here, ``cfgs/imagenet_c`` there), one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Node
from typing import Any

import torch
import torch.nn.functional as F
from official import checkouts
from parity_tta import OUT, keep_memory, shared
from speed_tta_reference import NAMES, SETTINGS, stand_in
from torch import Tensor

from cl_bench import Experience, Scenario, StreamFacts, TensorData
from cl_bench.data.tensor import as_float
from cl_bench.registry import find
from cl_bench.rng import Rng

METHODS = ("source", "bn", "tent", "eata", "sar", "deyo", "lame", "rpl", "roid", "cmf")
STOCHASTIC = ("deyo", "roid", "cmf")
CORRUPTIONS, EACH, BATCH = ("gaussian_noise", "defocus_blur", "contrast"), 200, 50
OPTIM = {"METHOD": "SGD", "LR": 2.5e-4, "BETA": 0.9, "WD": 0.0, "MOMENTUM": 0.9, "DAMPENING": 0.0, "NESTEROV": True, "STEPS": 1}
LRS = {"rpl": 5e-4}
LINES = OUT / "tta_imagenet.jsonl"


def network() -> Any:
    """A fresh EfficientNet-Lite0 with its classifier."""
    file = shared() / "weights" / "efficientnet_lite0" / "model.safetensors"
    return find("cl_bench.backbones", "timm_model")("tf_efficientnet_lite0", checkpoint_path=str(file), image_size=128).eval()


def stream() -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor, Any]:
    """Corrupted batches with labels, one batch of clean images with labels, and the label space."""
    root = str(shared() / "data" / "imagenet_sample" / "val")
    of: Scenario = find("cl_bench.scenarios", "imagenet")(root=root, shuffle=False)  # the order is drawn below
    made = find("cl_bench.scenarios", "corrupted")(of=of, corruptions=list(CORRUPTIONS), severity=5, test_batch_size=BATCH)
    out: list[tuple[Tensor, Tensor]] = []
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    for k, test in enumerate(made.stream()):
        found = [test.data[i] for i in order[k * EACH : (k + 1) * EACH]]
        x, y = small([image for image, _ in found]), torch.tensor([label for _, label in found])
        out += list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    clean = [of.test_sets()[0].data[i] for i in order[-BATCH:]]
    return out, small([image for image, _ in clean]), torch.tensor([label for _, label in clean]), of.space  # type: ignore[attr-defined]


def small(images: list[Any]) -> Tensor:
    """uint8 images (3, 224, 224) to one tensor (N, 3, 128, 128) in [0, 1]."""
    x = as_float(torch.stack([torch.as_tensor(image) for image in images]))
    return F.interpolate(x, size=(128, 128), mode="bicubic", antialias=True).clamp_(0, 1)


def official(name: str, seed: int) -> Callable[[Tensor], Tensor]:
    """One of the public methods on a fresh network."""
    import importlib

    module, _, cls = NAMES["eta" if name == "eata" else name].partition(".")
    backbone = network()
    backbone.img_size, backbone.model_preprocess = (128, 128), None
    settings = {k: dict(v) for k, v in SETTINGS.items()}
    settings["CORRUPTION"]["DATASET"], settings["MODEL"]["ARCH"] = "imagenet_c", "efficientnet_lite0"
    settings["OPTIM"] = {**OPTIM, "LR": LRS.get(name, OPTIM["LR"])}
    settings["TEST"]["BATCH_SIZE"] = BATCH
    settings["EATA"] = {"D_MARGIN": 0.05, "FISHER_ALPHA": 2000.0, "MARGIN_E0": 0.4}
    settings["SOURCE"]["NUM_SAMPLES"] = BATCH if name == "eata" else 0
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        cfg = Node(**{k: Node(**v) for k, v in settings.items()}, MIXED_PRECISION=False, CKPT_DIR=folder, DATA_DIR=folder)
        return getattr(importlib.import_module(f"methods.{module}"), cls)(cfg, backbone, 1000)  # type: ignore[no-any-return]


def ours(name: str, seed: int, clean: Tensor, labels: Tensor, space: Any) -> Callable[[Tensor], Tensor]:
    """Our method on a fresh network, with its published ImageNet values."""
    cls = find("cl_bench.methods", name)
    settings = dict(cls.presets.get("imagenet", {})) | ({"fisher_samples": BATCH} if name == "eata" else {})
    method = cls(network(), **settings).eval()
    method.rng = Rng(seed)
    method.deploy(Experience("clean", space, TensorData(clean, labels)), StreamFacts(BATCH, space))

    def answer(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(method.adapts):
            return method.predict(x, space)  # type: ignore[no-any-return]

    return answer


def run(answer: Callable[[Tensor], Tensor], batches: list[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    """Error in percent, and all probabilities."""
    found = [torch.as_tensor(answer(x)).detach() for x, _ in batches]
    wrong = sum(int((f.argmax(1) != y).sum()) for f, (_, y) in zip(found, batches, strict=True))
    whole = torch.cat(found)
    are_shares = bool((whole >= 0).all()) and torch.allclose(whole.sum(1), torch.ones(len(whole)), atol=1e-4)
    return 100 * wrong / sum(len(y) for _, y in batches), whole if are_shares else whole.softmax(1)


def measure(tree: Path, names: list[str], seeds: list[int]) -> None:
    """Append what is missing to the lines."""
    for name in METHODS:
        find("cl_bench.methods", name)
    batches, clean, labels, space = stream()
    held = {(r["method"], r["seed"]) for r in lines()}
    stand_in(tree / "classification", [(clean, labels)])
    for name in names:
        for seed in seeds if name in STOCHASTIC else seeds[:1]:
            if (name, seed) in held:
                continue
            mine, p = run(ours(name, seed, clean, labels, space), batches)
            public = official(name, seed)
            with torch.no_grad():  # as their loop calls it; methods that adapt ask for gradients themselves
                theirs, q = run(public, batches)
            row = {"method": name, "seed": seed, "ours": mine, "theirs": theirs, "apart": float((p - q).abs().max()),
                   "same": 100 * float((p.argmax(1) == q.argmax(1)).double().mean())}
            with LINES.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.is_file() else []


def table() -> str:
    """The page."""
    rows, measured = list[str](), lines()
    for name in METHODS:
        found = [r for r in measured if r["method"] == name]
        if not found:
            rows.append(f"| {name} | not measured | | | | |")
            continue
        mine, theirs = (sum(r[side] for r in found) / len(found) for side in ("ours", "theirs"))
        spread = max((abs(a[side] - b[side]) for a in found for b in found for side in ("ours", "theirs")), default=0.0)
        bound = max(0.1, spread) if name in STOCHASTIC else 0.1
        verdict = "in bounds" if abs(mine - theirs) <= bound or math.isclose(abs(mine - theirs), bound) else "**beyond**"
        apart = "-" if name in STOCHASTIC else f"{found[0]['apart']:.1e}"
        same = sum(r["same"] for r in found) / len(found)
        verdict += f" ({bound:.2f})"
        if name in STOCHASTIC and len(found) == 1:
            verdict = "one seed, so no spread to compare with"
        rows.append(f"| {name} | {mine:.2f} ({len(found)}) | {theirs:.2f} | {mine - theirs:+.2f} | {apart} | {same:.1f} % | "
                    f"{verdict} |")
    pin = checkouts.PINS["tta"]
    return "\n".join([
        "# Test-time methods on an ImageNet stream against the public implementations", "",
        "Made by `python benchmarks/parity_tta_imagenet.py --checkouts DIR`. EfficientNet-Lite0 with its ImageNet classifier",
        f"at 128 pixels; {EACH} images (one per class) under each of {', '.join(CORRUPTIONS)}, computed on the fly at",
        f"severity 5, batches of {BATCH}, continual, no reset; the published ImageNet values on both sides; the same tensors.",
        f"Reference: {pin[0]} at `{pin[1][:12]}`. Error in percent; in brackets how many seeds. EATA's Fisher",
        "information is of the same 50 clean images, in another order. Bound of the difference: 0.1 points; of methods that",
        "draw, what seeds differ by.", "",
        "| method | ours | reference | difference | largest difference of a probability | same answers | |",
        "|---|---|---|---|---|---|---|", *rows, ""])


def main() -> None:
    """Measure what is missing, then write the table."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the public repository")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    checkouts.found(args.checkouts, "tta")
    with checkouts.unpacked(args.checkouts, "tta") as tree:
        sys.path.insert(0, str(tree / "classification"))
        measure(tree, args.methods, args.seeds)
    (OUT / "tta_imagenet.md").write_text(table())


if __name__ == "__main__":
    main()
