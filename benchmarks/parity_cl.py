"""Continual-learning methods against what they must equal: closed forms on the same frozen features, and Avalanche's own loop.

    python benchmarks/parity_cl.py                  # everything, about three minutes; writes results/parity/cl.md
    python benchmarks/parity_cl.py --seeds 1 2 3

Split-Digits (five experiences of two digits, embedded data) and the embedded ViT, on one CPU thread. The closed forms are
written here a second time, from the papers: nearest class mean in one pass over all data; RanPAC as one ridge regression
over all random features. Avalanche runs alone, with its benchmark, loop and evaluation; the data, the seeds and the
optimizer are the same.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, LabelSpace, Method, Scenario
from cl_bench.data.tensor import as_float, concat
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.seeding import derive, seeded
from cl_bench.registry import find

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl.md"
CPU = Compute("cpu")
LR, MOMENTUM, EPOCHS, BATCH = 0.01, 0.9, 2, 32
STRATEGIES: dict[str, dict[str, Any]] = {"Naive": {}, "Replay": {"mem_size": 100}, "EWC": {"ewc_lambda": 1.0}}


def backbone() -> Backbone:
    """The embedded ViT without the letters' classifier."""
    made: Backbone = find("cl_bench.backbones", "glyph_vit")()
    made.head, made.classes = None, ()
    return made


def learn(method: Method, scenario: Scenario, seed: int) -> np.ndarray:
    """Correct answers (experiences, test sets) after every experience, NaN where not yet learned."""
    n = len(scenario.experiences())
    matrix, seen = np.full((n, n), np.nan), LabelSpace()
    for i, exp in enumerate(scenario.experiences()):
        fit(method, exp, CPU, derive(seed, "learn", exp.name))
        seen = seen | exp.space
        tests = scenario.test_sets()[: i + 1]
        matrix[i, : i + 1] = [s.correct for s in measure(method, tests, [seen] * (i + 1), CPU, 256, 0)]
    return matrix


def features(net: Backbone, x: Tensor) -> Tensor:
    """Frozen features of uint8 images (N, d)."""
    with torch.no_grad():
        return torch.cat([net.eval().forward_features(as_float(part)) for part in x.split(256)])


def whole(parts: Any) -> Any:
    """All data of several experiences or test sets."""
    return concat([p.data for p in parts])


def closed_form(name: str, scenario: Scenario, seed: int) -> dict[str, Any]:
    """A method after five experiences against one computation on all data at once."""
    kw: dict[str, Any] = {"ncm": {}, "ranpac": {"m": 1000, "pet": "none"}}[name]
    with seeded(derive(seed, "build")):
        method = find("cl_bench.methods", name)(backbone(), **kw)
    frozen = copy.deepcopy(method.backbone)
    matrix = learn(method, scenario, seed)
    train, test = whole(scenario.experiences()), whole(scenario.test_sets())
    ids = torch.tensor(scenario.space.ids)
    f, g = features(frozen, train.x), features(frozen, test.x)
    if name == "ncm":
        means = torch.stack([f[train.y == c].double().mean(0) for c in ids])
        expected = F.normalize(g.double(), dim=1) @ F.normalize(means, dim=1).T
    else:
        h, k = (torch.relu(z @ method.project).double() for z in (f, g))
        onehot = (train.y[:, None] == ids).double()
        gram = h.T @ h + method.ridge * torch.eye(h.shape[1], dtype=torch.float64)
        expected = k @ torch.linalg.solve(gram, h.T @ onehot)
    with torch.no_grad():
        found = method.predict(as_float(test.x), scenario.space).double()
    truth = (test.y[:, None] == ids).int().argmax(1)
    return {
        "what": f"{name} against its closed form", "seed": seed,
        "ours": 100 * float(np.nansum(matrix[-1])) / len(test),
        "reference": 100 * float((expected.argmax(1) == truth).double().mean()),
        "difference": f"{float((found - expected).abs().max() / expected.abs().max()):.1e} of the largest logit",
        "same": bool((found.argmax(1) == expected.argmax(1)).all()),
    }  # fmt: skip


