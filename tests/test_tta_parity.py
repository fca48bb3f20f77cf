"""LAME on the shared CIFAR-10-C subset, against what the public implementation reaches on the same images."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from cl_bench.data.tensor import batches
from cl_bench.registry import find


def reference(shared: Path, method: str, model: str) -> dict[str, float]:
    with (shared / "reference/tta_cifar10c_1k.csv").open() as f:
        row = next(r for r in csv.DictReader(f) if (r["method"], r["model"]) == (method, model))
    return {k: float(v) for k, v in row.items() if k not in ("method", "model", "seed") and not k.startswith("seconds")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("source", 20), ("lame", 20), ("lame", 56)])
def test_error_per_corruption_is_the_references(shared: Path, name: str, depth: int) -> None:
    expected = reference(shared, name, f"resnet{depth}")
    scenario = find("cl_bench.scenarios", "cifar10c")(root=str(shared / "data/cifar10c_1k"))
    backbone = find("cl_bench.backbones", "cifar_resnet")(depth=depth, folder=str(shared / f"weights/resnet{depth}"))
    method = find("cl_bench.methods", name)(backbone).eval()
    method.deploy(None)
    errors = {}
    for test in scenario.stream():
        wrong = 0
        for x, y in batches(test.data, scenario.test_batch_size):
            with torch.no_grad():
                wrong += int((method.predict(x, scenario.space).argmax(1) != y).sum())
        errors[test.name] = 100 * wrong / len(test.data)
    far = {k: (v, expected[k]) for k, v in errors.items() if abs(v - expected[k]) > 0.5}
    assert not far, f"ours and the reference differ by more than half a point: {far}"
    assert sum(errors.values()) / 15 == pytest.approx(expected["mean"], abs=0.1)
