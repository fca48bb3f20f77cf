"""The contract, asked of everything that is registered: what is listed is what works."""

from __future__ import annotations

from typing import Any

import pytest

from cl_bench.registry import GROUPS, entries
from cl_bench.testing import check_method, check_scenario

METHODS = entries(GROUPS["methods"])
# Published defaults that take minutes on one core; `cl-bench check NAME` asks with them.
QUICK: dict[str, dict[str, Any]] = {"rmt": {"warmup": 2_000}, "memo": {"views": 4}}
SCENARIOS = entries(GROUPS["scenarios"])


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    report = check_method(METHODS[name].load(), name=name, hparams=QUICK.get(name))
    report.raise_if_failed()
    assert any(f.state == "passed" for f in report.findings)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    report = check_scenario(SCENARIOS[name].load(), name=name)
    report.raise_if_failed()
    skipped = [f for f in report.findings if f.state == "skipped"]
    if skipped:
        pytest.skip(skipped[0].note)
    assert all(f.state in ("passed", "exempt") for f in report.findings)


@pytest.mark.parametrize("group", ["methods", "scenarios"])
def test_an_exemption_has_a_reason(group: str) -> None:
    for name, entry in entries(GROUPS[group]).items():
        for check, reason in dict(entry.facts.get("exempt", {})).items():
            assert len(str(reason).split()) >= 3, f"{name} is exempt from {check!r} without a reason"
