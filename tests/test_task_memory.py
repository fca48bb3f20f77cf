"""What a run leaves of itself in the process that goes on with the next one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from cl_bench.command import task
from cl_bench.command.sweep import read_suite, run_suite
from cl_bench.engine import trainer
from cl_bench.method import Method

SUITE = """
name: two
about: Two short runs.
seeds: [0, 1]
runs:
  - scenario: {class_path: split_digits, init_args: {per_class: 2}}
    backbone: glyph_vit
    methods: [ncm]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    (tmp_path / "two.yaml").write_text(SUITE)
    return read_suite(tmp_path / "two.yaml")


def test_no_method_outlives_its_run(suite: Any, tmp_path: Path) -> None:
    gc.collect()
    before = {id(o) for o in gc.get_objects() if isinstance(o, Method)}
    outcome = run_suite(suite, tmp_path / "runs", jobs=1)
    assert len(outcome.folders) == 2 and not outcome.failures
    assert trainer.tester.cache_info().currsize == 0
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, Method) and id(o) not in before]


@pytest.mark.parametrize(("growth", "walked"), [(-2**40, 2), (2**40, 0)])
def test_memory_is_given_back_after_a_run_that_left_much(suite: Any, tmp_path: Path, growth: int, walked: int,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    monkeypatch.setattr(task.gc, "collect", lambda: walks.append(1) or 0)
    monkeypatch.setattr(task, "GROWTH", growth)
    run_suite(suite, tmp_path / "runs", jobs=1)
    assert len(walks) == walked


def test_a_system_that_does_not_tell_its_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(self: Path, *args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", unread)
    assert task._resident() == 0
    task._free()
