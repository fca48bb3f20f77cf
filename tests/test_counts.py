"""What a method keeps is counted where it lies: it need not say so, and it cannot hide it in a plain attribute."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cl_bench import Method
from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.memory import Reservoir
from cl_bench.records.results import load
from cl_bench.registry import find
from cl_bench.state import size_bytes, stored_images

X = torch.zeros(6, 3, 4, 5, dtype=torch.uint8)


class Box:
    """A class of somebody's own."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside: Any) -> None:
        self.inside = inside


class Buffered(nn.Module):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)


@pytest.mark.parametrize("kept", [
    X, X.float() / 255, X.numpy(), list(X), tuple(X.numpy()), {"a": X[:2], "b": [X[2:]]}, deque(X), Box(X), Slotted(list(X)),
    Buffered(X), nn.ModuleList([Buffered(X)]), Box({"deep": [Box(X[:6])]}), [X, X[:3], X.view(6, 3, 4, 5)],
], ids=lambda v: type(v).__name__)
def test_images_are_found_in_whatever_keeps_them(kept: Any) -> None:
    assert stored_images(kept, (3, 4, 5)) == 6


def test_other_state_is_no_image() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 3, 4, 5))
            self.covariance, self.means, self.text = torch.zeros(9, 9), torch.zeros(6, 60), "words"

    assert stored_images(Net(), (3, 4, 5)) == 0
    assert stored_images(X, (4,)) == 0, "items of one dimension cannot be told from other state"


class Hoarder(Method):
    """Keeps images and says nothing."""

    def __init__(self, backbone: Any, *, where: str = "list", epochs: int = 0) -> None:
        super().__init__(backbone, epochs=epochs)
        self.where, self.kept = where, []

    def end(self, exp: Any) -> None:
        x = torch.stack([exp.data[k][0] for k in range(4)])
        if self.where == "list":
            self.kept.append(x)
        elif self.where == "mark":
            self.__dict__.setdefault("_marked_images", []).append(x)
        elif self.where == "buffer":
            self.register_buffer(f"images_{len(self.seen)}", x)
        elif self.where == "flat":
            self.kept += [torch.zeros(len(self.seen), 40_000)]
        else:
            self.kept.append(exp)


def record(where: str, runs: Path) -> dict[str, Any]:
    plan = plan_from(parse(["--scenario", "split_digits", "--scenario.per_class", "6", "--method", "finetune", "--checkpoint",
                            "false"]))
    plan.build = lambda backbone: Hoarder(backbone, where=where)
    return load(run(plan, runs)).record


@pytest.mark.parametrize(("where", "each"), [("list", 4), ("mark", 4), ("buffer", 4), ("experience", 12)])
def test_a_record_counts_what_a_method_does_not_tell(where: str, each: int, tmp_path: Path) -> None:
    r = record(where, tmp_path)
    assert [g["stored_samples"] for g in r["cost"]["growth"]] == [each * k for k in range(1, 6)]
    assert any("keeps 4 images and counts 0" in w or "keeps 12 images and counts 0" in w for w in r["warnings"])


def test_state_that_grows_without_a_memory_is_said(tmp_path: Path) -> None:
    r = record("flat", tmp_path)
    assert [g["stored_samples"] for g in r["cost"]["growth"]] == [0] * 5
    grown = [g["other_bytes"] for g in r["cost"]["growth"]]
    assert all(b - a >= 160_000 for a, b in pairwise(grown))
    assert any("neither parameter nor memory" in w for w in r["warnings"])


def test_memories_and_parameters_are_no_other_state(tmp_path: Path) -> None:
    argv = ["--scenario", "split_digits", "--scenario.per_class", "6", "--method", "er", "--method.epochs", "1"]
    r = load(run(plan_from(parse(argv)), tmp_path)).record
    growth = r["cost"]["growth"]
    assert growth[-1]["stored_samples"] == 60 and growth[-1]["other_bytes"] < 5000
    assert not any("images" in w or "grows" in w for w in r["warnings"])


def test_a_walk_counts_shared_memory_once() -> None:
    memory = Reservoir(8)
    memory.add(X, torch.zeros(6, dtype=torch.int64), torch.Generator())
    assert stored_images([memory, memory, memory.x, memory.x[:3]], (3, 4, 5)) == 6
    assert size_bytes([X, X]) == X.numel() and size_bytes(np.zeros(3)) == 24
    method = find("cl_bench.methods", "ncm")(find("cl_bench.backbones", "glyph_vit")())
    before = size_bytes(method)
    method.mark()
    assert size_bytes(method) == before, "the mark is the harness's"
