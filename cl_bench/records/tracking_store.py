"""An MLflow store through ``MlflowClient`` alone: no active run, no global tracking URI, no autologging.

Sending is idempotent. A record's run is found by its tag ``cl_bench.run_id``; the tags ``cl_bench.sent_rows``,
``cl_bench.sent_domains`` (written after the values they count) say how far its curves have come, ``cl_bench.digest``
(written last of all) that everything is there. What was cut off between two of these is offered again with the same
timestamps, and the store keeps one copy. A run that somebody deleted in MLflow's UI stays deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError
from . import tracking_content as content
from .results import check_id, load, load_all, write_atomically
from .tracking_content import Point, Progress

__all__ = ["EXPERIMENT", "STATE", "VIEW", "Refused", "Store", "StoreError", "has_driver", "hidden", "reachable", "resolve"]

EXPERIMENT = "cl-bench"
KIND = ("mlflow.experimentKind", "custom_model_development")  # what MLflow's UI shows: runs, and no traces of prompts
VIEW = ("mlflow.sharedViewState.cl-bench", json.dumps(content.VIEW))  # a view that the UI keeps in a tag of the experiment
STATE = "mlflow.json"
BATCH = 800  # metrics at once; MLflow takes 1000 with params and tags
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class StoreError(Exception):
    """The store does not answer or refuses; the message is a sentence."""


class Refused(StoreError):
    """The store is there but does not take this one record."""


# -- addresses --------------------------------------------------------------------------------------------------------

def resolve(uri: str | None, runs: Path) -> str:
    """The tracking URI with a full path; default ``RUNS/mlflow.db``. Raises UserError for one that cannot work."""
    if not uri:
        uri = f"sqlite:///{runs.resolve() / 'mlflow.db'}"
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else ""
    if scheme != "sqlite" and scheme not in _PORTS:
        raise UserError(f"{hidden(uri)!r} is no store that MLflow can still write to: give sqlite:///FILE.db, "
                        "http://SERVER:5000 or postgresql://USER@HOST/NAME" + (
                            ", or --tracking none." if uri != "none" else "."))
    if scheme == "sqlite":
        path = uri.partition(":///")[2]
        if not path or path == ":memory:" or "?" in path:
            raise UserError(f"{uri!r} names no file: give sqlite:///FILE.db, without a question mark in the path.")
        return f"sqlite:///{Path(path).expanduser().resolve()}"
    if not urlsplit(uri).netloc:
        raise UserError(f"{hidden(uri)!r} names no host: give it as {scheme}://HOST.")
    return uri.rstrip("/")


def hidden(uri: str) -> str:
    """The URI without its password and query, fit to be shown or written down."""
    head, separator, rest = uri.partition("://")
    if not separator or head.startswith("sqlite"):
        return uri
    authority, slash, path = rest.partition("?")[0].partition("/")
    user, at, host = authority.rpartition("@")
    return f"{head}://{user.partition(':')[0]}{at}{host}{slash}{path}"


def reachable(uri: str, patience: float = 5.0) -> None:
    """Knock at the store's door, so that one that is away costs seconds; raises StoreError.

    Not behind a proxy, where the door is somebody else's, nor for a database's own socket."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite" or not parts.hostname:
        return
    if scheme in ("http", "https") and scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    try:
        socket.create_connection((parts.hostname, parts.port or _PORTS[scheme]), timeout=patience).close()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise StoreError(f"no answer from the MLflow store {hidden(uri)} ({reason})") from fault


