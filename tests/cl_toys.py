"""Small things that the continual-learning tests share: a tiny backbone, toy images, and the learning loop."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_bench import Backbone, Experience, LabelSpace, Method, Scenario, TensorData
from cl_bench.backbones import Preprocess
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.registry import find
from cl_bench.testing import check_scenario

CPU = Compute(device="cpu")


def method(name: str, backbone: Backbone | None = None, **kw: Any) -> Method:
    """The registered method on a tiny backbone, drawn from a fixed seed."""
    torch.manual_seed(0)
    return find("cl_bench.methods", name)(backbone or tiny_backbone(), **kw)


def tiny_backbone(norm: bool = False) -> Backbone:
    """Two convolutions and a linear layer on 8 x 8 images, 16 features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(),
        )
    return Backbone(model, num_features=16, preprocess=Preprocess(None))


def toy(classes: tuple[int, ...], n: int = 20, seed: int = 0, clear: float = 0.7) -> Experience:
    """Images whose class is a fixed pattern, a share ``clear`` of them, plus noise."""
    g = torch.Generator().manual_seed(seed)
    xs, ys = [], []
    for c in classes:
        pattern = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(100 + c))
        xs.append((clear * pattern + (1 - clear) * torch.rand(n, 3, 8, 8, generator=g)).mul(255).to(torch.uint8))
        ys += [c] * n
    return Experience(f"toy {classes}", LabelSpace(classes), TensorData(torch.cat(xs), torch.tensor(ys)))


def learn(m: Method, *experiences: Experience) -> Method:
    """Fit ``m`` on experiences, one after another, as the runner does."""
    for k, exp in enumerate(experiences):
        fit(m, exp, CPU, 10 + k)
    return m


def images(exp: Experience) -> tuple[Tensor, Tensor]:
    """An experience's images as floats, and labels."""
    return exp.data.x.float() / 255, exp.data.y  # type: ignore[attr-defined]


def accuracy(m: Method, exp: Experience, space: LabelSpace | None = None) -> float:
    """Share of an experience's images answered right among ``space`` (all seen classes)."""
    space = space or m.seen
    x, y = images(exp)
    with torch.no_grad():
        best = m.eval().predict(x, space).argmax(1)
    return float((torch.tensor(space.ids)[best] == y).float().mean())


def promised(build: Callable[[], Scenario]) -> Scenario:
    """The scenario that ``build`` makes, once the shipped checker has asked every promise of it with its files there."""
    built = build()  # once before: finding a name reads the entry points, and the checker watches what is opened
    report = check_scenario(build)
    report.raise_if_failed()
    unasked = [f"{f.check}: {f.note}" for f in report.findings if f.state != "passed"]
    assert not unasked and len(report.findings) >= 10, unasked
    return built


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as f:
        f.write(header + array.astype(np.uint8).tobytes())


def mnist_files(root: Path, parts: tuple[str, ...] = ("train", "t10k"), seed: int = 0) -> None:
    """MNIST's files with 40 and 20 images of noise."""
    rng = np.random.RandomState(seed)
    for part in parts:
        n = 40 if part == "train" else 20
        write_idx(root / f"{part}-images-idx3-ubyte.gz", rng.randint(0, 256, (n, 28, 28)))
        write_idx(root / f"{part}-labels-idx1-ubyte.gz", np.arange(n) % 10)
