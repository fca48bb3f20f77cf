"""One writer per run folder; nothing is touched before it may be; events are cut back exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import records

from cl_bench.errors import UserError
from cl_bench.records import lock
from cl_bench.records.results import RunWriter, complete, load, load_all

HOLD = "import sys, time; from cl_bench.records.results import RunWriter; w = RunWriter(sys.argv[1]); "


def elsewhere(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that opens the folder for writing, does ``then``, says so and waits."""
    code = HOLD + then + "; print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def begun(folder: Path, **over: Any) -> Path:
    """A run that was killed on its way: a record, events with half a line, a checkpoint."""
    records.write(folder.parent, folder.name, records.record(**{"status": "running", **over}), [{"kind": "loss", "step": 1}],
                  done=False)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "state.json").write_text("{}")
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"kind": "loss", "st')
    return folder


def test_a_second_writer_is_refused_in_this_process_and_after_it_is_not(tmp_path: Path) -> None:
    said = rf"being written by process {os.getpid()} on .* since 20.*: wait until"
    with RunWriter(tmp_path / "a"), pytest.raises(UserError, match=said):
        RunWriter(tmp_path / "a")
    assert not (tmp_path / "a" / "LOCK").exists()
    RunWriter(tmp_path / "a").close()


def test_another_process_holds_the_folder_until_it_dies_however_it_dies(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    process = elsewhere(folder, "w.event(kind='loss', step=2)")
    try:
        before = bytes_of(folder)
        with pytest.raises(UserError, match=f"being written by process {process.pid} "):
            RunWriter(folder)
        assert bytes_of(folder) == before, "a refused writer touches nothing"
    finally:
        killed(process)
    assert (folder / "LOCK").exists(), "the dead left it behind"
    RunWriter(folder).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_folder(tmp_path: Path) -> None:
    """A loader's worker lives some seconds longer than a run that was killed."""
    process = elsewhere(tmp_path / "a", "import os; child = os.fork(); child or (open(sys.argv[1] + '/alive', 'w').close(), "
                                        "time.sleep(60), os._exit(0)); open(sys.argv[1] + '/child', 'w').write(str(child))")
    while not (tmp_path / "a" / "alive").exists():  # a fork is over where the child runs on
        time.sleep(0.01)
    killed(process)
    try:
        RunWriter(tmp_path / "a").close()
    finally:
        os.kill(int((tmp_path / "a" / "child").read_text()), signal.SIGKILL)


def test_where_there_is_no_flock_the_words_in_the_file_are_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    folder = tmp_path / "a"
    with RunWriter(folder):
        with pytest.raises(UserError, match="being written by process"):
            RunWriter(folder)
        words = json.loads((folder / "LOCK").read_text())
    assert not (folder / "LOCK").exists()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for change, refused in (({"pid": process.pid}, False), ({"host": "elsewhere"}, True), ({}, True),
                            ({"start": -1}, words["start"] is None)):  # -1: the number was given to another process
        (folder / "LOCK").write_text(json.dumps({**words, **change}))
        if refused:
            with pytest.raises(UserError, match=r"if no such process lives, remove .*LOCK"):
                RunWriter(folder)
        else:
            RunWriter(folder).close()


def test_the_lock_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "LOCK").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="Cannot write"):
        RunWriter(tmp_path / "a")
    assert (tmp_path / "precious").read_text() == "keep me"


