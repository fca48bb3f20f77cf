"""Records on disk: atomic, tolerant, refusing what is hostile, and fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import records

from cl_bench.errors import UserError
from cl_bench.records.results import RunWriter, check_id, environment, git_state, load, load_all, new_id, plain


def test_round_trip(tmp_path):
    folder = records.write_learner(tmp_path, "codyra", 3, order=1)
    run = load(folder)
    assert (run.id, run.scenario, run.method, run.seed, run.order) == (folder.name, "split_digits", "codyra", 3, 1)
    assert run.status == "finished" and run.done and run.kind == "learn"
    assert run.matrix.rows[0] == "classes 0-1"
    assert run.metrics["average_accuracy"] == pytest.approx(run.matrix.average_accuracy())
    assert sum(e["kind"] == "loss" for e in run.events()) == 100
    assert (run.arrays()["total"] == run.matrix.total).all()
    assert (folder / "DONE").read_bytes() == b""


def test_json_has_null_never_nan(tmp_path):
    with RunWriter(tmp_path / "a") as writer:
        writer.write(records.record(metrics={"forgetting": float("nan"), "x": np.float32("inf")}))
        writer.event(kind="loss", value=np.nan, t=np.float64(1))
    text = (tmp_path / "a" / "run.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["metrics"] == {"forgetting": None, "x": None}
    assert json.loads((tmp_path / "a" / "events.jsonl").read_text()) == {"kind": "loss", "value": None, "t": 1.0}


def test_plain_refuses_what_json_cannot_hold():
    assert plain({"a": (1, np.int64(2)), "b": {3}, "c": np.bool_(True)}) == {"a": [1, 2], "b": [3], "c": True}
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", "a\\b", ".hidden", "a..b", "a\0", "a\n", "-x", "x" * 200])
def test_hostile_ids_are_refused(bad):
    with pytest.raises(UserError, match="id"):
        check_id(bad)


def test_new_ids_are_safe_and_differ():
    ids = {new_id("../../etc/passwd", "<script>", 0, 2) for _ in range(50)}
    assert len(ids) == 50 and all(check_id(i) for i in ids)


def test_a_finished_run_is_never_overwritten(tmp_path):
    folder = records.write_learner(tmp_path, "ncm", 0)
    with pytest.raises(UserError, match="finished run"):
        RunWriter(folder)


def test_resume_appends_and_cuts_the_torn_line(tmp_path):
    with RunWriter(tmp_path / "a") as writer:
        writer.event(kind="loss", step=1)
    with open(tmp_path / "a" / "events.jsonl", "a") as file:
        file.write('{"kind": "loss", "st')
    with RunWriter(tmp_path / "a") as writer:
        writer.event(kind="loss", step=2)
        writer.write(records.record(status="stopped"))
    assert [e["step"] for e in load(tmp_path / "a").events()] == [1, 2]


def test_a_torn_last_line_is_left_out_and_a_broken_one_in_the_middle_is_shown(tmp_path):
    folder = records.write(tmp_path, "a", records.record(), [{"kind": "loss", "step": 1}])
    with open(folder / "events.jsonl", "a") as file:
        file.write('nonsense\n{"kind": "loss", "step": 2}\n{"torn')
    kinds = [e["kind"] for e in load(folder).events()]
    assert kinds == ["loss", "error", "loss"]


def test_nothing_but_run_json_is_left_after_a_failed_write(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "a")
    writer.write(records.record(seed=1))

    def crash(*args):
        raise OSError("disk full")
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        writer.write(records.record(seed=2))
    monkeypatch.undo()
    assert load(tmp_path / "a").seed == 1
    writer.close()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"run.json"}


def test_wrong_use_of_the_writer(tmp_path):
    writer = RunWriter(tmp_path / "a")
    with pytest.raises(ValueError, match="folder"):
        writer.write(records.record(id="b"))
    with pytest.raises(ValueError, match="status"):
        writer.write(records.record(status="fine"))
    with pytest.raises(ValueError, match="kind"):
        writer.event(t=1)
    with pytest.raises(ValueError, match="object"):
        writer.arrays({"a": np.array([object()])})


def test_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        RunWriter(tmp_path / "file" / "a")


def test_finished_without_done_counts_as_running(tmp_path):
    folder = records.write(tmp_path, "a", records.record(), done=False)
    assert load(folder).status == "running"


@pytest.mark.parametrize("change,message", [
    (lambda r: r.update(schema=2), "upgrade"), (lambda r: r.update(schema=None), "schema"),
    (lambda r: r.pop("seed"), "seed"), (lambda r: r.update(id="../x"), "id"),
    (lambda r: r["scenario"].pop("name"), "scenario.name"), (lambda r: r.update(config="x"), "'config'"),
    (lambda r: r.update(cost=[1]), "'cost'"), (lambda r: r.update(environment=3), "'environment'"),
    (lambda r: r["matrix"].update(rows=["a"], columns=["a"], correct=[[5]], total=[[1]]), "fit together"),
    (lambda r: r["matrix"].update(rows=["a"], columns=["b"]), "fit together"),
    (lambda r: r.update(stream=[{"nonsense": 1}]), "fit together")])
def test_a_bad_record_is_one_clear_sentence(tmp_path, change, message):
    folder = records.write(tmp_path, "a", records.record())
    data = json.loads((folder / "run.json").read_text())
    change(data)
    (folder / "run.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_number_of_thousands_of_digits_is_damage(tmp_path):
    folder = records.write(tmp_path, "a", records.record())
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"seed": ', f'"seed": {"9" * 5000}', 1))
    with pytest.raises(UserError, match="damaged, not valid JSON"):
        load(folder)
    (folder / "run.json").write_text(text)
    for line in (f'{{"kind": "x", "value": {"9" * 5000}}}', "[" * 100_000, "[1]"):
        (folder / "events.jsonl").write_text(f'{line}\n{{"kind": "finish", "t": 1}}\n')
        assert [e["kind"] for e in load(folder).events()][-1] == "finish"


def test_load_all_reports_and_goes_on(tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"schema": 1, "id"')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "events.jsonl").write_text("")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "run.json").write_text("[]")
    (tmp_path / "not-a-run").mkdir()
    runs = load_all(tmp_path)
    assert [r.method for r in runs] == ["codyra"]
    assert len(runs.problems) == 3 and any("not valid JSON" in p for p in runs.problems)


def test_load_all_takes_runs_once_and_names_repeats(tmp_path):
    folder = records.write_learner(tmp_path / "one", "codyra", 0)
    records.write_learner(tmp_path / "two", "codyra", 0)
    assert len(load_all([folder, tmp_path / "one", folder / "run.json"])) == 1
    both = load_all([tmp_path])
    assert len(both) == 1 and "repeats" in both.problems[0]


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_all(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run"):
        load(tmp_path)


def test_damaged_arrays(tmp_path):
    folder = records.write_learner(tmp_path, "ncm", 0)
    (folder / "arrays.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(UserError, match="damaged"):
        load(folder).arrays()
    with zipfile.ZipFile(folder / "arrays.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(range(256)) * 40)
        place = file.getinfo("a.npy").header_offset + 35
    data = bytearray((folder / "arrays.npz").read_bytes())
    data[place:place + 9] = b"\xff" * 9
    (folder / "arrays.npz").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load(folder).arrays()


def test_500_runs_load_and_none_is_lost(tmp_path):
    folder = records.write_learner(tmp_path, "codyra", 0)
    text = (folder / "run.json").read_text()
    for i in range(499):
        (tmp_path / f"run-{i}").mkdir()
        (tmp_path / f"run-{i}" / "run.json").write_text(text.replace(folder.name, f"run-{i}"))
        (tmp_path / f"run-{i}" / "DONE").touch()
    runs = load_all(tmp_path)
    assert len(runs) == 500 and runs.problems == []


def test_no_heavy_import():
    code = "import sys, cl_bench.records.results; print([m for m in ('torch', 'scipy', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_surroundings(tmp_path):
    env = environment(device="cpu", threads=2)
    assert env["packages"]["numpy"] == np.__version__ and env["packages"]["open-clip-torch"] and plain(env) == env
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *args], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
