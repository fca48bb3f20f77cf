"""Methods from outside: one file, and an installed package that is found by its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_bench.command.cli import main
from cl_bench.records.results import load_all
from cl_bench.registry import find
from cl_bench.testing import check_method, check_scenario

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MINE = f"{EXAMPLES / 'mine.py'}:FeatureReplay"


def test_the_file_passes_the_checker() -> None:
    check_method(find("cl_bench.methods", MINE), name="mine").raise_if_failed()


def test_the_test_time_file_passes_the_checker_and_adapts() -> None:
    cls = find("cl_bench.methods", f"{EXAMPLES / 'my_tta.py'}:ConfidentEntropy")
    assert cls.adapts
    check_method(cls, name="my_tta").raise_if_failed()


def test_the_scenario_file_passes_the_checker_and_runs(tmp_path: Path) -> None:
    target = f"{EXAMPLES / 'my_scenario.py'}:EvenThenOdd"
    report = check_scenario(find("cl_bench.scenarios", target), name="my_scenario")
    report.raise_if_failed()
    assert not [f for f in report.findings if f.state == "skipped"]
    argv = ["run", "--scenario", target, "--scenario.per_class", "4", "--method", "ncm", "--device", "cpu",
            "--runs", str(tmp_path), "--tracking", "none"]
    assert main(argv) == 0
    (run,) = load_all(tmp_path)
    assert run.matrix.columns == ("even", "odd") or list(run.matrix.columns) == ["even", "odd"]
    assert run.metrics["average_accuracy"] > 60


def test_the_file_runs_with_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "--scenario", "split_digits", "--scenario.per_class", "6", "--method", MINE, "--method.per_class", "5",
            "--method.epochs", "1", "--device", "cpu", "--runs", str(tmp_path), "--tracking", "none"]
    assert main(argv) == 0
    (run,) = load_all(tmp_path)
    assert run.method == "mine.py:FeatureReplay(epochs=1, per_class=5)" and run.done
    assert run.record["method"]["family"] == "example" and run.method.split("(")[0] in capsys.readouterr().out
    stored = run.record["cost"]["growth"]
    assert stored[-1]["state_bytes"] > stored[0]["state_bytes"], "its stored features are counted"


def test_the_files_own_options_are_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--method.help", MINE])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "--method.per_class" in out and "stored features per class" in out


def installed(folder: Path, points: str) -> dict[str, str]:
    """An environment in which the example package counts as installed, as pip would leave it."""
    info = folder / "my_cl_methods-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-cl-methods\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(points)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(EXAMPLES / "plugin" / "src")])}


def call(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cl_bench.cli", *argv], capture_output=True, text=True, env=environment)


def points() -> str:
    """The entry points as the example's own pyproject.toml states them."""
    text = (EXAMPLES / "plugin" / "pyproject.toml").read_text()
    line = next(row for row in text.splitlines() if row.startswith("nearest_neighbour"))
    assert '[project.entry-points."cl_bench.methods"]' in text
    return f"[cl_bench.methods]\n{line.replace(chr(34), '')}\n"


def test_an_installed_package_is_listed_beside_ours(tmp_path: Path) -> None:
    ran = call(installed(tmp_path, points()), "list", "methods", "--json")
    assert ran.returncode == 0, ran.stderr
    rows = {r["name"]: r for r in json.loads(ran.stdout)}
    assert rows["nearest_neighbour"]["from"] == "my-cl-methods" and rows["finetune"]["from"] == "cl-bench"
    assert rows["nearest_neighbour"]["paper"] == "Cover & Hart, IEEE TIT 1967"
    assert rows["nearest_neighbour"]["summary"].startswith("Answers with the class of the most similar")


def test_a_whole_package_is_scanned(tmp_path: Path) -> None:
    ran = call(installed(tmp_path, "[cl_bench.methods]\nmine = my_cl_methods\n"), "list", "methods", "--json")
    assert ran.returncode == 0, ran.stderr
    assert "nearest_neighbour" in {r["name"] for r in json.loads(ran.stdout)}


def test_an_installed_package_runs_by_its_name(tmp_path: Path) -> None:
    ran = call(installed(tmp_path / "site", points()), "run", "--scenario", "split_digits", "--scenario.per_class", "6",
               "--method", "nearest_neighbour", "--device", "cpu", "--runs", str(tmp_path / "runs"), "--tracking", "none")
    assert ran.returncode == 0, ran.stderr
    (run,) = load_all(tmp_path / "runs")
    assert run.method == "nearest_neighbour" and run.metrics["average_accuracy"] > 50


def test_a_package_that_takes_our_name_is_refused(tmp_path: Path) -> None:
    taken = "[cl_bench.methods]\nfinetune = my_cl_methods.nearest_neighbour:NearestNeighbour\n"
    ran = call(installed(tmp_path, taken), "list", "methods")
    assert ran.returncode == 2 and "'finetune'" in ran.stderr and "uninstall one or rename it" in ran.stderr


def test_a_package_that_lost_its_module_is_an_error_not_a_missing_row(tmp_path: Path) -> None:
    ran = call(installed(tmp_path, "[cl_bench.methods]\nlost = my_cl_methods_gone:Lost\n"), "list", "methods")
    assert ran.returncode == 2 and "my-cl-methods registers lost" in ran.stderr


def test_the_examples_package_passes_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "plugin" / "src"))
    check_method(find("cl_bench.methods", "my_cl_methods.nearest_neighbour:NearestNeighbour")).raise_if_failed()
