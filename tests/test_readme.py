"""What the README says there is, is what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cl_bench.command.listing import rows

HOME = Path(__file__).resolve().parents[1]
README = (HOME / "README.md").read_text(encoding="utf-8")
DOCS = [HOME / "README.md", HOME / "CONTRIBUTING.md", HOME / "ARCHITECTURE.md", *sorted((HOME / "docs").glob("*.md"))]


def listed(title: str) -> list[str]:
    (item,) = re.findall(rf"^- {title}[^:]*: (.*?)(?=^- |^$)", README, re.M | re.S)
    return re.findall(r"`(\w+)`", item)


def named(kind: str, family: str = "", without: str = "\0") -> list[str]:
    return sorted(r["name"] for r in rows(kind) if family in r.get("family", "") and without not in r.get("family", ""))


@pytest.mark.parametrize(("title", "found"), [
    ("methods, continual", named("methods", without="test-time")), ("methods, test-time", named("methods", "test-time")),
    ("scenarios that learn", named("scenarios", without="stream")), ("test-time streams", named("scenarios", "stream")),
    ("backbones", named("backbones")), ("adapters", named("adapters")), ("suites", named("suites")),
], ids=lambda v: v if isinstance(v, str) else "")
def test_the_readme_names_everything_there_is(title: str, found: list[str]) -> None:
    assert listed(title) == found, f"README.md, 'What there is', {title}: make it {', '.join(found)}"


@pytest.mark.parametrize("file", DOCS, ids=lambda f: f.name)
def test_links_lead_to_files(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), f"{file.name} links to {target}, which is not there"


def test_the_commands_in_the_readme_parse() -> None:
    """Every `cl-bench run` line of the README that names parts by name is a config that can be built."""
    from cl_bench.command.config import parse

    lines = re.findall(r"^    cl-bench run (--.*?[^\\])$", README, re.M | re.S)
    tried = 0
    for line in lines:
        words = shlex.split(line.partition("  #")[0].replace("\\\n", " "))
        if not any(w.startswith("mine.py") for w in words):
            parse(words)
            tried += 1
    assert tried >= 5, lines


def test_the_method_of_the_readme_is_whole(tmp_path: Path) -> None:
    """What stands there, in a file of its own, keeps the contract and makes a record."""
    from cl_bench.cli import main
    from cl_bench.records.results import load_all
    from cl_bench.registry import find
    from cl_bench.testing import check_method

    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(code)
    target = f"{tmp_path / 'mine.py'}:Mine"
    check_method(find("cl_bench.methods", target), name="mine").raise_if_failed()
    argv = ["run", "--scenario", "split_digits", "--scenario.per_class", "20", "--method", target, "--method.epochs", "3",
            "--device", "cpu", "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    assert main(argv) == 0
    (run,) = load_all(tmp_path / "runs")
    assert run.method == "mine.py:Mine(epochs=3)" and run.done
