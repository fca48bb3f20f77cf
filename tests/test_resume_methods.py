"""What methods do by themselves within a fit or a segment, and a resumed run goes on with: modes, draws, data, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_resume import LEARN, OFTEN, STREAM, numbers, resume, stop

from cl_bench.command.config import parse, plan_from
from cl_bench.engine import runner
from cl_bench.engine.fit import FitPosition
from cl_bench.engine.runner import run
from cl_bench.engine.stream import SegmentPosition
from cl_bench.records.results import load

SWITCHES = """
from torch import nn
from cl_bench import Method

class Switches(Method):
    adapts = True

    def __init__(self, backbone, *, lr: float = 0.1):
        super().__init__(backbone, lr=lr)
        self.switch = nn.Identity()

    def deploy(self, source, stream):
        self.late = nn.Identity()

    def predict(self, x, space):
        answer = self.backbone.model(x)[:, : len(space)]
        answer = answer.roll(1, 1) if self.switch.training else answer
        self.switch.train()
        return answer
"""


def test_what_a_method_switches_within_a_segment_stays_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(SWITCHES)
    argv = [*STREAM, "--method", f"{tmp_path / 'mine.py'}:Switches"]
    built: list[Any] = []
    real = runner._built
    monkeypatch.setattr(runner, "_built", lambda *a: built.append(real(*a)) or built[-1])
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    modes = [m.training for m in built[-1].modules()]
    resumed = resume(stop(argv, tmp_path / "cut", monkeypatch, lambda p: isinstance(p.inside, SegmentPosition)))
    assert numbers(resumed) == numbers(whole)
    assert [m.training for m in built[-1].modules()] == modes


NOISY = """
import torch
from cl_bench import Method

class Noisy(Method):
    def training_step(self, batch, batch_idx):
        return self.loss(self(batch.x + 0.1 * torch.rand_like(batch.x)), batch.y, among=self.seen)
"""


def test_what_a_method_draws_from_torch_within_a_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    argv = [*LEARN, "--method", f"{tmp_path / 'noisy.py'}:Noisy"]
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    resumed = resume(stop(argv, tmp_path / "cut", monkeypatch, lambda p: isinstance(p.inside, FitPosition)))
    assert numbers(resumed) == numbers(whole)


CHOOSES = """
import random
import torch
from cl_bench import Method, TensorData

class Chooses(Method):
    def begin(self, exp):
        super().begin(exp)
        torch.rand(1, generator=self.rng.on("cpu")), random.random()

    def training_data(self, exp):
        x = torch.stack([exp.data[k][0] for k in range(len(exp.data))])
        self.backbone.forward_features(x.float() / 255)
        rows = torch.randperm(len(x), generator=self.rng.on("cpu"))[random.randrange(3):10 + int(torch.randint(9, (1,)))]
        return TensorData(x[rows], torch.tensor([exp.data[int(k)][1] for k in rows]))
"""


def test_a_method_that_draws_and_counts_as_it_gives_its_training_data_goes_on(tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chooses.py").write_text(CHOOSES)
    argv = [*LEARN, "--method", f"{tmp_path / 'chooses.py'}:Chooses"]
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    resumed = resume(stop(argv, tmp_path / "cut", monkeypatch, lambda p: isinstance(p.inside, FitPosition), 1))
    assert numbers(resumed) == numbers(whole)


def test_embeddings_of_names_that_a_resumed_run_makes_again_are_no_state(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--scenario", "vlm_glyphs", "--scenario.domains", "1", "--scenario.shots", "1", "--method", "clip_adapter",
            "--method.iterations", "4", "--method.batch_size", "9", *OFTEN]
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    resumed = resume(stop(argv, tmp_path / "cut", monkeypatch, lambda p: isinstance(p.inside, FitPosition), 1))
    assert numbers(resumed) == numbers(whole)
