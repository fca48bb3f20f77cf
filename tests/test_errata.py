"""docs/errata.md says what the methods declare: places are whole, settings exist, the first one is the default."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from cl_bench.registry import entries, find

PAGE = Path(__file__).parents[1] / "docs" / "errata.md"
DECLARED = [(name, d) for name in sorted(entries("cl_bench.methods"))
            for d in vars(find("cl_bench.methods", name)).get("differs", ())]


@pytest.mark.parametrize("name, difference", DECLARED, ids=[f"{n}-{k}" for k, (n, _) in enumerate(DECLARED)])
def test_a_declared_difference_is_whole_and_on_the_page(name: str, difference: Any) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{8} [\w./-]+(:\d+)?", difference.where), difference.where
    assert difference.what.endswith(".") and difference.what in PAGE.read_text(), "run python benchmarks/errata.py --table"
    cls = find("cl_bench.methods", name)
    known = inspect.signature(cls.__init__).parameters
    for settings in difference.here:
        assert set(settings) | set(difference.both) <= set(known), settings
        assert not set(settings) & set(difference.both), "both sides have it"
    if difference.here:
        assert all(known[k].default == v for k, v in difference.here[0].items()), "the first choice is the default"


def test_every_section_of_the_page_is_declared() -> None:
    assert set(re.findall(r"^## (\w+)$", PAGE.read_text(), re.M)) == {name for name, _ in DECLARED}
