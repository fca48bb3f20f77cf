"""Learning and all evaluations of Split-CIFAR-10: the harness, a bare loop, and Avalanche's Naive, side by side.

    python benchmarks/speed_learning.py [--turns 3] [--threads 2] [--per-class 500] [--epochs 1]

Writes results/speed/learning.json.

ResNet-20 with public weights, five experiences of two classes, AdamW, batches of 32, no augmentation; after each experience the
test images of all classes seen so far. Every measurement is a process of its own: an allocator's thresholds, a thread pool and
caches are a process's, and no side inherits another's. The sides take turns. Counted are learning and evaluating alone, from
images in memory on; of the harness all of its timeline (Trainers, records, checkpoints). Starting (the interpreter, imports,
reading the data) is counted for nobody. Ratios are of processor seconds (user and system), which other work on the machine
stretches least; wall seconds stand beside them.

Sides: `ours` is `cl-bench run` as it stands (images with their channels last), `ours, contiguous` the same with `--layout
contiguous`, `ours, channels last` with `--layout channels_last`, `ours, bf16` with
`--precision bf16-mixed --optimizers fused` on top of it, which are other numbers and not only other last bits; `ours, compiled`
(only where it is named) is channels-last with `--compile true`, compiling counted; `bare` is the
least that does the same (indexing, forward, backward, step), `bare, channels last` and `bare, bf16` the same with the layout,
the allocator and the arithmetic that ours have; `avalanche` is Avalanche's Naive with its default metrics and without loggers,
its images as floats in memory, which spares it decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIDES = ("ours", "ours, channels last", "ours, contiguous", "ours, bf16", "bare, channels last", "bare", "bare, bf16",
         "avalanche")
LAST = ["--layout", "channels_last"]
CONTIGUOUS = ["--layout", "contiguous"]
COMPILED = [*LAST, "--compile", "true"]
HALF = [*LAST, "--precision", "bf16-mixed", "--optimizers", "fused"]
BATCH, TEST_BATCH, LR = 32, 256, 1e-3


def shared() -> Path:
    """The folder of data and weights."""
    return Path(os.environ.get("CL_BENCH_SHARED", HERE.parents[1] / "shared"))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=480, help="no turn is begun that would not be over by then")
    parser.add_argument("--side", choices=(*SIDES, "ours, compiled"), help="one measurement, printed as JSON")
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--name", default="learning", help="of the JSON, where some sides have a sitting of their own")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    return parser.parse_args()


def words(o: argparse.Namespace) -> list[str]:
    """The run as the command line takes it."""
    return ["--scenario", "split_cifar10", "--scenario.root", str(shared() / "data/cifar10_5k"),
            "--scenario.per_class", str(o.per_class), "--scenario.augmented", "false",
            "--backbone", "cifar_resnet", "--backbone.folder", str(shared() / "weights/resnet20"), "--method", "finetune",
            "--method.epochs", str(o.epochs), "--method.batch_size", str(BATCH), "--method.lr", str(LR), "--device", "cpu",
            "--threads", str(o.threads)]


def ours(o: argparse.Namespace, more: list[str]) -> dict[str, float]:
    """`cl-bench run`; its record says how long it took."""
    from cl_bench.cli import main
    from cl_bench.engine import runner

    walk, busy = runner._walk, [0.0, 0.0]

    def timed(*arguments: Any) -> None:
        busy[:] = -time.process_time(), -time.perf_counter()
        walk(*arguments)
        busy[:] = busy[0] + time.process_time(), busy[1] + time.perf_counter()

    runner._walk = timed
    with tempfile.TemporaryDirectory() as runs:
        stdout, sys.stdout = sys.stdout, sys.stderr
        status = main(["run", *words(o), *more, "--runs", runs, "--tracking", "none"])
        sys.stdout = stdout
        assert status == 0
        record = json.loads(next(Path(runs).glob("*/run.json")).read_text())
    spent = record["cost"]["busy_seconds"]
    return {"seconds": busy[0], "learning": spent["learn"], "evaluating": spent["evaluate"], "wall": busy[1],
            "accuracy": record["metrics"]["average_accuracy"]}


def parts(o: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """(network, training sets, test sets) as the command builds them."""
    import torch
    from torch import nn

    from cl_bench.command.config import build, parse

    scenario, backbone, _ = build(parse(words(o)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone, self.head = backbone, nn.Linear(backbone.num_features, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.backbone.forward_features(x))

    return Network(), [e.data for e in scenario.experiences()], [t.data for t in scenario.test_sets()]


def bare(o: argparse.Namespace, channels_last: bool, half: bool = False) -> dict[str, float]:
    """Indexing, forward, backward, step; after each experience the accuracy on all test images seen so far."""
    import torch
    import torch.nn.functional as F

    from cl_bench.data.tensor import as_float
    from cl_bench.engine.allocator import keep_memory

    network, train, test = parts(o)
    if channels_last:
        keep_memory()
        torch.set_flush_denormal(True)
        network = network.to(memory_format=torch.channels_last)
    train, test = [(d.x, d.y) for d in train], [(d.x, d.y) for d in test]
    draw = torch.Generator().manual_seed(0)
    started, wall, evaluating, accuracy = time.process_time(), time.perf_counter(), 0.0, 0.0
    for k, (x, y) in enumerate(train):
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=half or None)
        for _ in range(o.epochs):
            for rows in torch.randperm(len(y), generator=draw).split(BATCH):
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = F.cross_entropy(network(as_float(x[rows])), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        began = time.process_time()
        network.eval()
        right = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for seen, labels in test[:k + 1]:
                right += [(network(as_float(a)).argmax(1) == b).float().mean()
                          for a, b in zip(seen.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)]
        accuracy = 100 * float(torch.stack(right).mean())
        evaluating += time.process_time() - began
    seconds = time.process_time() - started
    return {"seconds": seconds, "learning": seconds - evaluating, "evaluating": evaluating,
            "wall": time.perf_counter() - wall, "accuracy": accuracy}


def avalanche(o: argparse.Namespace) -> dict[str, float]:
    """Naive with the metrics that its strategies print by default."""
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from avalanche_side import Labelled, stand_in
    from torch import nn

    from cl_bench.data.tensor import as_float

    stand_in()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    network, train, test = parts(o)
    sets = [[as_classification_dataset(Labelled(as_float(d.x), d.y)) for d in part] for part in (train, test)]
    benchmark = benchmark_from_datasets(train=sets[0], test=sets[1])
    metrics = EvaluationPlugin(accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
                               loss_metrics(minibatch=True, epoch=True, experience=True, stream=True), loggers=[])
    strategy = Naive(model=network, optimizer=torch.optim.AdamW(network.parameters(), lr=LR), criterion=nn.CrossEntropyLoss(),
                     train_mb_size=BATCH, train_epochs=o.epochs, eval_mb_size=TEST_BATCH, device=torch.device("cpu"),
                     evaluator=metrics)
    stdout, sys.stdout = sys.stdout, sys.stderr
    started, wall, evaluating, found = time.process_time(), time.perf_counter(), 0.0, {}
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, num_workers=0)
        began = time.process_time()
        found = strategy.eval(benchmark.test_stream[:k + 1], num_workers=0)
        evaluating += time.process_time() - began
    seconds = time.process_time() - started
    sys.stdout = stdout
    accuracy = next(100 * v for name, v in found.items() if name.startswith("Top1_Acc_Stream"))
    return {"seconds": seconds, "learning": seconds - evaluating, "evaluating": evaluating,
            "wall": time.perf_counter() - wall, "accuracy": accuracy}


def one(o: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(o.threads)
    does: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: ours(o, []), "ours, channels last": lambda: ours(o, LAST), "ours, bf16": lambda: ours(o, HALF),
        "ours, contiguous": lambda: ours(o, CONTIGUOUS), "ours, compiled": lambda: ours(o, COMPILED),
        "bare": lambda: bare(o, False), "bare, channels last": lambda: bare(o, True), "bare, bf16": lambda: bare(o, True, True),
        "avalanche": lambda: avalanche(o)}
    return does[o.side]()


def main() -> None:
    """Take turns; write the medians."""
    o = options()
    if o.side:
        print(json.dumps(one(o)))
        return
    began, found = time.monotonic(), {side: list[dict[str, float]]() for side in o.sides}
    for turn in range(o.turns):
        since = time.monotonic()
        for side in o.sides:
            words_ = [sys.executable, __file__, "--side", side, *(w for k in ("threads", "per_class", "epochs")
                      for w in (f"--{k.replace('_', '-')}", str(getattr(o, k))))]
            surroundings = {**os.environ, "OMP_NUM_THREADS": str(o.threads)}
            said = subprocess.run(words_, check=True, stdout=subprocess.PIPE, env=surroundings)
            found[side].append(json.loads(said.stdout.splitlines()[-1]))
            print(f"turn {turn} {side}: {found[side][-1]}", flush=True)
        if time.monotonic() - began + (time.monotonic() - since) > o.seconds:
            break
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from common import keep_figures

    torch.set_num_threads(o.threads)
    median = {side: {key: statistics.median(t[key] for t in turns) for key in turns[0]} for side, turns in found.items()}
    first = median[o.sides[0]]
    rows = [{"side": side, **m, "x the first": m["seconds"] / first["seconds"], "turns": [t["seconds"] for t in found[side]]}
            for side, m in median.items()]
    about = {"images": 10 * o.per_class, "epochs": o.epochs, "batch": BATCH, "turns": len(found[o.sides[0]]),
             "load": round(os.getloadavg()[0], 1)}
    keep_figures(o.out, o.name, __doc__, rows, load=False, settings=about)
    for row in rows:
        print(f"{row['side']:<22} {row['seconds']:8.2f} s   x {row['x the first']:.2f}")


if __name__ == "__main__":
    main()
