"""Serves the page of a folder of runs and keeps it up to date while runs go on.

Read-only, standard library only, loopback unless told otherwise. Four paths: the page, its data, a stream of
server-sent events with one word per change, and the files of the records. A request is answered only if its Host
header names this server (a page of another site cannot reach it through a renamed address), and a file only if its
real path lies in the folder.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ...errors import UserError
from ...records.tracking import is_loopback
from ..comparison import Comparison
from .live import Live
from .page import html_of

__all__ = ["DashboardServer", "make_server", "serve"]

TYPES = {".json": "application/json", ".jsonl": "text/plain; charset=utf-8", ".npz": "application/octet-stream"}
MOST = 96  # connections at once
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
           "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY"}


class Watcher:
    """Looks at the folder every ``interval`` seconds; ``version`` grows whenever a record has changed."""

    def __init__(self, folder: Path, interval: float) -> None:
        self.folder, self.interval, self.version = folder, interval, 0
        self.pause: Callable[[], float] = lambda: 0.0  # what building a version costs decides how often there is a new one
        self.changed = threading.Condition()
        self.stopped = False
        self._seen = self._signature()
        self._thread = threading.Thread(target=self._watch, name="cl-bench serve: watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def _signature(self) -> frozenset[tuple[str, int, int]]:
        found = set()
        for where, folders, files in os.walk(self.folder):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for name in files:
                if name in ("run.json", "DONE", "events.jsonl"):
                    try:
                        stat = os.stat(os.path.join(where, name))
                    except OSError:
                        continue  # replaced or removed since it was listed: the next look sees what is there now
                    found.add((os.path.join(where, name), stat.st_mtime_ns, stat.st_size))
        return frozenset(found)

    def _watch(self) -> None:
        while not self.stopped:
            time.sleep(max(self.interval, self.pause()))
            now = self._signature()
            if now != self._seen:
                self._seen = now
                with self.changed:
                    self.version += 1
                    self.changed.notify_all()

    def wait(self, version: int, seconds: float) -> int:
        """The version, as soon as it is not ``version`` any more, or after ``seconds``."""
        with self.changed:
            self.changed.wait_for(lambda: self.version != version or self.stopped, timeout=seconds)
            return self.version


class DashboardServer(ThreadingHTTPServer):
    """The HTTP server of one folder; ``url`` is where a browser finds it. Close it with :meth:`close`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, address: tuple[str, int], title: str, interval: float) -> None:
        self.folder, self.title = folder.resolve(), title
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.watcher = Watcher(self.folder, interval)
        self.live = Live(self.folder, title, lambda: self.watcher.version)
        self.watcher.pause = lambda: self.live.pause
        self._places = threading.BoundedSemaphore(MOST)
        super().__init__(address, _Handler)
        host, port = str(self.server_address[0]), int(self.server_address[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}/"
        self.hosts = {f"{shown}:{port}"}
        if is_loopback(host):
            self.hosts |= {f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]")}
        elif host in ("0.0.0.0", "::"):
            self.hosts = set()  # told to answer on every address: any name may be right
        self.watcher.start()

    def comparison(self) -> Comparison:
        """The tables of what lies in the folder now; made once per version."""
        return self.live.comparison()

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread per connection, up to MOST of them; more are closed at once, so that memory stays bounded."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that leaves in the middle is no error of ours; anything else is told."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop answering and watching."""
        self.watcher.stop()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    timeout = 30

    def log_message(self, *_: object) -> None:
        """Nothing: requests of an own browser are no news."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.hosts and self.headers.get("Host", "") not in self.server.hosts:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "This server answers only to its own name.")
        elif path == "/":
            self._send(html_of(self.server.live.text(), self.server.title, live=True), "text/html; charset=utf-8")
        elif path == "/data.json":
            since = parse_qs(urlsplit(self.path).query).get("since", [""])[0]
            known = since.isascii() and since.isdigit() and len(since) < 12
            live = self.server.live
            self._send(live.changes(int(since)) if known else live.text(), "application/json")
        elif path == "/events":
            self._events()
        elif path.startswith("/files/"):
            self._file(path[len("/files/"):])
        else:
            self._say(HTTPStatus.NOT_FOUND, "Nothing here.")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "This server only shows; it changes nothing.", Allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _send(self, body: str | bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **more: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _say(self, status: HTTPStatus, text: str, **more: str) -> None:
        self._send(text + "\n", "text/plain; charset=utf-8", status, **more)

    def _file(self, relative: str) -> None:
        """A file of a record. Links are followed first: what counts is where the file really lies."""
        try:
            path = (self.server.folder / relative).resolve()
            inside = path.is_relative_to(self.server.folder)
            if not inside or path.suffix not in TYPES or path.name.startswith(".") or not path.is_file():
                raise FileNotFoundError(relative)
            data = path.read_bytes()
        except (OSError, ValueError):
            self._say(HTTPStatus.NOT_FOUND, "No such record.")
            return
        self._send(data, TYPES[path.suffix])

    def _events(self) -> None:
        """One ``update`` event per change of the folder, and a comment every ten seconds to notice a closed page."""
        self.send_response(HTTPStatus.OK)
        for name, value in {**HEADERS, "Content-Type": "text/event-stream"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        version = self.server.watcher.version
        try:
            self.wfile.write(b": watching\n\n")
            while not self.server.watcher.stopped:
                now = self.server.watcher.wait(version, 10)
                self.wfile.write(b": still here\n\n" if now == version else b"event: update\ndata: %d\n\n" % now)
                self.wfile.flush()
                version = now
        except OSError:
            return  # the page was closed


def make_server(folder: str | Path, host: str = "127.0.0.1", port: int = 0, *, title: str | None = None,
                remote: bool = False, interval: float = 1.0) -> DashboardServer:
    """A server that is bound but not yet answering (call ``serve_forever``). ``port`` 0 takes a free one; ``interval``
    is the time between two looks at the folder in seconds.

    Raises UserError for a folder that does not exist, an address that is taken or not this machine's, and for an
    address other than loopback without ``remote=True``: whoever reaches it can read every record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of runs to serve.")
    if not remote and not is_loopback(host):
        raise UserError(f"{host} can be reached from other machines, which could then read every record: allow it "
                        f"with --remote, or use 127.0.0.1.")
    try:
        return DashboardServer(folder, (host, port), title or f"cl-bench · {folder.resolve().name}", interval)
    except (OSError, OverflowError) as error:
        raise UserError(f"Cannot listen on {host}:{port} ({error}): choose another port or address.") from error


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 0, *, remote: bool = False,
          title: str | None = None, ready: Callable[[str], None] | None = None) -> None:
    """Serve the page of ``folder`` until interrupted; ``ready`` is called with the URL once it can be opened. Raises
    UserError as :func:`make_server`."""
    server = make_server(folder, host, port, title=title, remote=remote)
    if ready is not None:
        ready(server.url)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return
    finally:
        server.watcher.stop()
        server.server_close()
