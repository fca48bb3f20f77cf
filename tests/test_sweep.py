"""Suites: as many processes as one likes and the same numbers; a bad run costs one row; nothing is run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_bench.command.cli import main
from cl_bench.command.sweep import Outcome, read_suite, run_suite
from cl_bench.errors import UserError
from cl_bench.records.results import load, load_all

SUITE = """
name: tiny
about: Two quick rows and one that fails.
seeds: [0, 1]
compute: {{device: cpu}}
runs:
  - scenario: {{class_path: split_digits, init_args: {{per_class: 4, increment: 5}}}}
    methods: [ncm, {{class_path: finetune, init_args: {{epochs: 1}}}}]
  - scenario: {{class_path: split_digits, init_args: {{per_class: 4, increment: 5}}}}
    methods: ['{file}:Fails']
    seeds: [0]
"""
FAILING = '''
from cl_bench import Method

class Fails(Method):
    """Fails while learning."""

    def begin(self, exp):
        raise RuntimeError("no luck today")
'''
DIGITS = "split_digits(per_class=4, increment=5)"
SENTENCE = f"{DIGITS} Fails seed 0: RuntimeError: no luck today (fails_sweep.py, line 8)"


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "fails_sweep.py").write_text(FAILING)
    (folder / "tiny.yaml").write_text(SUITE.format(file=folder / "fails_sweep.py"))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def alone(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The suite, run in this process alone."""
    runs = tmp_path_factory.mktemp("alone")
    return runs, run_suite(read_suite(suite_file), runs, jobs=1)


def numbers(folder: Path) -> dict[str, Any]:
    r = load(folder).record
    cost = {k: v for k, v in r["cost"].items() if k not in ("seconds", "busy_seconds", "peak_memory_bytes", "memory_bytes")}
    return {"who": (r["method"]["label"], r["seed"]), "matrix": r["matrix"], "metrics": r["metrics"], "cost": cost,
            "fingerprint": r["fingerprint"], "config": r["config"], "suite": r["suite"]}


def test_a_suite_is_every_method_with_every_seed(suite_file: Path, alone: tuple[Path, Outcome]) -> None:
    suite = read_suite(suite_file)
    assert (suite.name, suite.about) == ("tiny", "Two quick rows and one that fails.")
    assert [j.label for j in suite.jobs] == [*(f"{DIGITS} {m} seed {s}" for m in ("ncm", "finetune(epochs=1)") for s in (0, 1)),
                                             f"{DIGITS} Fails seed 0"]
    runs, outcome = alone
    assert [numbers(f)["who"] for f in outcome.folders] == [(m, s) for m in ("ncm", "finetune(epochs=1)") for s in (0, 1)]
    assert outcome.failures == [SENTENCE], "a failing run is named and the others go on"
    states = {(r.record["method"]["name"], r.seed): r.status for r in load_all(runs)}
    assert states.pop(("fails_sweep.py:Fails", 0)) == "failed" and set(states.values()) == {"finished"} and len(states) == 4


def test_the_number_of_processes_changes_no_number(suite_file: Path, alone: tuple[Path, Outcome], tmp_path: Path) -> None:
    """Two fresh processes, which must find the user's own file again."""
    outcome = run_suite(read_suite(suite_file), tmp_path, jobs=2)
    assert outcome.failures == alone[1].failures
    assert [numbers(f) for f in outcome.folders] == [numbers(f) for f in alone[1].folders]


def test_what_is_finished_is_not_run_again_unless_asked(suite_file: Path, alone: tuple[Path, Outcome]) -> None:
    runs, outcome = alone
    said: list[str] = []
    second = run_suite(read_suite(suite_file), runs, jobs=1, progress=lambda kind, facts: said.append(kind))
    assert second.folders == outcome.folders and second.failures == [SENTENCE]
    assert sorted(said) == ["error", "resume", "skip", "skip", "skip", "skip"], "only what failed is taken up again"
    assert len(load_all(runs)) == 5
    other = run_suite(read_suite(suite_file), runs, jobs=1, overrides=["--method.batch_size", "16"])
    assert len(other.folders) == 4 and not set(other.folders) & set(outcome.folders), "another config is another run"
    again = run_suite(read_suite(suite_file), runs, jobs=1, again=True)
    assert not set(again.folders) & set(outcome.folders)
    assert [numbers(f) for f in again.folders] == [numbers(f) for f in outcome.folders]


def test_the_command_names_what_failed_and_shows_the_rest(suite_file: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["suite", str(suite_file), "--runs", str(tmp_path), "--tracking", "none", "--jobs", "1"]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert f"failed: {SENTENCE}" in err and "Traceback" not in err
    assert "ncm" in out and out.count(f"page: {tmp_path / 'tiny.html'}") == 1 and (tmp_path / "tiny.html").is_file()


@pytest.mark.parametrize(("methods", "said"), [
    ("[ncm, eata]", "eata seed 0: method eata needs source"),
    ("[ncm, {class_path: finetune, init_args: {epoch: 1}}]", r"finetune\(epoch=1\) seed 0: Finetune has no option 'epoch'"),
])
def test_a_mistake_in_any_run_is_told_before_the_first_starts(methods: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"runs: [{{scenario: split_digits, methods: {methods}}}]\n")
    with pytest.raises(UserError, match=said):
        run_suite(read_suite(tmp_path / "s.yaml"), tmp_path / "runs", jobs=1)
    assert not (tmp_path / "runs").exists()


def test_rows_win_over_the_suites_own_settings(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "seeds: [0]\nsource: {epochs: 2}\nruns:\n  - {scenario: digits_c, methods: [bn], seeds: [3, 4], source: {epochs: 1}}\n"
        "  - {scenario: digits_c, methods: [tent]}\n")
    jobs = read_suite(tmp_path / "s.yaml").jobs
    assert [(j.config["seed"], j.config["source"]["epochs"]) for j in jobs] == [(3, 1), (4, 1), (0, 2)]
    assert len({j.key for j in jobs}) == 3


def test_runs_of_two_protocols_still_get_their_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What hours of runs have found is not lost because they cannot stand in one table."""
    rows = "".join(f"- scenario: {{class_path: split_digits, init_args: {{per_class: 4}}}}\n  methods: [ncm]\n"
                   f"  backbone: {{class_path: glyph_vit, init_args: {{pretrained: {p}}}}}\n" for p in ("true", "false"))
    (tmp_path / "s.yaml").write_text(f"name: two\nruns:\n{rows}")
    assert main(["suite", str(tmp_path / "s.yaml"), "--jobs", "1", "--runs", str(tmp_path / "runs"), "--tracking", "none"]) == 0
    out, err = capsys.readouterr()
    assert "note: Runs of split_digits(per_class=4)" in err and "cannot stand in one table" in err
    assert f"page: {tmp_path}/runs/two.html" in out and (tmp_path / "runs" / "two.html").stat().st_size > 10_000