def has_driver(uri: str) -> None:
    """Raises StoreError where this Python lacks the driver that a database's URI asks for."""
    if uri.partition("://")[0].partition("+")[0] in ("http", "https", "sqlite"):
        return
    from sqlalchemy import make_url  # MLflow's own way to a database
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as fault:
        raise StoreError(f"{hidden(uri)} needs the Python package {fault.name}: install it, or name the driver that is here, "
                         "as in postgresql+psycopg2://USER@HOST/NAME") from fault
    except ArgumentError as fault:
        raise StoreError(f"{hidden(uri)} names no driver that SQLAlchemy knows, as postgresql+psycopg2://USER@HOST/NAME "
                         "does") from fault


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time per folder, by a lock on the folder itself, which leaves no file behind.

    Where the system or a network disk has no such lock, the store's own are all there is."""
    handle = None
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def speaking(uri: str) -> Iterator[None]:
    """MLflow's and the database's exceptions as one sentence."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as fault:
        text = " ".join(str(fault).split())
        refused = getattr(fault, "error_code", None) == "INVALID_PARAMETER_VALUE"
        raise (Refused if refused else StoreError)(f"the MLflow store {hidden(uri)} did not take it: "
                                                   f"{text[:300]}") from fault


# -- the store --------------------------------------------------------------------------------------------------------

class Store:
    """An open store. Raises StoreError where it cannot be reached; imports MLflow."""

    def __init__(self, uri: str, runs: Path) -> None:
        self.uri, self.runs = uri, runs.resolve()
        self._parents: dict[str, str] = {}
        reachable(uri)
        has_driver(uri)
        from mlflow import MlflowClient

        with speaking(uri), locked(self._home()):
            if uri.startswith("sqlite:"):
                self._write_ahead(Path(uri.removeprefix("sqlite:///")))
            self.client = MlflowClient(uri, registry_uri=uri)
            self.experiment = self._experiment()

    def _home(self) -> Path:
        """Where an SQLite file lies, so that all who write to it meet; else the folder of records."""
        home = Path(self.uri.removeprefix("sqlite:///")).parent if self.uri.startswith("sqlite:") else self.runs
        home.mkdir(parents=True, exist_ok=True)
        return home

    @staticmethod
    def _write_ahead(path: Path) -> None:
        """Readers and one writer at a time without waiting for each other; the file remembers it."""
        import sqlite3

        try:
            with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
                database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error as fault:
            raise StoreError(f"{path} cannot be used as an SQLite store ({fault})") from fault

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            # a server knows where its artifacts are; a bare database would put them into the working directory
            where = None if self.uri.startswith("http") else (self._home() / "mlartifacts").as_uri()
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=where, tags=dict([KIND, VIEW])))
        if found.lifecycle_stage != "active":
            raise StoreError(f"the experiment {EXPERIMENT!r} was deleted in {hidden(self.uri)}: restore it there")
        if KIND[0] not in found.tags:
            self.client.set_experiment_tag(found.experiment_id, *KIND)
        if found.tags.get(VIEW[0]) != VIEW[1]:
            self.client.set_experiment_tag(found.experiment_id, *VIEW)
        return str(found.experiment_id)

    def _search(self, condition: str, limit: int | None = None) -> Iterator[Any]:
        from mlflow.entities import ViewType

        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], condition, run_view_type=ViewType.ALL,
                                           max_results=limit or 1000, order_by=["attribute.start_time ASC"],
                                           page_token=token)
            yield from page
            token = page.token
            if limit or not token:
                return

    def find(self, run_id: str) -> Any | None:
        """MLflow's run of a record, the oldest where there are several, deleted or not."""
        return next(self._search(f"tags.`cl_bench.run_id` = '{check_id(run_id)}'", 1), None)

    def index(self) -> dict[str, Any]:
        """Every record's run in the store by the record's id."""
        found: dict[str, Any] = {}
        for run in self._search("tags.`cl_bench.kind` = 'run'"):
            found.setdefault(run.data.tags.get("cl_bench.run_id", ""), run)
        return found

    def _parent(self, suite: str) -> str:
        """The run that holds a suite's runs; made where missing, by one process at a time."""
        if suite not in self._parents:
            key = hashlib.sha256(suite.encode("utf-8", "replace")).hexdigest()[:16]  # a name may hold quotes
            with locked(self._home()):
                found = next((r for r in self._search(f"tags.`cl_bench.suite_key` = '{key}'")
                              if r.info.lifecycle_stage == "active"), None)
                if found is None:
                    found = self.client.create_run(self.experiment, run_name=suite[:200], tags={
                        "cl_bench.kind": "suite", "cl_bench.suite": suite[:2000], "cl_bench.suite_key": key})
                if found.info.status == "RUNNING":
                    self.client.set_terminated(found.info.run_id)
            self._parents[suite] = found.info.run_id
        return self._parents[suite]

    # ---------------------------------------------------------------- sending
    def send(self, folder: Path, whole: bool = True, known: Any | None = None) -> bool:
        """Bring the store up to date with a record; True where anything was sent.

        Args:
            whole: also the artifacts and the final metrics; False while the run goes on.
            known: MLflow's run from :meth:`index`, where it was asked already.

        Raises:
            StoreError: where the store refuses. UserError: where the record cannot be read.
        """
        with locked(folder), speaking(self.uri), tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / "copy" / folder.name
            _copy(folder, copy)  # the run may go on: one state of it is sent
            run, code = load(copy), content.digest(copy)
            known = known or self.find(run.id)
            if known is not None and (known.info.lifecycle_stage != "active"
                                      or known.data.tags.get("cl_bench.digest") == code):
                self._remember(folder, known.info, code)
                return False
            labels = content.tags(run)
            if known is None:
                suite = run.record.get("suite")
                nested = {"mlflow.parentRunId": self._parent(str(suite))} if suite else {}
                known = self.client.create_run(self.experiment, content.millis(run.record.get("started")),
                                               {**labels, **nested}, content.run_name(run))
            status = content.STATUS[run.status]
            if status == "RUNNING" and known.info.status != "RUNNING":  # a stopped run was taken up again
                self.client.update_run(known.info.run_id, status)
            run_id = str(known.info.run_id)
            if "cl_bench.params" not in known.data.tags:
                self._inputs(run_id, content.datasets(run))
            if known.data.tags.get("cl_bench.error"):
                labels.setdefault("cl_bench.error", "")  # it failed, was resumed, and did well
            if whole:
                content.write_artifacts(run, Path(temporary) / "artifacts")
                self.client.log_artifacts(run_id, str(Path(temporary) / "artifacts"))
                if (Path(temporary) / "artifacts" / "accuracy_matrix.json").exists():
                    labels["mlflow.loggedArtifacts"] = json.dumps([{"path": "accuracy_matrix.json", "type": "table"}])
                if status != "RUNNING":
                    self.client.set_terminated(run_id, status, content.millis(run.record.get("finished")))
                labels["cl_bench.digest"] = code
            self._curves(run, known, labels, whole)
            self._remember(folder, known.info, code if whole else None)
            return True

    def _inputs(self, run_id: str, parts: Sequence[tuple[str, str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if parts:
            self.client.log_inputs(run_id, [
                DatasetInput(Dataset(name, code, "code", json.dumps({"cl_bench": name})),
                             [InputTag("mlflow.data.context", context)]) for name, code, context in parts])

    def _curves(self, run: Any, known: Any, labels: dict[str, str], whole: bool) -> None:
        """Send the steps that are missing, then the tags: those that count the steps come after what they count."""
        start, sent = int(known.info.start_time), known.data.tags  # a resumed record starts anew, the store's run not
        since = Progress(int(sent.get("cl_bench.sent_rows", 0)), int(sent.get("cl_bench.sent_domains", 0)))
        batches = list(content.points(run, start, since))
        labels |= {"cl_bench.sent_rows": str(len(run.matrix.so_far().rows)),
                   "cl_bench.sent_domains": str(len(run.stream))}
        if whole:  # all at once: a transaction on SQLite costs as much as a thousand values
            last = content.final_points(run, start) if run.status != "running" else []
            batches = [[*(p for batch in batches for p in batch), *last]]
        values = {} if "cl_bench.params" in sent else content.params(run)
        labels["cl_bench.params"] = "sent"
        *earlier, final = batches or [[]]
        for batch in earlier:
            self._batch(known.info.run_id, batch, {}, {})
        self._batch(known.info.run_id, final, values, {k: v for k, v in labels.items() if sent.get(k) != v})

    def _batch(self, run_id: str, points: Sequence[Point], values: dict[str, str], labels: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
        for i in range(0, len(metrics) - BATCH, BATCH):
            self.client.log_batch(run_id, metrics[i:i + BATCH])
        rest = metrics[(len(metrics) - 1) // BATCH * BATCH:] if metrics else []
        if rest or values or labels:
            self.client.log_batch(run_id, rest, [Param(k, v) for k, v in values.items()],
                                  [RunTag(k, v) for k, v in labels.items()])

    def _remember(self, folder: Path, info: Any, code: str | None) -> None:
        """Note in the record's folder where it went; the store's own tags decide, this is for people and programs."""
        path = folder / STATE
        try:
            stores = json.loads(path.read_text(encoding="utf-8"))["stores"] if path.exists() else {}
        except (ValueError, KeyError, TypeError):
            stores = {}  # a damaged note is written anew: the store knows
        entry = {"experiment_id": info.experiment_id, "run_id": info.run_id, "digest": code}
        if stores.get(hidden(self.uri)) != entry:
            stores[hidden(self.uri)] = entry
            write_atomically(path, json.dumps({"schema": 1, "stores": stores}, indent=1).encode())

    def send_summary(self, suite: str) -> None:
        """What a suite came to, on its own run: one batch, where it has changed."""
        runs = [r for r in load_all(self.runs) if r.status == "finished" and str(r.record.get("suite") or "") == suite]
        if not (points := content.summary(runs)):
            return
        code = hashlib.sha256(repr(points).encode()).hexdigest()[:32]
        with speaking(self.uri):
            if self.client.get_run(parent := self._parent(suite)).data.tags.get("cl_bench.summary") != code:
                self._batch(parent, points, {}, {"cl_bench.summary": code, "cl_bench.runs": str(len(runs)), **content.SOURCE})

    def send_page(self, suite: str) -> None:
        """The suite's page, ``RUNS/<suite>.html``, to the suite's run, where there is one and it has changed."""
        path = self.runs / f"{suite}.html"
        if Path(suite).name != suite or not path.is_file():
            return
        with speaking(self.uri), tempfile.TemporaryDirectory() as temporary:
            parent = self._parent(suite)
            data = path.read_bytes()
            code = hashlib.sha256(data).hexdigest()[:32]
            if self.client.get_run(parent).data.tags.get("cl_bench.page") != code:
                (Path(temporary) / "page.html").write_bytes(data)
                self.client.log_artifact(parent, str(Path(temporary) / "page.html"))
                self.client.set_tag(parent, "cl_bench.page", code)

    # ---------------------------------------------------------------- fetching
    def fetch(self) -> tuple[list[Path], list[str]]:
        """Write the store's ended runs as records, byte for byte; (new folders, one sentence per run left out)."""
        self.runs.mkdir(parents=True, exist_ok=True)
        folders: list[Path] = []
        problems: list[str] = []
        with speaking(self.uri):
            index = self.index()
        for run_id, run in sorted(index.items()):
            if run.info.lifecycle_stage != "active" or run.data.tags.get("cl_bench.status") == "running":
                continue
            try:
                target = self.runs / check_id(run_id)
                if target.exists():
                    continue
                self._fetch_one(run, target)
            except (UserError, StoreError) as fault:
                problems.append(f"run {run_id[:150]!r} of {hidden(self.uri)} was left out: {fault}")
                continue
            folders.append(target)
        return folders, problems

    def _fetch_one(self, run: Any, target: Path) -> None:
        """Complete and equal to what was sent, or nothing: the folder appears by one rename."""
        with tempfile.TemporaryDirectory(dir=self.runs, prefix=".import-") as temporary:
            copy = Path(temporary) / target.name
            copy.mkdir()
            with speaking(self.uri):
                present = {Path(f.path).name for f in self.client.list_artifacts(run.info.run_id, "record")}
                for name in (*content.FILES, "DONE"):
                    if name in present:
                        got = self.client.download_artifacts(run.info.run_id, f"record/{name}", temporary)
                        shutil.move(got, copy / name)
            if content.digest(copy) != run.data.tags.get("cl_bench.digest"):
                raise UserError("its files are not those that were sent; sync it again where it was made.")
            if load(copy).id != target.name:
                raise UserError("its record has another id.")
            self._remember(copy, run.info, content.digest(copy))
            os.replace(copy, target)


def _copy(folder: Path, copy: Path) -> None:
    copy.mkdir(parents=True)
    for name in (*content.FILES, "DONE"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, copy / name)
