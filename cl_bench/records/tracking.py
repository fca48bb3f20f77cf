"""MLflow as a sink behind the records: nothing between a number and the page, and a run is complete without it.

The runner's events only mark a record as changed; a process of its own (:mod:`cl_bench.records.tracking_worker`) reads the
record from disk and sends what the store lacks, one batch per experience or domain. A store that is away costs a
warning; ``cl-bench sync`` sends later, and nothing twice. Nothing here imports MLflow.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import UserError
from .tracking_store import STATE, VIEW, StoreError, hidden, reachable, resolve

__all__ = ["Tracker", "import_runs", "is_loopback", "ui", "view_path"]

PATIENCE = 120.0  # seconds that the end of a command waits for the store
# The client's own limits, for the worker alone; a user's settings win. MLflow waits many minutes by default.
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
          "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
# The same import path as this process has, whatever lies in the working directory.
_START = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from cl_bench.records.tracking_worker import main; " \
         "sys.exit(main())"


class Tracker:
    """The sink of one command. Use as a context; call it with (kind, facts) as the runner's listener.

    Attributes:
        uri: the store, without a password.
    """

    def __init__(self, uri: str, runs: Path, strict: bool) -> None:
        self._uri, self.runs, self.strict = uri, runs.resolve(), strict
        self.uri = hidden(uri)
        self._worker: subprocess.Popen[bytes] | None = None
        self._answers: list[dict[str, Any]] = []
        self._listening: threading.Thread | None = None
        self._warned = self._broken = False

    @classmethod
    def open(cls, uri: str | None, runs: Path, strict: bool = False) -> Tracker:
        """A tracker of the store at ``uri`` (default: SQLite, ``RUNS/mlflow.db``). Costs nothing until it is used.

        Args:
            strict: a store that cannot be reached raises UserError instead of a warning.

        Raises:
            UserError: for a URI that MLflow cannot write to.
        """
        return cls(resolve(uri, runs), runs, strict)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close(5.0 if kind is not None and issubclass(kind, KeyboardInterrupt) else PATIENCE)

    # ---------------------------------------------------------------- while runs go on
    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        """An event of a run (``facts["id"]`` is its folder in RUNS): microseconds, never waits, never raises for the
        store's sake."""
        if kind not in ("start", "resume", "experience", "domain", "finish", "error"):
            return
        if self._worker is None:
            if self._broken:
                return
            try:
                self._worker = self._start()
            except OSError as fault:
                self._broken = True
                self._warn(f"the MLflow process cannot be started ({fault.strerror})")
                return
        order = json.dumps({"do": "follow", "folder": str(self.runs / str(facts["id"]))}) + "\n"
        assert self._worker.stdin is not None
        # A full pipe: the worker is busy and knows the folder already. A broken one: close() says why.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._worker.stdin.fileno(), order.encode())

    def _start(self) -> subprocess.Popen[bytes]:
        worker = _spawn(self._uri, self.runs)
        assert worker.stdin is not None and worker.stdout is not None
        os.set_blocking(worker.stdin.fileno(), False)
        self._listening = threading.Thread(target=self._listen, args=(worker.stdout,), daemon=True,
                                           name="cl-bench tracking answers")
        self._listening.start()
        return worker

    def _listen(self, answers: IO[bytes]) -> None:
        """Asleep until the worker answers, which is only at the end or when something is wrong."""
        for answer in _parsed(answers):
            self._answers.append(answer)
            if "problem" in answer:
                self._warn(answer["problem"])

    def _warn(self, sentence: str) -> None:
        """Once: a store that is away is away for every step."""
        if not self._warned:
            self._warned = True
            print(f"cl-bench: warning: {sentence.rstrip('.')}; the records are complete, and `cl-bench sync` sends "
                  f"what is missing.", file=sys.stderr)

    def close(self, patience: float = PATIENCE) -> None:
        """Let the worker send the rest, for at most ``patience`` seconds; then the next sync does."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        assert worker.stdin is not None and self._listening is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        try:
            worker.wait(patience)
        except subprocess.TimeoutExpired:
            worker.terminate()
            worker.wait()
            self._answers.append({"fatal": f"the MLflow store {self.uri} took longer than {patience:.0f} s"})
        except KeyboardInterrupt:
            worker.terminate()
            worker.wait()
            raise
        self._listening.join(5.0)
        ends = [a for a in self._answers if "sent" in a or "fatal" in a]
        if not ends:
            self._fail(f"the MLflow process ended with code {worker.returncode}; CL_BENCH_DEBUG=1 shows why")
        elif "fatal" in ends[-1]:
            self._fail(ends[-1]["fatal"])

    def _fail(self, sentence: str) -> None:
        if self.strict:
            raise UserError(f"{sentence.rstrip('.')}; check the address or start the store, then sync again.")
        self._warn(sentence)

    # ---------------------------------------------------------------- afterwards
    def sync(self, folders: Sequence[Path] | None = None) -> int:
        """Send whatever the store lacks of these records (default: all in RUNS); returns how many were sent.

        Raises:
            UserError: where the store cannot be reached and ``strict``; else that is a warning and 0.
        """
        chosen = [Path(f).resolve() for f in folders] if folders is not None else _records(self.runs)
        if not chosen:
            return 0
        try:
            reachable(self._uri)
        except StoreError as fault:
            self._fail(str(fault))
            return 0
        answers = _ask(self._uri, self.runs, {"do": "sync", "folders": [str(f) for f in chosen]})
        sent = 0
        for answer in answers:
            if "problem" in answer:
                print(f"cl-bench: {answer['problem']}", file=sys.stderr)
            elif "fatal" in answer:
                self._fail(answer["fatal"])
            sent += answer.get("sent", 0)
        return sent


def _records(runs: Path) -> list[Path]:
    """Folders of records below ``runs``, as :func:`cl_bench.records.results.load_all` finds them; problems are told."""
    from .results import load_all

    found = load_all([runs])
    for problem in found.problems:
        print(f"cl-bench: left out: {problem}", file=sys.stderr)
    return [run.folder.resolve() for run in found]


def _spawn(uri: str, runs: Path) -> subprocess.Popen[bytes]:
    """The worker, in a session of its own: Ctrl-C reaches the run, not the sending of what it left."""
    log = None if os.environ.get("CL_BENCH_DEBUG") else subprocess.DEVNULL
    worker = subprocess.Popen(
        [sys.executable, "-c", _START, "\n".join(p or os.getcwd() for p in sys.path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=log, env={**LIMITS, **os.environ}, start_new_session=True)
    assert worker.stdin is not None
    # not as an argument: every user of the machine can read those, and the URI may hold a password
    os.write(worker.stdin.fileno(), json.dumps({"do": "open", "uri": uri, "runs": str(runs)}).encode() + b"\n")
    return worker


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The answers; half a line is what a killed worker leaves, and its exit code tells of that."""
    for line in lines:
        if line.endswith(b"\n"):
            yield json.loads(line)


