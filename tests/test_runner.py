"""Runs: the same bits from the same seed, after a stop, with another worker count; honest records."""

from __future__ import annotations

import copy
import json
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Lazy

from cl_bench import Scenario, TestSet, Wrapper
from cl_bench.command.config import parse, plan_from
from cl_bench.data.tensor import labels_of
from cl_bench.engine.compute import Compute
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
    cost = {k: v for k, v in record["cost"].items() if "seconds" not in k and "memory" not in k}
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


def reachable(thing: Any) -> list[Any]:
    """Every object to which public and single-underscore attributes and containers of ``thing`` lead."""
    seen: dict[int, Any] = {}
    stack = [thing]
    while stack:
        here = stack.pop()
        if id(here) in seen or isinstance(here, (str, bytes, int, float, type, type(None), ModuleType)):
            continue
        seen[id(here)] = here
        if isinstance(here, (Tensor, np.ndarray)):
            stack += [getattr(here, "_base", None), getattr(here, "base", None)]
            continue
        if isinstance(here, dict):
            stack += [*here.keys(), *here.values()]
        elif isinstance(here, (list, tuple, set, frozenset, deque)):
            stack += list(here)
        names = [a for a in dir(type(here)) if not a.startswith("__")] if type(here).__module__ not in STANDARD else []
        for name in {*getattr(here, "__dict__", {}), *names}:
            with suppress(Exception):
                stack.append(getattr(here, name))
    return list(seen.values())


STANDARD = {"builtins", "collections", "logging", "threading", "inspect", "functools", "types", "weakref"}


class Peeking(Method):
    """Looks for what it may not have wherever a method can reach."""

    adapts: ClassVar[bool] = True
    held: ClassVar[list[Any]] = []
    fits: ClassVar[list[int]] = []

    def begin(self, exp: Any) -> None:
        super().begin(exp)
        Peeking.held += reachable(exp)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            Peeking.held += reachable([self, batch, self.trainer])
        return super().training_step(batch, batch_idx)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not Peeking.fits or Peeking.fits[-1] != len(x):
            Peeking.fits.append(len(x))
            Peeking.held += reachable([self, x, space, self.trainer])
        return super().predict(x, space)


class Filed(Wrapper):
    """The same with data that are read item by item."""

    def experiences(self) -> Any:
        return [replace(e, data=Lazy(e.data)) for e in self.of.experiences()]

    def test_sets(self) -> Any:
        return [replace(t, data=Lazy(t.data)) for t in self.of.test_sets()]

    def stream(self) -> Any:
        return [replace(t, data=Lazy(t.data)) for t in self.of.stream()]

    def timeline(self) -> Any:
        for step in self.of.timeline():
            yield replace(step, data=Lazy(step.data))


@pytest.mark.parametrize("files", [False, True], ids=["held", "files"])
def test_nothing_that_a_method_is_handed_leads_to_labels_tests_or_the_scenario(files: bool, tmp_path: Path) -> None:
    """Test labels, test sets, other experiences and scenarios are out of reach by any attribute but dunder ones."""
    Peeking.held, Peeking.fits = [], []
    plan = plan_from(parse(["--scenario", "deployed_digits", "--method", "finetune", "--scenario.corruptions", "[fog]"]))
    if files:
        plan.scenario = Filed(plan.scenario)
    plan.build = lambda backbone: Peeking(backbone, epochs=1)
    run(plan, tmp_path)
    scenario = plan.scenario
    assert len(Peeking.held) > 1000, "the walk saw nothing: this test would not notice"
    forbidden = [t for t in Peeking.held if isinstance(t, (TestSet, Scenario))]
    assert not forbidden, f"led to {forbidden[:3]}"
    labels = [labels_of(t.data) for t in [*scenario.test_sets(), *scenario.stream()]]
    tensors = [torch.as_tensor(t) for t in Peeking.held if isinstance(t, (Tensor, np.ndarray)) and t.dtype != object]
    for y in labels:
        assert not any(t.shape == y.shape and not t.is_floating_point() and torch.equal(t.cpu().long(), y) for t in tensors)
    widest = max(len(e.data) for e in scenario.experiences())
    assert all(len(t) <= widest for t in tensors if t.ndim == 4 and t.shape[1] == 3 and t.dtype == torch.uint8)


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
    with pytest.raises(UserError, match=r"eata needs source, which scenario split_digits does not give"):
        run(plan_from(parse(["--scenario", "split_digits", "--method", "eata"])), tmp_path)
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