def test_opening_a_run_to_go_on_with_it_changes_nothing_and_gives_its_record(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a", seed=7)
    before = bytes_of(folder)
    with RunWriter(folder) as writer:
        assert {k: v for k, v in bytes_of(folder).items() if k != "LOCK"} == before
        assert writer.previous is not None and writer.previous["seed"] == 7
    assert bytes_of(folder) == before
    with RunWriter(tmp_path / "b") as writer:
        assert writer.previous is None


def test_no_folder_is_left_where_none_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cl_bench.records.writer.RunLock", full)
    with pytest.raises(UserError, match=r"Cannot write to .* \(No space left on device\)"):
        RunWriter(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said_so", [True, False], ids=["after its last event", "before it"])
@pytest.mark.parametrize("how", ["complete", "writer"])
def test_finished_without_its_mark_gets_it(tmp_path: Path, said_so: bool, how: str) -> None:
    folder = begun(tmp_path / "a", status="finished")
    if said_so:
        with open(folder / "events.jsonl", "a") as file:
            file.write('ep": 2}\n{"kind": "finish", "t": 9.0}\n')
    assert load(folder).status == "running"
    numbers = load(folder).record["metrics"]
    if how == "complete":
        assert complete(folder) and complete(folder)
    else:
        with pytest.raises(UserError, match="already holds a finished run"):
            RunWriter(folder)
    assert load(folder).status == "finished" and load(folder).record["metrics"] == numbers
    assert [e["kind"] for e in load(folder).events()] == ["loss", "loss", "finish"][1 - said_so:]
    assert {p.name for p in folder.iterdir()} == {"DONE", "run.json", "events.jsonl", "arrays.npz"}


def hit_at(k: int, folder: Path, how: str) -> None:
    """In a child: end the run of ``folder``, to be killed at the k-th call that changes the disk."""
    left, writer = [k], None if how == "complete" else RunWriter(folder)

    def hit(event: str, args: Any) -> None:
        writes = event in ("os.remove", "os.rename", "os.rmdir", "os.truncate") or (
            event == "open" and str(args[0]).startswith(str(folder)) and bool(args[2] & (os.O_CREAT | os.O_TRUNC)))
        left[0] -= writes
        if writes and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hit)
    if writer is None:
        complete(folder)
    else:
        writer.write(records.record(status="finished"))
        writer.event(kind="finish")
        writer.done()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(("how", "status"), [("complete", "finished"), ("done", "running")])
def test_killed_anywhere_in_its_last_moments_it_goes_on_and_nothing_is_left(how: str, status: str, tmp_path: Path) -> None:
    for k in range(1, 30):
        folder = begun(tmp_path / str(k), status=status)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                hit_at(k, folder, how)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        if complete(folder):
            assert sorted(p.name for p in folder.iterdir() if p.name != "checkpoint") == ["DONE", "arrays.npz", "events.jsonl",
                                                                                        "run.json"], k
        else:
            assert json.loads((folder / "run.json").read_text())["status"] == "running"
        if code == 0:
            assert k > 3
            return
    raise AssertionError("it never got to its end")


def test_only_what_is_finished_is_completed_and_never_under_a_living_writer(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    assert not complete(folder) and not complete(tmp_path / "nowhere")
    assert not (folder / "DONE").exists() and not (tmp_path / "nowhere").exists()
    with RunWriter(folder) as writer:
        writer.write(records.record(status="finished"))
        with pytest.raises(UserError, match="being written"):
            complete(folder)
        assert not (folder / "DONE").exists()


def test_left_overs_of_a_killed_writer_go_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    gone = [".run.json.4242.a1b2c3", ".arrays.npz.7.ffffff", ".DONE.7.0a0a0a", ".events.jsonl.1.abcdef"]
    kept = [".checkpoint-old", ".run.json.swp", ".notes", "run.json.bak"]
    for name in (*gone, *kept):
        (folder / name).write_text("x")
    (folder / ".checkpoint-0a1b2c3d").mkdir()
    (folder / ".checkpoint-0a1b2c3d" / "state.json").write_text("half")
    for name in (".state.json.77.0a1b2c", ".tensors-0a1b2c.safetensors.77.0a1b2c", ".keep", "tensors-0a1b2c.safetensors"):
        (folder / "checkpoint" / name).write_text("x")
    before = {p.name for p in folder.iterdir()}
    process = elsewhere(tmp_path / "b", "pass")
    try:
        (tmp_path / "b" / gone[0]).write_text("being written")
        with pytest.raises(UserError, match="being written"):
            RunWriter(tmp_path / "b")
        assert (tmp_path / "b" / gone[0]).exists(), "it is the living writer's"
    finally:
        killed(process)
    RunWriter(folder).close()
    assert before - {p.name for p in folder.iterdir()} == {*gone, ".checkpoint-0a1b2c3d"}
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {"state.json", ".keep", "tensors-0a1b2c.safetensors"}


def test_events_are_cut_back_by_length_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    with RunWriter(folder) as writer:
        writer.write(records.record(status="running"))
        writer.event(kind="loss", step=1)
        offset = writer.events_offset()
        assert offset == (folder / "events.jsonl").stat().st_size > 0
        early = (folder / "events.jsonl").read_bytes()
        monkeypatch.setattr(time, "time", lambda: 0.0)  # set back
        writer.event(kind="loss", step=2)
        writer.event(kind="loss", step=3, t=-5.0)
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"kind": "lo')
    with RunWriter(folder) as writer:
        writer.cut_events(offset)
        assert (folder / "events.jsonl").read_bytes() == early
        writer.event(kind="loss", step=2)
    steps, times = zip(*((e["step"], e["t"]) for e in load(folder).events()), strict=True)
    assert steps == (1, 2) and all(t >= 0 for t in times)


def test_lost_events_are_said(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(records.record(status="running"))
        writer.event(kind="loss", step=1)
        writer.cut_events(writer.events_offset() + 100)
    assert [(e["kind"], e.get("message")) for e in load(tmp_path / "a").events()] == [
        ("loss", None), ("error", "100 bytes of events before this point were lost.")]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A real limit of the system on the size of a file: half of the second line would fit."""
    code = ("import resource, signal, sys\nfrom cl_bench.records.results import RunWriter\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nw = RunWriter(sys.argv[1])\n"
            "w.event(kind='loss', t=1, text='x' * 100)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
            "try:\n    w.event(kind='loss', t=2, text='y' * 100)\nexcept OSError as fault:\n    print('full')\n"
            "w.event(kind='end', t=3)\nw.close()\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert done.stdout.strip() == "full", done.stderr
    lines = (tmp_path / "a" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["loss", "end"]


def test_a_folder_in_which_a_run_was_killed_before_its_record_is_told(tmp_path: Path) -> None:
    killed(elsewhere(tmp_path / "a", "pass"))
    assert load_all(tmp_path).problems == [f"{tmp_path / 'a'} holds no run (no run.json in it)."]
