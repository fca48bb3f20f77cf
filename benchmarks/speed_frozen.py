"""What a matrix on a frozen trunk costs: `ncm` on EfficientNet-Lite0, with and without what the engine spares.

    python benchmarks/speed_frozen.py [--pixels 224] [--train 10] [--threads 1]

Writes results/speed/frozen.json.

Split-CIFAR-10 enlarged by the trunk's own preprocessing, ten training images and at most 30 test images per class. Three
sides, each a process of its own: `before` sends every image through the trunk in every row, in batches of 256; `batches that
fit` in batches as large as fits; `once` looks features up that were computed once. Images are counted on their way into the
trunk; the peak is the process's own. A fourth side repeats `once` with the features that the third has left in the folder of
records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIDES = ("before", "batches that fit", "once", "once, by another run")


def side(o: argparse.Namespace) -> dict[str, Any]:
    """One run; what it took."""
    import torch

    from cl_bench.command.config import parse, plan_from
    from cl_bench.data.tensor import TensorData
    from cl_bench.engine import features, measure, runner

    shared = Path(os.environ.get("CL_BENCH_SHARED", HERE.parents[1] / "shared"))
    plan = plan_from(parse([
        "--scenario", "split_cifar10", "--scenario.root", str(shared / "data/cifar10_5k"), "--scenario.per_class", str(o.train),
        "--scenario.augmented", "false", "--backbone", "timm_model", "--backbone.name", "tf_efficientnet_lite0",
        "--backbone.checkpoint_path", str(shared / "weights/efficientnet_lite0/model.safetensors"),
        "--backbone.image_size", str(o.pixels), "--method", "ncm", "--device", "cpu", "--threads", str(o.threads)]))
    tests = [replace(t, data=t.data.subset(torch.arange(min(len(t.data), 60)))) if isinstance(t.data, TensorData) else t
             for t in plan.scenario.test_sets()]  # what is compared is who computes the images, and how often
    plan.scenario.test_sets = lambda: tests
    if o.side == "before":
        measure.fitting = lambda method, data, size, device: size
    if not o.side.startswith("once"):
        features.Features.of = lambda *a: None  # type: ignore[method-assign]
    passed = [0]
    plan.backbone.model.register_forward_hook(_Hook(passed).count)
    torch.set_num_threads(o.threads)
    began, started = time.process_time(), time.perf_counter()
    record = json.loads((runner.run(plan, o.runs) / "run.json").read_text())
    cost = record["cost"]
    return {"side": o.side, "processor s": time.process_time() - began, "wall s": time.perf_counter() - started,
            "evaluating, processor s": cost["busy_seconds"]["evaluate"], "images into the trunk": passed[0],
            "images asked for": cost["forward_images"], "peak MiB": cost["peak_memory_bytes"] / 2**20,
            "right answers in the last row": sum(c for c in record["matrix"]["correct"][-1] if c is not None)}


class _Hook:
    """Counts images; it says that it is the engine's, so that the trunk stays known as a fixed function."""

    def __init__(self, passed: list[int]) -> None:
        from cl_bench.engine.meter import Meter

        meter = Meter()

        def count(self: Any, module: Any, inputs: Any, output: Any) -> None:
            passed[0] += len(inputs[0])

        self.count = count.__get__(meter)


def main() -> None:
    """All sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--train", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    if o.side:
        print(json.dumps(side(o)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SIDES:
            words = [sys.executable, __file__, "--side", name, "--runs", folder,
                     *(w for k in ("pixels", "train", "threads") for w in (f"--{k}", str(getattr(o, k))))]
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE)
            rows.append(json.loads(said.stdout.splitlines()[-1]))
            rows[-1]["x before"] = rows[0]["processor s"] / rows[-1]["processor s"]
            print(rows[-1], flush=True)
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from common import keep_figures

    torch.set_num_threads(o.threads)
    keep_figures(o.out, "frozen", __doc__, rows)


if __name__ == "__main__":
    main()
