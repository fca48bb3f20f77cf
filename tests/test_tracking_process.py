"""The tracker beside a run: it never waits, never fails, and a real server takes what is sent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import records

from cl_bench.command.cli import main
from cl_bench.errors import UserError
from cl_bench.records import tracking
from cl_bench.records.results import load_all
from cl_bench.records.tracking import Tracker, import_runs, ui
from cl_bench.records.tracking_store import STATE, Store, StoreError, has_driver, hidden, reachable, resolve


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# -- addresses --------------------------------------------------------------------------------------------------------

def test_the_default_store_lies_with_the_records(tmp_path: Path) -> None:
    assert resolve(None, tmp_path / "runs") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert resolve("https://host/prefix/", tmp_path) == "https://host/prefix"
    assert resolve("postgresql+psycopg2://u@h/db", tmp_path) == "postgresql+psycopg2://u@h/db"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "mlruns", "ftp://host/x", "sqlite://",
                                 "sqlite:///:memory:", "http://", "sqlite:///a?mode=ro"])
def test_a_uri_that_cannot_work_is_refused_before_any_work(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give"):
        Tracker.open(uri, tmp_path)


def test_a_missing_driver_is_named() -> None:
    has_driver("http://host:5000")
    has_driver("sqlite:////tmp/x.db")
    with pytest.raises(StoreError, match=r"postgresql\+asyncpg://u@h/db needs the Python package asyncpg: install it"):
        has_driver("postgresql+asyncpg://u:secret@h/db")
    with pytest.raises(StoreError, match=r"mysql\+nothing://u@h/db names no driver"):
        has_driver("mysql+nothing://u:secret@h/db")


def test_the_teams_server_names_the_driver_that_its_image_has() -> None:
    """Without a name, which driver ``postgresql://`` means has changed between SQLAlchemy's releases."""
    import yaml
    from sqlalchemy import make_url

    file = Path(__file__).parents[1] / "docs" / "compose.yaml"
    server = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]["mlflow"]
    (uri,) = [c.partition("=")[2] for c in server["command"] if c.startswith("--backend-store-uri=")]
    driver = make_url(uri.replace("${POSTGRES_PASSWORD}", "x")).drivername.partition("+")[2]
    assert driver and f"{driver}-binary" in server["build"]["dockerfile_inline"]


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    uri = "postgresql://team:se:cr@et@db.example:5432/mlflow?password=x"
    assert hidden(uri) == "postgresql://team@db.example:5432/mlflow"
    assert Tracker.open(uri, tmp_path).uri == hidden(uri)


def test_importing_the_tracker_imports_no_mlflow() -> None:
    code = "import sys, cl_bench.records.tracking; print([m for m in ('mlflow', 'torch', 'sqlalchemy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.strip() == "[]"


# -- away -------------------------------------------------------------------------------------------------------------

def test_a_store_that_is_away_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = records.write_learner(tmp_path, "ncm", 0)
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreError, match="no answer"):
        reachable(uri)
    with Tracker.open(uri, tmp_path) as tracker:
        for kind in ("start", "experience", "experience", "finish"):
            tracker(kind, {"id": folder.name})
        time.sleep(0.1)
    assert tracker.sync() == 0
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and uri in told and "cl-bench sync" in told
    assert not (folder / STATE).exists()


def test_strict_says_so_in_one_sentence(tmp_path: Path) -> None:
    records.write_learner(tmp_path, "ncm", 0)
    uri = f"postgresql://team:secret@127.0.0.1:{free_port()}/mlflow"
    with Tracker.open(uri, tmp_path, strict=True) as tracker, pytest.raises(UserError, match=r"no answer.*sync again"):
        tracker.sync()
    with pytest.raises(UserError, match="no answer") as told:
        import_runs(uri, tmp_path)
    assert "secret" not in str(told.value)


def test_nothing_to_import_and_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MLflow store"):
        import_runs(f"sqlite:///{tmp_path}/none.db", tmp_path)
    with pytest.raises(UserError, match="cl-bench sync"):
        ui(None, tmp_path)
    with pytest.raises(UserError, match="--remote"):
        ui(None, tmp_path, host="0.0.0.0")
    assert not (tmp_path / "none.db").exists()


