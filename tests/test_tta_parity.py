"""The deterministic methods on shared CIFAR-10-C images, against what the public implementations reach on the same ones.

The first corruption alone; ``benchmarks/parity_tta.py`` runs all 15 and every method.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from cl_bench.command.sweep import read_suite
from cl_bench.data.tensor import batches
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.types import StreamFacts


def reference(shared: Path, method: str, corruption: str) -> float:
    """Mean error over the reference's seeds."""
    with (shared / "reference/tta_cifar10c_1k.csv").open() as f:
        errors = [float(r[corruption]) for r in csv.DictReader(f) if (r["method"], r["model"]) == (method, "resnet20")]
    return sum(errors) / len(errors)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [
    ("source", 0.1), ("lame", 0.5), ("bn", 0.1), ("bn_alpha", 0.1), ("tent", 0.5), ("rpl", 0.5), ("sar", 0.5), ("eata", 0.5),
])
def test_error_on_the_first_corruption_is_the_references(shared: Path, name: str, bound: float) -> None:
    scenario = find("cl_bench.scenarios", "cifar10c")(
        root=str(shared / "data/cifar10c_1k"), clean_root=str(shared / "data/cifar10_5k"))
    backbone = find("cl_bench.backbones", "cifar_resnet")(depth=20, folder=str(shared / "weights/resnet20"))
    method = find("cl_bench.methods", name)(backbone.to(memory_format=torch.channels_last)).eval()
    method.rng = Rng(1)
    method.deploy(scenario.source if "source" in method.needs else None, StreamFacts(scenario.test_batch_size, scenario.space))
    test, wrong = scenario.stream()[0], 0
    for x, y in batches(test.data, scenario.test_batch_size):
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(method.adapts):
            wrong += int((method.predict(x, scenario.space).argmax(1) != y).sum())
    ours, theirs = 100 * wrong / len(test.data), reference(shared, name, test.name)
    assert ours == pytest.approx(theirs, abs=bound), f"{ours:.1f} % where the reference has {theirs:.1f} %"


def test_the_suite_runs_what_the_committed_table_shows() -> None:
    """Every measured row is a job of ``cl-bench suite tta_cifar10c_1k``, but for MEMO's 97 passes per image."""
    here = Path(__file__).resolve().parents[1]
    lines = (here / "results/parity/tta_cifar10c_1k.jsonl").read_text().splitlines()
    shown = {(r["method"], int(r["model"].removeprefix("resnet")), r["seed"]) for r in map(json.loads, lines)}
    jobs = read_suite(here / "configs/suite/tta_cifar10c_1k.yaml").jobs
    run = {(j.config["method"], j.config["backbone"]["init_args"]["depth"], j.config["seed"]) for j in jobs}
    assert len(run) == len(jobs), "a job stands there twice"
    assert {row for row in shown - run if row[0] != "memo"} == set()
