"""The command line in trouble: users' files that fail, damaged records, interrupts, terminals that know little."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cl_bench.command.cli import main
from cl_bench.command.listing import rows
from cl_bench.errors import UserError
from cl_bench.records.results import load, load_all

TINY = ["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm", "--device", "cpu"]


def only(runs: Path) -> Path:
    (folder,) = [f for f in runs.iterdir() if (f / "run.json").is_file()]
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    runs = tmp_path_factory.mktemp("trouble") / "runs"
    assert main(["run", *TINY, "--runs", str(runs), "--tracking", "none"]) == 0
    return runs


def test_a_file_that_fails_on_import_is_a_sentence_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken_cli.py").write_text("raise RuntimeError('boom\\nand more')\n")
    argv = ["run", *TINY, "--method", f"{tmp_path}/broken_cli.py:Mine", "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    assert main(argv) == 2
    assert capsys.readouterr().err == (f"cl-bench: {tmp_path}/broken_cli.py cannot be imported: RuntimeError: boom and more "
                                       "(broken_cli.py, line 1); mend it (--debug shows the traceback).\n")
    with pytest.raises(UserError, match="boom") as failed:
        main([*argv, "--debug"])
    assert isinstance(failed.value.__cause__, RuntimeError)


WRONG = '''
from cl_bench import Method
import torch

class Wrong(Method):
    """Wrong."""

    def begin(self, exp):
        torch.zeros(2) @ torch.zeros(3)


class Bare(Method):
    """No type."""

    def __init__(self, backbone, lr):
        super().__init__(backbone, lr=lr)
'''


def test_an_error_inside_a_run_names_the_users_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong_cli.py").write_text(WRONG)
    argv = ["run", *TINY, "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    assert main([*argv, "--method", f"{tmp_path}/wrong_cli.py:Wrong"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("cl-bench: RuntimeError: ") and "(wrong_cli.py, line 9); --debug" in err
    assert main([*argv, "--method", f"{tmp_path}/wrong_cli.py:Bare"]) == 2
    assert "Bare must give its parameter 'lr' a type and a default" in capsys.readouterr().err


def test_parts_from_two_files_of_one_name_run_together(tmp_path: Path) -> None:
    (tmp_path / "my parts").mkdir()
    (tmp_path / "my parts" / "mine-1.py").write_text(
        "from cl_bench.registry import find\n\nclass Digits(find('cl_bench.scenarios', 'split_digits')):\n    'Mine.'\n")
    (tmp_path / "mine-1.py").write_text("from cl_bench import Method\n\nclass Mine(Method):\n    'Mine.'\n")
    argv = ["run", *TINY, "--scenario", f"{tmp_path}/my parts/mine-1.py:Digits", "--scenario.per_class", "4", "--method",
            f"{tmp_path}/mine-1.py:Mine", "--method.epochs", "1", "--runs", str(tmp_path / "my runs"), "--tracking", "none"]
    assert main(argv) == 0
    run = load(only(tmp_path / "my runs"))
    assert run.scenario == "mine-1.py:Digits(per_class=4)" and run.method == "mine-1.py:Mine(epochs=1)"


def test_damaged_records_are_named_and_not_called_absent(finished: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torn", "gone"):
        shutil.copytree(only(finished), tmp_path / "runs" / name)
    (tmp_path / "runs" / "gone" / "run.json").unlink()
    torn = tmp_path / "runs" / "torn" / "run.json"
    torn.write_bytes(torn.read_bytes()[:300])
    assert main(["compare", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert "torn/run.json is damaged, not valid JSON" in err and "gone holds no run (no run.json in it)" in err
    assert "none of the 2 runs here can be read" in err and "Traceback" not in err
    assert main(["compare", str(tmp_path / "runs"), str(finished)]) == 0, "one sound run is enough"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_still_gets_its_table(encoding: str, finished: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", "cl_bench.cli", "compare", str(finished)], capture_output=True,
                         env={**os.environ, "PYTHONIOENCODING": encoding})
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    assert b"ncm" in ran.stdout and b"average" in ran.stdout


@pytest.mark.parametrize("width", [60, 80, 100, 119])
@pytest.mark.parametrize("kind", ["methods", "scenarios", "adapters"])
def test_a_list_is_complete_in_a_narrow_terminal(kind: str, width: int, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("cl_bench.compare.terminal.terminal", lambda console: console)  # as if it were no pipe
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    heads = [k for k, line in enumerate(lines) if line[:1].strip()] + [len(lines)]
    blocks = {lines[start].split()[0]: " ".join(lines[start:end]).split() for start, end in itertools.pairwise(heads)}
    for row in rows(kind):
        assert width < 120 and row.get("family", row["name"]) in " ".join(lines)
        for key in ("name", "summary", "paper"):  # of a cell on several lines, what stands beside it comes in between
            missing = {w for w in str(row.get(key, "")).split() if len(w) <= 14} - set(blocks[row["name"]])
            assert not missing, f"{row['name']}: its {key} is cut or missing: {missing}"


STOPS = '''
import os, pathlib, signal
from cl_bench import Method

class Stops(Method):
    """Stops itself once, in its second experience."""

    def __init__(self, backbone, *, rows: tuple[str, ...] = ("q", "k"), flag: str = ""):
        super().__init__(backbone, epochs=1)
        self.rows, self.flag = rows, flag

    def training_step(self, batch, batch_idx):
        if len(self.seen) > 2 and not pathlib.Path(self.flag).exists():
            pathlib.Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)
'''


def test_an_interrupt_ends_a_run_as_stopped_and_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C while Lightning fits, which by itself turns it into a silent exit with code 1."""
    (tmp_path / "stops_cli.py").write_text(STOPS)
    argv = ["run", *TINY, "--method", f"{tmp_path}/stops_cli.py:Stops", "--method.flag", f"{tmp_path}/flag"]
    rest = ["--runs", str(tmp_path / "runs"), "--tracking", "none"]
    ended = subprocess.run([sys.executable, "-m", "cl_bench.cli", *argv, *rest], capture_output=True, text=True)
    folder = only(tmp_path / "runs")
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.endswith(f"stopped; `cl-bench run --resume {folder}` goes on from its last checkpoint.\n"), ended.stderr
    stopped = load(folder)
    assert stopped.status == "stopped" and len(stopped.matrix.rows) == 1
    assert main(["run", "--resume", str(folder), *rest]) == 0
    assert load(folder).done and len(load(folder).matrix.rows) == 5
    assert load(folder).method == stopped.method, "a resumed run keeps its row in the table"


