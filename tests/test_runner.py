"""Runs: the same bits from the same seed, after a stop, with another worker count; honest records."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_bench.command.config import parse, plan_from
from cl_bench.data.tensor import labels_of
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.runner import run
from cl_bench.errors import UserError
from cl_bench.method import Method
from cl_bench.records.results import load
from cl_bench.registry import find
from cl_bench.testing import ToyScenario
from cl_bench.types import LabelSpace

SPLIT = ["--scenario", "split_digits", "--scenario.per_class", "12", "--method", "finetune", "--method.epochs", "2"]
STREAM = ["--scenario", "digits_c", "--scenario.corruptions", "[gaussian_noise, contrast, fog]", "--method", "tent",
          "--source.epochs", "2"]


def go(argv: list[str], runs: Path, **kw: Any) -> Any:
    return load(run(plan_from(parse(argv)), runs, **kw))


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """All of a record that a seed determines."""
    stream = [{k: v for k, v in e.items() if k != "seconds"} for e in record["stream"]]
    cost = {k: v for k, v in record["cost"].items() if k not in ("seconds", "peak_memory_bytes")}
    return {"matrix": record["matrix"], "stream": stream, "metrics": record["metrics"], "cost": cost,
            "fingerprint": record["fingerprint"], "warnings": record["warnings"]}


@pytest.mark.parametrize("argv", [SPLIT, STREAM], ids=["split", "stream"])
def test_same_seed_same_bits_other_seed_other_numbers(argv: list[str], tmp_path: Path) -> None:
    a, b = (go([*argv, "--seed", "3"], tmp_path / n) for n in ("a", "b"))
    assert numbers(a.record) == numbers(b.record)
    assert all(np.array_equal(a.arrays()[k], b.arrays()[k]) for k in a.arrays())
    parameters = a.record["cost"]["parameters"]
    assert 0 < parameters["trainable"] < (0.05 if argv is STREAM else 1.01) * parameters["total"], "TENT trains norms alone"
    other = go([*argv, "--seed", "4"], tmp_path / "c")
    assert other.fingerprint == a.fingerprint, "seeds of one protocol share its fingerprint"
    assert numbers(other.record) != numbers(a.record)


def test_record_is_complete(tmp_path: Path) -> None:
    r = go(SPLIT, tmp_path)
    assert r.done and r.status == "finished"
    record = r.record
    assert [e["train_size"] for e in record["experiences"]] == [24] * 5
    assert np.isnan(r.matrix.percent[0, 1:]).all(), "classes never seen are not measured, not 0"
    assert record["cost"]["forward_images"] > record["cost"]["backward_images"] > 0
    assert record["cost"]["optimizer_steps"] == 5 * 2
    assert record["cost"]["parameters"]["trainable"] <= record["cost"]["parameters"]["total"]
    assert len(record["cost"]["growth"]) == 5
    losses = [e for e in r.events() if e["kind"] == "loss"]
    assert len(losses) == 10 and all(np.isfinite(e["value"]) for e in losses)
    assert not (r.folder / "checkpoint").exists(), "a finished run keeps no checkpoint"
    assert 'seed' not in json.dumps(record["fingerprint"]["fields"].get("weights"))


def test_what_changes_the_meaning_changes_the_fingerprint(tmp_path: Path) -> None:
    from cl_bench.engine.protocol import fingerprint

    def of(*extra: str, base: list[str] = STREAM) -> str:
        return str(fingerprint(plan_from(parse([*base, *extra])))["id"])

    base = of()
    assert of("--seed", "5") == base and of("--method.lr", "0.1") == base
    for extra in (["--scenario.severity", "3"], ["--source.epochs", "3"], ["--backbone", "glyph_vit"],
                  ["--scenario.test_batch_size", "10"], ["--scenario.corruptions", "[fog, contrast]"],
                  ["--backbone", "glyph_resnet", "--backbone.pretrained", "false"]):
        assert of(*extra) != base, extra


def integers_within(thing: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Every integer tensor reachable from ``thing`` through attributes and containers."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (str, bytes, type)):
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return [thing] if thing.dtype == torch.int64 else []
    parts = list(thing.values()) if isinstance(thing, dict) else list(thing) if isinstance(thing, (list, tuple)) else []
    slots = [getattr(thing, name) for cls in type(thing).__mro__ for name in vars(cls).get("__slots__", ())
             if not name.startswith("__") and hasattr(thing, name)]
    return [t for part in [*parts, *slots, *getattr(thing, "__dict__", {}).values()] for t in integers_within(part, seen)]


class Peeking(Method):
    """Looks for labels wherever a method can reach."""

    found: ClassVar[list[Any]] = []
    held: ClassVar[list[Any]] = []

    def epochs_for(self, exp: Any) -> int:
        return 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        loaders = self.trainer.test_dataloaders
        for feed in loaders if isinstance(loaders, list) else [loaders]:
            for batch in feed:
                Peeking.found += [t for t in batch if t.dtype == torch.int64]
            Peeking.held += integers_within(feed)
        return super().predict(x, space)


def test_a_methods_trainer_holds_rows_not_labels() -> None:
    scenario = ToyScenario()
    method = Peeking(find("cl_bench.backbones", "glyph_vit")())
    fit(method, scenario.experiences()[0], Compute("cpu"), 0)
    fit(method, scenario.experiences()[1], Compute("cpu"), 0)
    test = scenario.test_sets()[1]
    measure(method, [test], [scenario.space], Compute("cpu"), 8, 0)
    seen = torch.cat(Peeking.found).unique()
    assert seen.tolist() == list(range(len(test.data))), "only row numbers may be there"  # type: ignore[arg-type]
    labels = labels_of(test.data)
    assert any(torch.equal(t, labels) for t in integers_within(test)), "the walk finds no labels where there are some"
    assert not any(t.shape == labels.shape and torch.equal(t, labels) for t in Peeking.held), "the feed holds the labels"


def test_measuring_does_not_teach(tmp_path: Path) -> None:
    scenario = ToyScenario(learns=False, answers="all")
    from cl_bench.engine.source_training import SourceRecipe, ready_backbone

    base = ready_backbone(find("cl_bench.backbones", "glyph_resnet")(), scenario, SourceRecipe(epochs=1), Compute("cpu"), 0,
                          fits=False, cache=tmp_path)
    method = find("cl_bench.methods", "tent")(base)
    method.deploy(None)
    before = copy.deepcopy({k: v.clone() for k, v in method.state_dict().items()})
    measure(method, scenario.test_sets(), [scenario.space], Compute("cpu"), 16, 0)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_needs_are_checked_before_any_work(tmp_path: Path) -> None:
    plan = plan_from(parse(["--scenario", "split_digits", "--method", "eata"]))
    with pytest.raises(UserError, match=r"eata needs source, which scenario split_digits does not give"):
        run(plan, tmp_path)
    assert not list(tmp_path.iterdir())


class Breaks(Method):
    """Fails in its second experience."""

    def end(self, exp: Any) -> None:
        if len(self.seen) > 2:
            raise RuntimeError("no luck\nat all")


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    plan = plan_from(parse(SPLIT))
    plan.build = lambda backbone: Breaks(backbone, epochs=1)
    with pytest.raises(RuntimeError, match="no luck"):
        run(plan, tmp_path)
    (folder,) = [f for f in tmp_path.iterdir() if not f.name.startswith(".")]
    r = load(folder)
    assert r.status == "failed" and not r.done
    assert r.record["error"] == "RuntimeError: no luck at all"
    assert len(r.record["matrix"]["rows"]) == 1, "what was measured before is kept"


@pytest.mark.parametrize(("option", "said"), [
    ("lr", "lr must be at least 0, not -1"), ("batch_size", "batch_size must be at least 1, not -1"),
])
def test_an_option_out_of_range_is_the_users_to_mend(option: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        run(plan_from(parse([*SPLIT, f"--method.{option}", "-1"])), tmp_path)


def test_what_a_constructor_refuses_is_one_sentence(tmp_path: Path) -> None:
    plan = plan_from(parse(SPLIT))

    def build(backbone: Any) -> Method:
        raise ValueError("rank is larger than the layer")

    plan.build = build
    with pytest.raises(UserError, match=r"method finetune\(epochs=2\) cannot be built: rank is larger than the layer\."):
        run(plan, tmp_path)


class Exploding(Method):
    """Answers with NaN."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return super().predict(x, space) * float("nan")