def test_the_ui_ends_its_server_and_its_workers(tmp_path: Path) -> None:
    """A server that starts a worker, as MLflow's does: the end of one is the end of both."""
    from cl_bench.records.tracking import _end_group

    code = ("import subprocess, sys, time\n"
            "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "print(worker.pid, flush=True)\ntime.sleep(600)")
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    worker = int(server.stdout.readline())
    _end_group(server, patience=5)
    assert server.poll() is not None
    for _ in range(200):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the worker goes on")


# -- beside a run -----------------------------------------------------------------------------------------------------

def test_a_worker_that_hangs_does_not_hold_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = records.write_learner(tmp_path, "ncm", 0)
    tracker = Tracker.open(None, tmp_path)
    tracker("start", {"id": folder.name})
    assert tracker._worker is not None
    os.kill(tracker._worker.pid, signal.SIGSTOP)
    try:
        for _ in range(5000):  # far more than a pipe holds: a run that waited for it would never get past here
            tracker("domain", {"id": folder.name})
    finally:
        os.kill(tracker._worker.pid, signal.SIGCONT)
    tracker.close(patience=0.0)
    assert "cl-bench sync" in capsys.readouterr().err


def test_a_worker_that_dies_does_not_take_the_run_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker.open(None, tmp_path)
    tracker("start", {"id": "a"})
    assert tracker._worker is not None
    os.kill(tracker._worker.pid, signal.SIGKILL)
    tracker._worker.wait(30)
    tracker("experience", {"id": "a"})
    tracker.close()
    assert "ended with code -9" in capsys.readouterr().err


def test_a_followed_run_is_in_the_store_when_the_tracker_closes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker.open(None, tmp_path) as tracker:
        tracker("start", {"id": "digits_c-tent-s0"})
        tracker("loss", {"id": "digits_c-tent-s0"})
        folder = records.write_adapter(tmp_path, "tent", 0)
        tracker("domain", {"id": folder.name})
    assert capsys.readouterr().err == ""
    store = Store(resolve(None, tmp_path), tmp_path)
    run = store.find(folder.name)
    assert run.info.status == "FINISHED" and len(store.client.get_metric_history(run.info.run_id, "error/domain")) == 30
    assert not store.send(folder), "all of it was sent"


# -- a real server ----------------------------------------------------------------------------------------------------

@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """`mlflow server` on loopback, in a process group of its own that ends with the test."""
    uri, home = f"http://127.0.0.1:{free_port()}", tmp_path / "server"
    home.mkdir()
    log = open(home / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers",
         "1", "--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", str(home / "artifacts")],
        stdout=log, stderr=log, cwd=home, start_new_session=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        until = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                pytest.skip(f"mlflow server did not start: {(home / 'log').read_text()[-300:]}")
            time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def test_a_team_sends_to_a_server_and_takes_from_it(server: str, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    made = [records.write_learner(mine, "lora", 0), records.write_adapter(mine, "tent", 0)]
    with Tracker.open(server, mine, strict=True) as tracker:
        assert tracker.sync() == 2
    store = Store(server, mine)
    assert [store.send(f) for f in made] == [False, False], "sent once is sent"
    (made[0] / STATE).unlink()
    (mine / "synthetic.html").write_text("<p>page")
    store.send_page("synthetic")
    run = store.find("split_digits-lora-s0")
    assert len(store.client.get_metric_history(run.info.run_id, "accuracy/average")) == 5
    parent = store.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert [f.path for f in store.client.list_artifacts(parent.info.run_id)] == ["page.html"]
    shutil.rmtree(theirs, ignore_errors=True)
    folders = import_runs(server, theirs)
    assert [f.name for f in folders] == ["digits_c-tent-s0", "split_digits-lora-s0"]
    for folder in made:
        for name in ("run.json", "events.jsonl", "arrays.npz", "DONE"):
            assert (theirs / folder.name / name).read_bytes() == (folder / name).read_bytes(), name


# -- a real run while its store is in trouble -------------------------------------------------------------------------

@contextlib.contextmanager
def locked_database(runs: Path) -> Iterator[str]:
    """The default store, made, and then held by somebody who does not let go."""
    records.write_learner(runs / "earlier", "ncm", 0)
    with Tracker.open(None, runs, strict=True) as tracker:
        assert tracker.sync() == 1
    holder = sqlite3.connect(runs / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield ""
    finally:
        holder.close()


@contextlib.contextmanager
def deaf_server(runs: Path) -> Iterator[str]:
    """Accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def nobody(runs: Path) -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("trouble", [locked_database, deaf_server, nobody], ids=["locked", "deaf", "down"])
def test_a_run_whose_store_is_in_trouble_is_complete_and_ends_well(
        trouble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 3.0)
    argv = ["run", "--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm", "--device", "cpu"]
    assert main([*argv, "--runs", str(tmp_path / "calm"), "--tracking", "none"]) == 0
    with trouble(tmp_path / "runs") as uri:
        begun = time.monotonic()
        capsys.readouterr()
        assert main([*argv, "--runs", str(tmp_path / "runs"), *(["--tracking", uri] if uri else [])]) == 0
        assert time.monotonic() - begun < 60, "the end of a command waits for the store, and not for long"
        assert capsys.readouterr().err.count("warning") == 1
    (calm,), (ours,) = load_all(tmp_path / "calm"), [r for r in load_all(tmp_path / "runs") if r.folder.parent.name == "runs"]
    assert ours.status == "finished" and ours.record["matrix"] == calm.record["matrix"]
    assert ours.record["warnings"] == calm.record["warnings"]
    if trouble is locked_database:
        with Tracker.open(None, tmp_path / "runs", strict=True) as tracker:
            assert tracker.sync() == 1, "what was missed is sent later"
