"""Test-time methods in whole runs and long streams: what goes wrong is recorded and said, counts are complete, memory flat."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Stream
from tta_toy import deployed, images
from tta_toy_trained import deployed as trained

from cl_bench.command.config import parse, plan_from
from cl_bench.data import TensorData
from cl_bench.engine.compute import Compute
from cl_bench.engine.meter import Meter
from cl_bench.engine.runner import run
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.records.results import load
from cl_bench.registry import find
from cl_bench.state import size_bytes as state_bytes
from cl_bench.types import TestSet

COMPUTE = Compute(device="cpu", threads=1)


def go(runs: Path, *argv: str, scenario: tuple[str, ...] = ("--scenario", "digits_c"), build: Any = None) -> Any:
    of = "--scenario.of." if "--scenario.of" in scenario else "--scenario."
    stream = [*scenario, f"{of}corruptions", "[brightness, contrast]", "--source.epochs", "1"]
    plan = plan_from(parse([*stream, *argv]))
    plan.build = build or plan.build
    return load(run(plan, runs))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of records: its cache holds the source model, which is trained once."""
    return tmp_path_factory.mktemp("runs")


def test_losses_that_are_not_finite_are_in_the_record_and_said(runs: Path) -> None:
    def broken(backbone: Any) -> Any:
        method = find("cl_bench.methods", "tent")(backbone)
        method.lr = float("inf")  # no option takes it; at 1e30 some processors still find a finite loss
        return method

    r = go(runs, "--method", "tent", build=broken)
    cost, warnings = r.record["cost"], r.record["warnings"]
    assert cost["nonfinite"] == 11 and cost["steps"] == 1, "the first step breaks the network, 11 batches follow"
    said = [w for w in warnings if "losses or gradients of adapting" in w]
    assert [w.partition(" ")[0] for w in said] == ["5", "6"], f"one sentence per domain with its count: {warnings}"
    assert sum(e.nonfinite for e in r.stream.entries) > 0 and any("answers for" in w for w in warnings)
    assert {e["message"] for e in r.events() if e["kind"] == "warning"} == set(warnings)


def test_a_collapse_is_in_the_record_and_said(runs: Path) -> None:
    healthy = go(runs, "--method", "tent")
    assert not any(e.collapsed for e in healthy.stream.entries) and not any("collapse" in w for w in healthy.record["warnings"])
    r = go(runs, "--method", "tent", "--method.lr", "3.0")
    last = r.stream.entries[-1]
    assert last.collapsed and last.top_class_share >= 0.95 and last.nonfinite == 0
    assert r.record["metrics"]["collapsed_domains"] == sum(e.collapsed for e in r.stream.entries) > 0
    events = {e["name"] for e in r.events() if e["kind"] == "collapse"}
    assert events == {e.name for e in r.stream.entries if e.collapsed}
    assert any(w.startswith("collapse:") and last.name in w for w in r.record["warnings"])


@pytest.mark.parametrize("arrival", ["continual", "per_domain", "episodic"])
def test_counts_are_those_of_the_whole_stream_whatever_resets_take_back(arrival: str, runs: Path) -> None:
    r = go(runs, "--method", "sar", "--method.reset_below", "100", "--method.margin", "1.0",
           scenario=("--scenario", arrival, "--scenario.of", "digits_c"))
    cost = r.record["cost"]
    assert cost["batches"] == 12 and cost["steps"] + cost["skipped"] == 12
    assert cost["resets"] == cost["steps"] > 0, "the method's own resets are counted too"
    assert cost["trained_parameters"] < 10_000, "a size is no count: it must not add up"


@pytest.mark.parametrize("name", ["cotta", "rotta", "t3a"])
def test_memory_is_flat_over_a_stream_of_a_hundred_domains(name: str) -> None:
    method = trained("t3a", supports=3) if name == "t3a" else deployed(name)
    method.mark()
    meter, state, scenario = Meter(), StreamState(), Stream(batch=16)
    y = torch.arange(16) % len(scenario.space)

    def held() -> tuple[int, int]:
        """Bytes of the method's state, and of all tensors that are alive."""
        gc.collect()
        # Tensors without memory of their own (fake, functional, meta) may be alive from other tests.
        alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects()
                 if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.layout == torch.strided
                 and not torch._is_functional_tensor(t)}
        return state_bytes(method), sum(alive.values())

    after: dict[int, tuple[int, int]] = {}
    for k in range(100):
        test = TestSet(f"domain {k}", method.model.space, TensorData((images(16, k) * 255).to(torch.uint8), y))
        stream_step(method, test, method.model.space, scenario, COMPUTE, meter, state, k)
        del test
        if k + 1 in (20, 100):
            after[k + 1] = held()
    assert after[100][0] == after[20][0], "the method's state grows"
    assert after[100][1] <= after[20][1] + 4096, f"tensors are left behind: {after}"
    assert method.counts["batches"] == 100