def test_answers_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    plan = plan_from(parse(SPLIT))
    plan.build = lambda backbone: Exploding(backbone, epochs=0)
    r = load(run(plan, tmp_path))
    assert any("not finite" in w for w in r.record["warnings"])
    assert r.metrics["average_accuracy"] == 0


@pytest.mark.parametrize("argv", [SPLIT, STREAM], ids=["split", "stream"])
def test_killed_and_resumed_equals_uninterrupted(argv: list[str], tmp_path: Path) -> None:
    """A real process, killed the hard way after its first checkpoint."""
    whole = go(argv, tmp_path / "whole")
    code = ("import sys, time\nfrom pathlib import Path\nfrom cl_bench.command.config import parse, plan_from\n"
            "from cl_bench.engine.runner import run\n"
            "import cl_bench.engine.checkpoint as c\nold = c.save\n"
            "def save(folder, *a):\n    old(folder, *a)\n    print('saved', flush=True)\n    time.sleep(60)\n"
            "c.save = save\nrun(plan_from(parse(sys.argv[2:])), Path(sys.argv[1]))\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cut"), *argv], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "saved"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    (folder,) = [f for f in (tmp_path / "cut").iterdir() if not f.name.startswith(".")]
    assert load(folder).status == "running"
    record = load(folder).record
    resumed = load(run(plan_from(record["config"]), tmp_path / "cut", resume=folder))
    assert resumed.done
    assert numbers(resumed.record) == numbers(whole.record)
    assert all(np.array_equal(resumed.arrays()[k], whole.arrays()[k]) for k in whole.arrays())
    kinds = [e["kind"] for e in resumed.events()]
    assert "resume" in kinds and kinds.count("finish") == 1
