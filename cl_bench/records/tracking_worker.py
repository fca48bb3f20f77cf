"""The process that talks to MLflow, so that the run's process never does.

MLflow takes seconds to import and to make a fresh store; as a thread it would take the interpreter's lock away from
the training loop, and a data loader that forks while another thread imports can hang. Here it is a process of its
own, at low priority. Orders come as JSON lines on standard input, answers go as JSON lines to standard output::

    {"do": "open", "uri": U, "runs": R}  first of all
    {"do": "follow", "folder": F}        send F's curves soon; at the end of the input, all of F
    {"do": "sync", "folders": [F...]}    send all that is missing now  -> {"sent": n}
    {"do": "fetch"}                      import the store's runs       -> {"fetched": [F...]}

and ``{"problem": "sentence"}`` (once each) or ``{"fatal": "sentence"}``.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from .results import uncollected
from .tracking_store import Refused, Store, StoreError

__all__ = ["main"]

DELAY = 1.0  # seconds from an event to the sending: the record is written just after, and quick steps come together
MANY = 10  # from so many records on, one listing of the store is cheaper than a question per record
# What the client is imported with where it is installed, and does without where it is not (MLflow Skinny, mako): a third of the
# time that opening a store takes.
SPARED = ("pandas", "scipy", "pygments")


@contextmanager
def without(packages: Iterable[str]) -> Iterator[None]:
    """Inside, these packages are not there to be imported, except where they have been already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it is refused
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


def _opened(uri: str, runs: Path) -> Store:
    try:
        with without(SPARED):
            return Store(uri, runs)
    except ImportError:  # a version that does not do without them: what was imported halfway is imported anew
        for name in [n for n in sys.modules if n.partition(".")[0] in ("mlflow", "alembic", "mako")]:
            del sys.modules[name]
        return Store(uri, runs)


class Worker:
    """One store and the records to follow. ``say`` takes the answers."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self.say = say
        self.uri, self.runs = "", Path()
        self.followed: dict[str, bool] = {}  # folder -> has changed since it was sent
        self.told: set[str] = set()
        self.asked = False  # had an order that was answered at once
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """Opened when first needed; raises StoreError, and is tried again the next time."""
        if self._store is None:
            with uncollected():
                self._store = _opened(self.uri, self.runs)
            quiet()
        return self._store

    def problem(self, sentence: str) -> None:
        if sentence not in self.told:
            self.told.add(sentence)
            self.say({"problem": sentence})

    def send_changed(self) -> None:
        """What was followed and has changed, curves only."""
        for folder in [f for f, changed in self.followed.items() if changed]:
            self.followed[folder] = False
            try:
                if (Path(folder) / "run.json").exists():
                    self.store.send(Path(folder), whole=False)
            except (StoreError, UserError) as fault:
                self.problem(str(fault))
                return

    def sync(self, folders: Iterable[str]) -> int | None:
        """Send what is missing; None where the store failed (said as fatal)."""
        sent, suites = 0, set()
        try:
            paths = [Path(f) for f in folders if (Path(f) / "run.json").exists()]
            if not paths:
                return 0
            index = self.store.index() if len(paths) >= MANY else {}
            for path in paths:
                try:
                    sent += self.store.send(path, known=index.get(path.name))
                    suites |= _suite(path)
                except (UserError, Refused) as fault:
                    self.problem(f"{path.name} was left out: {fault}")
            for suite in sorted(suites):
                self.store.send_summary(suite)
                self.store.send_page(suite)
        except StoreError as fault:
            self.say({"fatal": str(fault)})
            return None
        return sent

    def fetch(self) -> None:
        try:
            folders, problems = self.store.fetch()
        except StoreError as fault:
            self.say({"fatal": str(fault)})
            return
        for sentence in problems:
            self.problem(sentence)
        self.say({"fetched": [str(f) for f in folders]})

    def serve(self, orders: BinaryIO) -> None:
        """Until the input ends; then everything followed is sent whole."""
        pending, due, fd = b"", None, orders.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while True:
                wait = None if due is None else max(0.0, due - time.monotonic())
                if not selector.select(wait):
                    due = None
                    self.send_changed()
                    continue
                data = os.read(fd, 65536)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in filter(None, lines):
                    if self._order(json.loads(line)) and due is None:
                        due = time.monotonic() + DELAY
        if not self.asked and (sent := self.sync(list(self.followed))) is not None:
            self.say({"sent": sent})

    def _order(self, order: dict[str, Any]) -> bool:
        """Carry out one order; True where it is to be sent soon."""
        if order["do"] == "open":
            self.uri, self.runs = order["uri"], Path(order["runs"])
            return False
        if order["do"] == "follow":
            self.followed[order["folder"]] = True
            return True
        self.asked = True
        if order["do"] == "sync":
            if (sent := self.sync(order["folders"])) is not None:
                self.say({"sent": sent})
        elif order["do"] == "fetch":
            self.fetch()
        else:
            raise ValueError(f"unknown order {order['do']!r}")
        return False


def _suite(folder: Path) -> set[str]:
    from .results import load

    suite = load(folder).record.get("suite")
    return {str(suite)} if suite else set()


def quiet() -> None:
    """MLflow and alembic tell of every table; their warnings still go to the log."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> int:
    """Serve standard input. Anything unexpected is told as fatal, never lost."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # MLflow prints to standard output; only answers may go there

    def say(answer: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:
            pass  # the run was killed and nobody listens: the record still goes out

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; the input ends with it
    if hasattr(os, "nice"):
        os.nice(10)
    quiet()
    try:
        Worker(say).serve(sys.stdin.buffer)
    except Exception as fault:
        say({"fatal": f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"})
        if os.environ.get("CL_BENCH_DEBUG"):
            raise
        return 1
    return 0