SLOW = '''
import time
from cl_bench import Method

class Slow(Method):
    """Would learn for minutes."""

    def begin(self, exp):
        time.sleep(120)
'''


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_stops_every_process_of_a_suite(sent: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to all, a scheduler's SIGTERM to the first process alone; runs in hand end as stopped at once, those that
    wait are not begun."""
    (tmp_path / "slow_cli.py").write_text(SLOW)
    (tmp_path / "s.yaml").write_text(
        f"seeds: [0, 1, 2, 3]\nruns: [{{scenario: split_digits, methods: ['{tmp_path}/slow_cli.py:Slow']}}]\n")
    runs = tmp_path / "runs"
    suite = subprocess.Popen([sys.executable, "-m", "cl_bench.cli", "suite", str(tmp_path / "s.yaml"), "--runs", str(runs),
                              "--tracking", "none", "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             text=True, start_new_session=True)
    try:
        limit = time.monotonic() + 90
        while len(list(runs.glob("2*/run.json"))) < 2 and time.monotonic() < limit and suite.poll() is None:
            time.sleep(0.1)
        (os.killpg if sent == signal.SIGINT else os.kill)(suite.pid, sent)
        _, err = suite.communicate(timeout=60)
    finally:
        if suite.poll() is None:
            os.killpg(suite.pid, signal.SIGKILL)
    code, by = (130, "") if sent == signal.SIGINT else (143, " by SIGTERM")
    assert suite.returncode == code and "Traceback" not in err, err
    assert f"cl-bench: stopped{by}; the same command runs what has not finished.\n" in err
    assert [r.status for r in load_all(runs)] == ["stopped", "stopped"], "the others were not begun"


@pytest.mark.parametrize("full", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota exceeded"),
                                  RuntimeError("No space left on device (os error 28)")], ids=["disk", "quota", "library"])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(
        full: Exception, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    from cl_bench.records.writer import RunWriter

    def arrays(self: RunWriter, values: object) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "arrays", arrays)
        assert main(["run", *TINY, "--runs", str(tmp_path), "--tracking", "none"]) == 2
    folder = only(tmp_path)
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"cl-bench: there is no space left on the disk of {tmp_path}: make room; then `cl-bench run --resume "
                          f"{folder}` goes on")
    assert main(["run", "--resume", str(folder), "--tracking", "none"]) == 0
    assert load(folder).record["matrix"] == load(only(finished)).record["matrix"]


@pytest.mark.parametrize(("config", "told"), [
    (None, "name a scenario"), ({}, "name a scenario"), ({"method": "nc"}, "name a scenario"),
    ({"scenario": "split_digits", "method": "/nowhere/m.py:M"}, "/nowhere/m.py"),
    ({"scenario": "split_digits", "method": ["ncm"]}, "method"), ({"scenario": {"class_path": 3}, "method": "ncm"}, "scenario"),
    ({"scenario": "split_digits", "method": "ncm", "compute": "cpu"}, "compute must be a mapping")])
def test_a_record_whose_config_is_none_is_not_resumed(finished: Path, tmp_path: Path, config: object, told: str,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "runs" / only(finished).name
    shutil.copytree(only(finished), copy)
    (copy / "DONE").unlink()
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "stopped", "config": config}))
    before = {f: f.read_bytes() for f in copy.iterdir()}
    assert main(["run", "--resume", str(copy), "--tracking", "none"]) == 2
    err = capsys.readouterr().err
    assert "cannot be resumed, its config is none" in err and told in err and err.count("\n") == 1
    assert before == {f: f.read_bytes() for f in copy.iterdir()}


def test_a_run_is_resumed_by_its_record_too(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--resume", str(only(finished) / "run.json"), "--tracking", "none"]) == 2
    assert "has finished; there is nothing to resume" in capsys.readouterr().err
