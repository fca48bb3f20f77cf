"""The served page: follows the folder, changes nothing, and answers nobody but its own page."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import sys
import threading
import time

import pytest
import records

from cl_bench import cli
from cl_bench.compare.dashboard import live as live_module
from cl_bench.compare.dashboard.live import Live
from cl_bench.compare.dashboard.serve import DashboardServer, make_server
from cl_bench.errors import UserError

serve_module = sys.modules[make_server.__module__]  # the package has a function of that name


@pytest.fixture
def folder(tmp_path):
    runs = tmp_path / "runs"
    records.write_learner(runs, "codyra", 0)
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    return runs


@pytest.fixture
def server(folder):
    made = make_server(folder, interval=0.05)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.close()
    thread.join(5)


def ask(server, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer, answer.read()


def test_page_and_data(server):
    answer, body = ask(server, "/")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/html") and b"codyra" in body
    answer, body = ask(server, "/data.json")
    data = json.loads(body)
    assert data["live"] is True and [r["id"] for r in data["runs"]] == ["split_digits-codyra-s0"]
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Content-Type-Options"] == "nosniff"


def test_head_sends_no_body(server):
    answer, body = ask(server, "/data.json", "HEAD")
    assert answer.status == 200 and body == b"" and int(answer.headers["Content-Length"]) > 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(server, method):
    answer, _ = ask(server, "/files/split_digits-codyra-s0/run.json", method)
    assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example:1"])
def test_another_name_is_refused(server, host):
    assert ask(server, "/data.json", host=host)[0].status == 421


def test_localhost_is_its_own_name(server):
    assert ask(server, "/", host=f"localhost:{server.server_address[1]}")[0].status == 200


def test_files_of_records(server):
    answer, body = ask(server, "/files/split_digits-codyra-s0/run.json")
    assert answer.status == 200 and json.loads(body)["seed"] == 0


@pytest.mark.parametrize("path", [
    "/files/../secret.json", "/files/..%2fsecret.json", "/files/%2e%2e/secret.json", "/files//etc/hostname", "/files/",
    "/files/split_digits-codyra-s0/link.json", "/files/%00.json", "/files/split_digits-codyra-s0",
    "/files/folder/secret.json", "/nothing", "/../secret.json"])
def test_no_path_leads_outside(server, folder, path):
    (folder / "split_digits-codyra-s0" / "link.json").symlink_to(folder.parent / "secret.json")
    (folder / "folder").symlink_to(folder.parent)
    answer, body = ask(server, path)
    assert answer.status == 404 and b"secret" not in body


def test_a_new_run_sends_an_update(server, folder):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", "/events")
    stream = connection.getresponse()
    assert stream.headers["Content-Type"] == "text/event-stream" and stream.readline() == b": watching\n"
    records.write_learner(folder, "lora", 0)
    lines = [stream.readline() for _ in range(2)]
    while b"event: update\n" not in lines:
        lines.append(stream.readline())
    deadline = time.monotonic() + 10
    while len(json.loads(ask(server, "/data.json")[1])["runs"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(json.loads(ask(server, "/data.json")[1])["runs"]) == 2


def merged(old: dict, new: dict) -> dict:
    """What the page does with an answer: parts that did not change are kept."""
    known = {f"group {g['title']}#{g['fingerprint']}": g for g in old["groups"]} | {f"run {r['id']}": r for r in old["runs"]}
    known |= {f"shared {key}": value for key, value in old["shared"].items()} | new["parts"]
    out = {**old, **{k: v for k, v in new["parts"].items() if " " not in k}, "at": new["at"]}
    return {**out, "groups": [known[k] for k in new["order"]["groups"]], "runs": [known[k] for k in new["order"]["runs"]],
            "shared": {k.removeprefix("shared "): known[k] for k in new["order"]["shared"]}}


def test_an_update_is_what_has_changed_and_no_more(tmp_path):
    """One run of forty goes on: the answer is small, holds that run and its table, and gives the same page as a new one."""
    for seed in range(10):
        for method in ("lora", "osft"):
            records.write_learner(tmp_path, method, seed)
            records.write_learner(tmp_path, method, seed, scenario="other")
    at = [1]
    live = Live(tmp_path, "x", lambda: at[0])
    first = json.loads(json.dumps(live.whole()))
    run = tmp_path / "other-lora-s3" / "run.json"
    run.write_text(run.read_text().replace('"warnings": []', '"warnings": ["odd"]'))
    at[0] = 2
    text = live.changes(first["at"])
    changed = json.loads(text)
    assert [k for k in changed["parts"] if k.startswith("run ")] == ["run other-lora-s3"]
    assert len(text) < 0.2 * len(json.dumps(first)), "no more than changed"
    again = Live(tmp_path, "x", lambda: 2).whole()
    mine = merged(first, changed)
    for name in ("made",):
        mine.pop(name), again.pop(name)
    assert mine == json.loads(json.dumps(again))
    assert json.loads(live.changes(99))["parts"].keys() == json.loads(live.changes(0))["parts"].keys(), "unknown: all"


def test_records_are_read_again_only_where_they_changed(tmp_path, monkeypatch):
    for seed in range(6):
        records.write_learner(tmp_path, "lora", seed)
    at, read = [1], []
    live = Live(tmp_path, "x", lambda: at[0])
    live.whole()
    real = live_module.load
    monkeypatch.setattr(live_module, "load", lambda folder: read.append(folder.name) or real(folder))
    records.write_learner(tmp_path, "osft", 0)
    (tmp_path / "split_digits-lora-s1" / "DONE").unlink()
    at[0] = 2
    data = live.whole()
    assert read == ["split_digits-lora-s1", "split_digits-osft-s0"]
    assert {r["id"]: r["status"] for r in data["runs"]}["split_digits-lora-s1"] == "running" and len(data["runs"]) == 7
    assert live.whole() is not None and len(read) == 2, "nothing changed: nothing is read, whoever asks"


def test_building_takes_a_twentieth_of_a_processor_at_most(server):
    server.live.whole()
    assert server.live.took > 0 and server.watcher.pause() == 20 * server.live.took


def test_a_reader_that_leaves_prints_nothing(server, capfd):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n\r\n".encode())
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
    time.sleep(0.3)
    assert ask(server, "/data.json")[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_half_open_connections_do_not_pile_up(server):
    open_ones = [socket.create_connection(("127.0.0.1", server.server_address[1])) for _ in range(serve_module.MOST + 40)]
    try:
        deadline = time.monotonic() + 10
        while threading.active_count() < serve_module.MOST and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= serve_module.MOST + 10
    finally:
        for s in open_ones:
            s.close()
    deadline = time.monotonic() + 10
    answer = None
    while answer is None and time.monotonic() < deadline:
        try:
            answer = ask(server, "/data.json")[0].status
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.1)
    assert answer == 200, "places are given back"


def test_an_empty_folder_and_a_broken_run_are_shown(tmp_path):
    server = make_server(tmp_path, interval=9)
    assert server.comparison().groups == []
    server.server_close()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{")
    server = make_server(tmp_path, interval=9)
    assert "not valid JSON" in server.comparison().problems[0]
    server.server_close()


def test_two_protocols_are_two_tables(tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    records.write_learner(tmp_path, "lora", 0, fields={"test_batch_size": 1})
    server = make_server(tmp_path, interval=9)
    assert len(server.comparison().groups) == 2
    server.server_close()


def test_only_loopback_unless_told_otherwise(tmp_path):
    with pytest.raises(UserError, match="other machines"):
        make_server(tmp_path, host="0.0.0.0")
    make_server(tmp_path, host="0.0.0.0", remote=True).server_close()
    with pytest.raises(UserError, match="not a folder"):
        make_server(tmp_path / "nowhere")


def test_a_taken_port_is_one_sentence(tmp_path):
    first = make_server(tmp_path)
    first.allow_reuse_address = False
    with pytest.raises(UserError, match="Cannot listen"):
        make_server(tmp_path, port=70000)
    first.server_close()


def test_the_command_says_where_and_serves_others_only_when_told(folder, monkeypatch, capsys):
    def stop(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DashboardServer, "serve_forever", stop)
    assert cli.main(["serve", str(folder), "--port", "0"]) == 0
    assert re.search(r"at http://127\.0\.0\.1:\d+/ ", capsys.readouterr().out)
    assert cli.main(["serve", str(folder), "--port", "0", "--host", "0.0.0.0"]) == 2
    assert "--remote" in capsys.readouterr().err
    assert cli.main(["serve", str(folder), "--port", "0", "--host", "0.0.0.0", "--remote"]) == 0
    assert re.search(r"at http://0\.0\.0\.0:\d+/ ", capsys.readouterr().out)
