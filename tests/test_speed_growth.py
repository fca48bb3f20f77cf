"""What grows with a run stays in proportion to it, and what a command imports is imported once and no more than that."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toys import coded

from cl_bench.command.config import parse, plan_from
from cl_bench.engine import run_state
from cl_bench.engine.feed import Pool
from cl_bench.engine.run_state import RunState
from cl_bench.engine.runner import run
from cl_bench.errors import UserError
from cl_bench.records import tracking_worker
from cl_bench.records.results import load

CPU = torch.device("cpu")
DIGITS = ["--scenario", "split_digits", "--scenario.per_class", "6", "--device", "cpu"]


class Listed(torch.utils.data.Dataset[Any]):
    """Data that are read item by item."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def test_a_batch_costs_the_same_however_many_test_sets_a_row_has() -> None:
    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    spent = []
    for count in (3, 40):
        data = [coded(k % 3) for k in range(count)]  # every third is empty
        whole = torch.cat([d.x for d in data]).float() / 255
        order = torch.tensor([2, 0, 1])
        batches = Pool(data, 2, CPU).batches(order)
        with Counted() as counted_:
            (_, first), = [next(batches)]
        torch.testing.assert_close(first, whole[order[:2]])
        spent.append(counted_.calls)
    assert spent[0] == spent[1]
    pool = Pool([Listed(d) for d in data], 2, CPU)
    assert all(torch.equal(x, whole[rows]) for rows, x in pool.batches(torch.randperm(len(whole))))


def test_a_record_is_written_where_that_is_cheap_and_whole_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = RunState.write

    def write(self: RunState, **changes: Any) -> None:
        written.append(len(self.position.rows))
        real(self, **changes)

    monkeypatch.setattr(RunState, "write", write)
    words = [*DIGITS, "--method", "ncm", "--checkpoint", "false"]
    often = load(run(plan_from(parse(words)), tmp_path / "often")).record
    assert len(set(written)) > 1, "steps that take longer are in the record when they are over"
    monkeypatch.setattr(run_state, "DEAR", 10**9)
    written.clear()
    seldom = load(run(plan_from(parse(words)), tmp_path / "seldom")).record
    assert written[:2] == [0, 0] and len(written) == 3
    assert seldom["matrix"] == often["matrix"] and seldom["metrics"] == often["metrics"]


@pytest.mark.parametrize("needs", [(), ("colorsys",)], ids=["nothing", "it"])
def test_a_store_is_opened_without_what_it_does_not_need(needs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that MLflow takes along are not imported, unless this version of it needs them."""
    opened: list[str] = []
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(tracking_worker, "SPARED", ("colorsys", "json"))

    def store(uri: str, runs: Path) -> str:
        opened.append(uri)
        import json  # noqa: F401  (was there before)
        if needs == ("colorsys",):
            import colorsys
        else:
            with pytest.raises(ImportError):
                import colorsys  # noqa: F401
        return "open"

    monkeypatch.setattr(tracking_worker, "Store", store)
    assert tracking_worker._opened("uri", Path()) == "open" and len(opened) == (2 if needs == ("colorsys",) else 1)
    import colorsys  # noqa: F401  (afterwards it can be imported)


def test_a_command_imports_without_collecting_and_collects_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cl_bench.cli import main
    from cl_bench.command import config, processes

    seen: list[bool] = []
    parsed = config.parse
    monkeypatch.setattr(config, "parse", lambda *a: (seen.append(gc.isenabled()), parsed(*a))[1])

    def execute(*a: Any, **k: Any) -> None:
        seen.append(gc.isenabled())
        raise UserError("far enough")

    monkeypatch.setattr(processes, "execute", execute)
    assert main(["run", *DIGITS, "--method", "ncm", "--tracking", "none", "--runs", str(tmp_path)]) == 2
    assert seen == [False, True] and gc.isenabled()
