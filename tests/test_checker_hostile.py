"""Every hostile plug-in is stopped where ``docs/trust.md`` says, or is harmless for the reason that it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import hostile_conduct  # noqa: F401 - adds its crimes to the list
import hostile_process  # noqa: F401 - adds its crimes to the list
import hostile_streams
import hostile_traces  # noqa: F401 - adds its crimes to the list
import pytest
from hostile import CRIMES, LEARNS, Crime, Learner, backbone

from cl_bench import Method, UserError
from cl_bench.testing import Checker, check_method, checks_for
from cl_bench.testing.world import changed, code, patched, unharmed, world

DOCS = Path(__file__).resolve().parents[1] / "docs" / "trust.md"
CAUGHT = [c for c in CRIMES if not c.by.startswith(("because", "its definition"))]
HARMLESS = [c for c in CRIMES if c.by.startswith("because")]


def some(crimes: list[Crime]) -> list[Any]:
    """Each as a parameter: of those that one check catches the first three and every third after them in each run of the
    tests, all of them in ``make soak``."""
    seen: Counter[str] = Counter()
    out = []
    for crime in crimes:
        seen[crime.by] += 1
        often = seen[crime.by] <= 3 or seen[crime.by] % 3 == 0
        out.append(pytest.param(crime, id=crime.name, marks=() if often else pytest.mark.soak))
    return out


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """What a crime hid in a class or a module is not found with the next one."""
    yield
    hostile._MODULE.clear()
    hostile.KeepsOnTheClass.store.clear()


@pytest.mark.parametrize("cls", [Learner, hostile_streams.Drifting], ids=lambda c: c.__name__)
def test_the_honest_pass_everything(cls: type[Method]) -> None:
    report = check_method(cls, backbone=backbone)
    report.raise_if_failed()
    assert [f.check for f in report.findings] == checks_for(cls) and len(report.findings) >= 25
    assert {f.state for f in report.findings} == {"passed"}


@pytest.mark.parametrize("crime", some(CAUGHT))
def test_a_crime_is_caught(crime: Crime) -> None:
    few = {"epochs": 2} if issubclass(crime.cls, Learner) and crime.by != LEARNS else {}
    with unharmed(crime.cls):
        checker = Checker(crime.cls, backbone=backbone, hparams=few)
        finding = checker.ask(crime.by).findings[-1]
    assert finding.state == "failed", finding
    assert any(said in finding.note for said in crime.said.split("|")), finding.note


@pytest.mark.parametrize("crime", [c for c in CRIMES if c.by == "its definition"], ids=lambda c: c.name)
def test_a_final_method_cannot_be_overridden(crime: Crime) -> None:
    with pytest.raises(UserError, match=f"{crime.said}, which is final"):
        crime.cls()


@pytest.mark.parametrize("crime", some(HARMLESS))
def test_what_is_harmless_gains_nothing(crime: Crime) -> None:
    with unharmed(crime.cls):
        check_method(crime.cls, backbone=backbone).raise_if_failed()


def test_what_a_crime_did_to_the_process_is_undone() -> None:
    honest, before, known = Learner, world(), code(Learner)
    for name in ("HooksAllModules", "SetsTheDtype", "TurnsGradientsOff", "SetsTheEnvironment", "HushesWarnings", "Interrupts",
                 "PatchesTheScorer", "PatchesTensors", "HooksSavedTensors", "Moves", "TakesTheOutput"):
        (crime,) = [c for c in CRIMES if c.name == name]
        with unharmed(crime.cls):
            assert Checker(crime.cls, backbone=backbone).ask(crime.by).findings[-1].state == "failed"
        assert (changed(before, world()), patched(known, code(honest))) == ([], []), name


def rows() -> list[str]:
    """The table of ``docs/trust.md`` as it should be."""
    order = sorted(CRIMES, key=lambda c: (c.by.startswith("because"), c.by != "its definition", c.by))
    return [f"| {c.what.rstrip('.')} | {c.by if c.by.startswith(('because', 'its')) else f'`{c.by}`'} | `{c.name}` |"
            for c in order]


def test_the_page_on_trust_lists_every_crime() -> None:
    shown = re.findall(r"^\| .*\| `\w+` \|$", DOCS.read_text(encoding="utf-8"), re.M)
    assert shown == rows(), "docs/trust.md, 'What is stopped': make the table\n" + "\n".join(rows())


# Plug-ins of others, where their folder is there: what is stopped elsewhere, or is harmless.
ELSEWHERE = {
    "TaskId": "there is one loader: its number says nothing",
    "SizeId": "it only writes down what it sees: no size and no label",
    "FutureImages": "it finds nothing, and goes on",
    "MutateTrain": "it writes into copies",
    "StreamLabels": "it finds nothing, and goes on",
}


def _others(shared: Path) -> dict[str, Any]:
    file = shared / "cases" / "hostile" / "hostile.py"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    spec = importlib.util.spec_from_file_location("hostile_of_others", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    text = file.read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for name in re.findall(r"^class (\w+)\(_(?:Base|T)\)", text, re.M):  # one by one: some are refused when defined
        found[name] = None
    try:
        spec.loader.exec_module(module)
        found.update({n: getattr(module, n) for n in found})
    except UserError:
        kept = re.split(r"^(?=class )", text, flags=re.M)
        space = module.__dict__
        for part in kept:
            try:
                exec(compile(part, str(file), "exec"), space)
            except UserError as fault:
                assert "final" in str(fault)
        found.update({n: space.get(n) for n in found})
    return found


@pytest.mark.slow
def test_the_plug_ins_of_others(shared: Path) -> None:
    missed = []
    for name, cls in _others(shared).items():
        if cls is None or name == "Honest":
            continue  # refused when it was defined
        checker = Checker(cls, backbone=backbone)
        with unharmed(cls):  # one check that fails is enough
            ok = all(checker.ask(check).ok for check in checks_for(cls))
        if ok and name not in ELSEWHERE:
            missed.append(name)
    assert not missed, f"{missed} pass every check"
