"""What a method's own state is: marks are copies, a reset leaves nothing behind, settings are no memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import tiny_backbone

from cl_bench import Experience, LabelSpace, Method
from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.memory import Reservoir
from cl_bench.records.results import load


def test_a_reset_takes_away_what_was_born_after_the_mark() -> None:
    method = Method(tiny_backbone())
    method.kept = [1]
    method.mark()
    method.born, method.kept[0] = 3, 2
    method.layer = torch.nn.Linear(2, 2)
    method.reset()
    assert not hasattr(method, "born") and not hasattr(method, "layer") and method.kept == [1]


def test_a_mark_is_a_copy_and_each_reset_hands_out_another() -> None:
    method = Method(tiny_backbone())
    weight = method.backbone.model[1].weight
    first = weight.detach().clone()
    method.mark()
    for _ in range(2):
        with torch.no_grad():
            method.backbone.model[1].weight.add_(1)
        method.reset()
        assert torch.equal(method.backbone.model[1].weight, first)


def test_a_loss_among_some_classes_is_the_softmax_over_these() -> None:
    method = Method(tiny_backbone())
    method.head.grow(LabelSpace((4, 2, 7)))
    logits, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 4, 7, 4, 7])
    part = F.cross_entropy(logits[:, [2, 0]], torch.tensor([0, 1, 0, 1, 0]))
    assert torch.allclose(method.loss(logits, y, LabelSpace((7, 4))), part)
    assert torch.allclose(method.loss(logits, y), F.cross_entropy(logits, torch.tensor([2, 0, 2, 0, 2])))


def test_a_setting_called_samples_is_no_memory() -> None:
    method = Method(tiny_backbone())
    method.samples = 50
    assert method.stored_samples() == 0
    method.memory = Reservoir(4)
    method.memory.add(torch.zeros(3, 3, 4, 4), torch.arange(3), torch.Generator())
    assert method.stored_samples() == 3


class Recorder(Method):
    """Notes what it was deployed with, and counts its batches."""

    adapts: ClassVar[bool] = True
    sources: ClassVar[list[Any]] = []

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self.batches = 0

    def deploy(self, source: Experience | None, stream: Any = None) -> None:
        Recorder.sources.append(source)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.batches += 1
        return super().predict(x, space)

    def counters(self) -> dict[str, int | float]:
        return {"batches": self.batches}


class WithSource(Recorder):
    """Needs source data."""

    needs: ClassVar[frozenset[str]] = frozenset({"source"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder: its cache holds the source model, which is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("cls", [Recorder, WithSource])
def test_a_stream_with_resets_and_visits_is_told_whole(cls: type[Recorder], runs: Path) -> None:
    argv = ["--scenario", "recurring", "--scenario.visits", "2", "--scenario.of", "per_domain", "--scenario.of.of", "digits_c",
            "--scenario.of.of.corruptions", "[fog, contrast]", "--source.epochs", "1", "--method", "source"]
    plan = plan_from(parse(argv))
    plan.build, plan.method = cls, cls
    Recorder.sources.clear()
    record = load(run(plan, runs))
    assert [s is not None for s in Recorder.sources] == [cls is WithSource], "source data go to those who need them"
    entries = record.stream.entries
    assert [(e.domain, e.visit) for e in entries] == [("fog", 1), ("contrast", 1), ("fog", 2), ("contrast", 2)]
    assert [e["name"] for e in record.events() if e["kind"] == "reset"] == [e.name for e in entries[1:]]
    batches = sum(-(-e.total // record.record["fingerprint"]["fields"]["test_batch_size"]) for e in entries)
    assert record.record["cost"]["batches"] == batches, "batches of before a reset count as well"
