"""A timeline with a kind of step that cl-bench does not know: handled where a package brings a handler, else refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_bench import registry
from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.errors import UserError

OUTSIDE = '''
from dataclasses import dataclass
from typing import Any
import torch
from cl_bench import LabelSpace
from cl_bench.registry import find
from cl_bench.engine.steps import Handler, measure_row

@dataclass(frozen=True)
class Forget:
    """A request to unlearn some classes."""
    name: str
    space: LabelSpace

def forget(run, method, step):
    with torch.no_grad():
        rows = [method.head.space.ids.index(i) for i in step.space.ids]
        method.head.weight[rows] = 0
        method.head.bias[rows] = -100
    measure_row(run, method, step.name, method.seen)
    run.event("forget", name=step.name, classes=list(step.space.ids))

HANDLER = Handler(Forget, forget)

class Unlearning(find("cl_bench.scenarios", "split_digits")):
    """Five experiences, then the first is to be forgotten."""
    def timeline(self):
        yield from super().timeline()
        yield Forget("forget the first", self.experiences()[0].space)
'''


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    info = tmp_path / "site" / "unlearning-0.1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "unlearning.py").write_text(OUTSIDE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unlearning\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[cl_bench.steps]\nforget = unlearning:HANDLER\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}


def test_a_step_from_outside_happens_in_its_place(outside: dict[str, str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ran = subprocess.run([sys.executable, "-m", "cl_bench.cli", "run", "--scenario", "unlearning:Unlearning",
                          "--scenario.per_class", "8", "--method", "finetune", "--method.epochs", "1", "--device", "cpu",
                          "--runs", str(runs), "--tracking", "none"], capture_output=True, text=True, env=outside)
    assert ran.returncode == 0, ran.stderr
    (folder,) = (f for f in runs.iterdir() if (f / "run.json").is_file())
    record = json.loads((folder / "run.json").read_text())
    assert record["matrix"]["rows"] == [*(e["name"] for e in record["experiences"]), "forget the first"]
    assert record["matrix"]["correct"][-1][0] == 0, "what was to be forgotten is"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["classes"] for e in events if e["kind"] == "forget"] == [record["experiences"][0]["classes"]]


def test_a_step_that_nothing_handles_is_refused_before_any_work(tmp_path: Path) -> None:
    plan = plan_from(parse(["--scenario", "split_digits", "--method", "ncm"]))
    known = type(plan.scenario).timeline

    class Odd(type(plan.scenario)):  # type: ignore[misc]
        def timeline(self):  # type: ignore[no-untyped-def]
            yield from known(self)
            yield object()

    plan.scenario.__class__ = Odd
    with pytest.raises(UserError, match=r"a step of type object, which nothing handles.*cl_bench\.steps"):
        run(plan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_group_is_known_to_the_registry() -> None:
    assert registry.GROUPS["steps"] == "cl_bench.steps"