def against_avalanche(strategy: str, scenario: Scenario, seed: int) -> dict[str, Any]:
    """Our run of an Avalanche strategy against Avalanche's own loop: cells of the accuracy matrix that differ."""
    args = STRATEGIES[strategy]
    with seeded(derive(seed, "build")):
        method = find("cl_bench.methods", "avalanche_strategy")(
            backbone(), strategy=strategy, args=args, lr=LR, momentum=MOMENTUM, epochs=EPOCHS, batch_size=BATCH)
    mine, other = learn(method, scenario, seed), own_loop(strategy, args, scenario, seed)
    lower, images = np.tril(np.ones_like(mine, dtype=bool)), len(whole(scenario.test_sets()))
    unequal = int((mine[lower] != np.rint(other[lower])).sum())
    return {
        "what": f"{strategy} against Avalanche's loop", "seed": seed, "ours": 100 * mine[-1].sum() / images,
        "reference": 100 * other[-1].sum() / images, "difference": f"{unequal} of {int(lower.sum())} cells differ",
        "same": unequal == 0,
    }  # fmt: skip


def own_loop(strategy: str, args: dict[str, Any], scenario: Scenario, seed: int) -> np.ndarray:
    """Avalanche alone: correct answers (experiences, test sets)."""
    import avalanche.training as training
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as make
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import IncrementalClassifier
    from avalanche.training.plugins import EvaluationPlugin

    column = {label: k for k, label in enumerate(scenario.space.ids)}

    def convert(parts: Any) -> list[Any]:
        return [make(as_float(p.data.x), torch.tensor([column[int(t)] for t in p.data.y])) for p in parts]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = backbone()
            self.top = IncrementalClassifier(self.body.num_features, initial_out_features=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.body.forward_features(x))

    streams = {"train": convert(scenario.experiences()), "test": convert(scenario.test_sets())}
    benchmark = with_classes_timeline(benchmark_from_datasets(**streams))
    with seeded(derive(seed, "build")):
        net = Net()
    runner = getattr(training, strategy)(
        model=net, optimizer=torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM), criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH, train_epochs=EPOCHS, eval_mb_size=256,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]), **args)
    n = len(scenario.experiences())
    matrix = np.full((n, n), np.nan)
    for i, experience in enumerate(benchmark.streams["train"]):
        with seeded(derive(seed, "learn", scenario.experiences()[i].name)):
            runner.train(experience)
        found = runner.eval(list(benchmark.streams["test"])[: i + 1])
        for j in range(i + 1):
            key = next(k for k in found if k.startswith("Top1_Acc_Exp/") and k.endswith(f"Exp{j:03d}"))
            matrix[i, j] = found[key] * len(scenario.test_sets()[j].data)  # type: ignore[arg-type]
    return matrix


def table(rows: list[dict[str, Any]], seeds: list[int], seconds: float) -> str:
    """The rows as Markdown."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "avalanche-lib", "pytorch-lightning"))
    lines = [
        "# Continual-learning methods against closed forms and Avalanche", "",
        f"`python benchmarks/parity_cl.py --seeds {' '.join(map(str, seeds))}` ({seconds:.0f} s; Python "
        f"{platform.python_version()}, {packages}; one CPU thread)", "",
        "Split-Digits, five experiences of two digits in the order of `RandomState(seed)`, embedded ViT. Last accuracy in % "
        f"over all test images. Avalanche: SGD, learning rate {LR}, momentum {MOMENTUM}, {EPOCHS} epochs, batches of {BATCH}; "
        "every cell of the two accuracy matrices is compared as a count of correct answers.", "",
        "| what | seed | here % | reference % | difference | same answers |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        lines.append(f"| {r['what']} | {r['seed']} | {r['ours']:.2f} | {r['reference']:.2f} | {r['difference']} | "
                     f"{'yes' if r['same'] else '**no**'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started, rows = time.perf_counter(), []
    for kind, names in ((closed_form, ("ncm", "ranpac")), (against_avalanche, tuple(STRATEGIES))):
        for name in names:
            for seed in args.seeds:
                rows.append(kind(name, find("cl_bench.scenarios", "split_digits")(order=seed), seed))
                print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(table(rows, args.seeds, time.perf_counter() - started), encoding="utf-8")
    raise SystemExit(0 if all(r["same"] for r in rows) else 1)


if __name__ == "__main__":
    main()
