"""The contract, asked of everything that is registered: what is listed is what works. Each promise of each method is a test
of its own name: ``pytest tests/test_contract.py -k 'tent and reset'``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

from cl_bench.registry import GROUPS, entries
from cl_bench.testing import Checker, check_scenario, checks_for

METHODS = entries(GROUPS["methods"])
# Published defaults that take minutes on one core; `cl-bench check NAME` asks with them.
QUICK: dict[str, dict[str, Any]] = {"rmt": {"warmup": 2_000}, "memo": {"views": 2},
                                    "moe_adapters": {"experts": 4, "code_steps": 20}}
QUICK |= {name: {"views": 4} for name in ("boostadapter", "c_tpt", "mta", "r_tpt", "sts", "tps", "tpt", "zero")}
SCENARIOS = entries(GROUPS["scenarios"])


def promises() -> Iterator[Any]:
    """(method, check) for every method and every check that applies to it; those of one method stand together."""
    for name, entry in METHODS.items():
        for check in checks_for(entry.load()):
            yield pytest.param(name, check, id=f"{name}-{check}")


@lru_cache(maxsize=1)
def checker(name: str) -> Checker:
    """A method's checks share one fit; the last method's is kept."""
    return Checker(METHODS[name].load(), name=name, hparams=QUICK.get(name))


@pytest.mark.parametrize(("name", "check"), promises())
def test_method(name: str, check: str) -> None:
    (finding,) = checker(name).ask(check).findings
    assert finding.state in ("passed", "exempt"), finding.note


def test_every_method_keeps_most_promises() -> None:
    for name, entry in METHODS.items():
        asked = checks_for(entry.load())
        assert len(asked) >= 25 and len(asked) - len(entry.load().exempt) >= 20, name


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


def test_an_exemption_names_a_check() -> None:
    for name, entry in METHODS.items():
        unknown = set(entry.load().exempt) - set(checks_for(entry.load()))
        assert not unknown, f"{name} is exempt from {unknown}, which nobody asks of it"