def _ask(uri: str, runs: Path, order: dict[str, Any]) -> list[dict[str, Any]]:
    """One order to a worker of its own, and its answers."""
    worker = _spawn(uri, runs)
    try:
        out, _ = worker.communicate(json.dumps(order).encode() + b"\n")
    except BaseException:
        worker.terminate()
        worker.wait()
        raise
    answers = list(_parsed(out.splitlines(keepends=True)))
    if worker.returncode and not any("fatal" in a for a in answers):
        answers.append({"fatal": f"the MLflow process ended with code {worker.returncode}; CL_BENCH_DEBUG=1 shows why"})
    return answers


def import_runs(uri: str, runs: Path) -> list[Path]:
    """Records of the runs that others sent to a store; those already here are left as they are.

    Each arrives byte for byte as it was sent (its digest is checked) or not at all; runs still going on are left out.

    Returns:
        The new folders.

    Raises:
        UserError: where the store cannot be reached, or MLflow cannot read it.
    """
    where = resolve(uri, runs)
    file = Path(where.removeprefix("sqlite:///"))
    if where.startswith("sqlite:") and not file.exists():
        raise UserError(f"there is no MLflow store {file}; check the path.")
    folders: list[Path] = []
    try:
        reachable(where)
    except StoreError as fault:
        raise UserError(f"{fault}; check the address or start the store.") from fault
    for answer in _ask(where, runs.resolve(), {"do": "fetch"}):
        if "fatal" in answer:
            raise UserError(f"{answer['fatal'].rstrip('.')}; nothing was imported.")
        if "problem" in answer:
            print(f"cl-bench: {answer['problem']}", file=sys.stderr)
        folders += [Path(f) for f in answer.get("fetched", [])]
    return folders


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def view_path(uri: str, runs: Path) -> str:
    """The address inside of MLflow's UI that shows the runs of records by method and scenario, with charts; the list of
    experiments where no record has been sent there."""
    for note in sorted(runs.glob(f"*/{STATE}")) if runs.is_dir() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            # Without the first MLflow's UI opens on traces of prompts; the second has charts beside the runs.
            screen = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={VIEW[0].rpartition('.')[2]}"
            sent = json.loads(note.read_text(encoding="utf-8"))["stores"][hidden(uri)]
            return f"/experiments/{sent['experiment_id']}/runs?{screen}"
    return "/experiments"


def _end_group(server: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """End a process and all that it started, kindly and then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            if how is signal.SIGTERM:
                time.sleep(0.2)  # its workers notice


def ui(uri: str | None, runs: Path, host: str = "127.0.0.1", port: int = 5000, remote: bool = False) -> int:
    """MLflow's own UI on the store, until it is stopped; returns its exit code. For a server: its address. Whatever ends this
    ends the server and its workers.

    Raises:
        UserError: where there is no store yet, and for an address other than loopback without ``remote``.
    """
    if not remote and not is_loopback(host):
        raise UserError(f"{host} can be reached from other machines, which could then read and change the store: allow it with "
                        "--remote, or use 127.0.0.1.")
    where = resolve(uri, runs)
    if where.startswith("http"):
        print(f"the store is a server with its own UI: {hidden(where)}")
        return 0
    file = Path(where.removeprefix("sqlite:///"))
    if where.startswith("sqlite:") and not file.exists():
        raise UserError(f"there is no MLflow store {file} yet; `cl-bench sync` makes one from the records.")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", where, "--host", host, "--port", str(port),
               "--workers", "1"]
    if where.startswith("sqlite:"):
        command += ["--default-artifact-root", (file.parent / "mlartifacts").as_uri()]
    shown = f"[{host}]" if ":" in host else host
    print(f"the runs, with charts: http://{shown}:{port}/#{view_path(where, runs)}", flush=True)
    # A group of its own: MLflow's server has workers, and all of them end with this command, however it ends.
    server = subprocess.Popen(command, env={"MLFLOW_DISABLE_TELEMETRY": "true", **os.environ}, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end_group(server)
