"""MLflow as a sink: what a record becomes, that nothing is sent twice, and that it comes back bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
from stores import dump, open_store

from cl_bench.errors import UserError
from cl_bench.numbers.matrix import AccuracyMatrix, Stream
from cl_bench.records import tracking_content as content
from cl_bench.records.results import RunWriter, load
from cl_bench.records.tracking_store import STATE, Store, StoreError

FIELDS = {"scenario.data": {"train": "4b4d1dc4ae9e4aae", "test": "32c62036f88205bb"}}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables and nothing in them: making those takes seconds, copying them does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def runs(tmp_path: Path, empty_database: Path) -> Path:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return tmp_path


# -- what is sent -----------------------------------------------------------------------------------------------------

def test_a_learner_arrives_with_curves_params_tags_inputs_and_artifacts(runs: Path) -> None:
    folder = records.write_learner(runs, "lora", 3, order=1, fields=FIELDS)
    run, store = load(folder), open_store(runs)
    assert store.send(folder)
    sent = dump(store)[run.id]
    percent = run.matrix.percent
    for step in range(5):
        assert sent["metrics"]["accuracy/average"][step][0] == step
        assert sent["metrics"]["accuracy/average"][step][2] == pytest.approx(percent[step, :step + 1].mean())
    assert [v for _, _, v in sent["metrics"]["accuracy/01 classes 2-3"]] == pytest.approx(list(percent[1:, 1]))
    curve = [v for _, _, v in sent["metrics"]["forgetting/average"]]
    assert curve == pytest.approx([run.matrix.forgetting(row=i) for i in range(1, 5)])
    assert sent["metrics"]["average_accuracy"] == [(5, content.millis("2026-01-31T10:00:09+00:00"), pytest.approx(
        run.matrix.average_accuracy()))]
    assert sent["metrics"]["cost/parameters trainable"][0][2] == 15_500
    assert sent["params"]["method.lr"] == "0.001" and sent["params"]["seed"] == "3"
    assert sent["status"] == "FINISHED"
    assert sent["inputs"] == [("split_digits test", "32c62036f88205bb"), ("split_digits train", "4b4d1dc4ae9e4aae")]
    assert sent["files"] == ["accuracy_matrix.csv", "accuracy_matrix.json", "record", "record/DONE",
                             "record/arrays.npz", "record/events.jsonl", "record/run.json"]
    expect = {"scenario": "split_digits", "method": "lora", "label": "lora", "seed": "3", "order": "1",
              "fingerprint": run.fingerprint, "backbone": "tiny_vit", "suite": "synthetic", "status": "finished",
              "commit": "1a2b3c4d", "done": "true"}
    assert {k: sent["tags"][f"cl_bench.{k}"] for k in expect} == expect


def test_a_stream_arrives_with_one_step_per_domain(runs: Path) -> None:
    folder = records.write_adapter(runs, "tent", 0)
    run, store = load(folder), open_store(runs)
    store.send(folder)
    metrics = dump(store)[run.id]["metrics"]
    errors = run.stream.errors
    assert [(s, v) for s, _, v in metrics["error/domain"]] == [(k, pytest.approx(e)) for k, e in enumerate(errors)]
    assert metrics["error/mean so far"][-1][2] == pytest.approx(errors.mean())
    assert metrics["source_forgetting"][0][2] == pytest.approx(run.metrics["source_forgetting"])
    start = content.millis(run.record["started"])
    assert [t - start for _, t, _ in metrics["error/domain"]] == [1000 * k for k in range(30)], "times of the events"


def test_the_matrix_is_a_table_that_mlflow_shows(runs: Path) -> None:
    folder = records.write_learner(runs, "ncm", 0)
    store = open_store(runs)
    store.send(folder)
    run = store.find(folder.name)
    path = store.client.download_artifacts(run.info.run_id, "accuracy_matrix.json", str(runs))
    shown = json.loads(Path(path).read_text())
    assert shown["columns"] == ["after", *load(folder).matrix.columns]
    assert shown["data"][0] == ["classes 0-1", pytest.approx(load(folder).matrix.percent[0, 0], abs=1e-4), *[None] * 4]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "accuracy_matrix.json", "type": "table"}]


def test_runs_are_children_of_their_suite_and_the_ui_can_filter_them(runs: Path) -> None:
    store = open_store(runs)
    for method in ("ncm", "lora"):
        for seed in (0, 1):
            store.send(records.write_learner(runs, method, seed))
    store.send(records.write_learner(runs, "joint", 0, suite=None))

    def ids(condition: str) -> list[str]:
        found = store.client.search_runs([store.experiment], condition)
        return sorted(r.data.tags.get("cl_bench.run_id", "parent") for r in found)
    parent = store.client.search_runs([store.experiment], "tags.cl_bench.kind = 'suite'")
    assert [p.info.run_name for p in parent] == ["synthetic"]
    children = ids(f"tags.mlflow.parentRunId = '{parent[0].info.run_id}'")
    assert children == [f"split_digits-{m}-s{s}" for m in ("lora", "ncm") for s in (0, 1)]
    assert ids("tags.cl_bench.method = 'lora' and tags.cl_bench.seed = '1'") == ["split_digits-lora-s1"]
    code = load(runs / "split_digits-ncm-s0").fingerprint
    assert len(ids(f"tags.`cl_bench.fingerprint` = '{code}' and metrics.average_accuracy > 0")) == 5


def test_the_page_goes_to_the_suite_once_per_change(runs: Path) -> None:
    folder, store = records.write_learner(runs, "ncm", 0), open_store(runs)
    store.send(folder)
    for text in ("<p>one", "<p>one", "<p>two"):
        (runs / "synthetic.html").write_text(text)
        store.send_page("synthetic")
    store.send_page("../synthetic")
    parent = store._parent("synthetic")
    got = store.client.download_artifacts(parent, "page.html", str(runs / "mlartifacts"))
    assert Path(got).read_text() == "<p>two"


def test_many_tasks_leave_out_their_curves_and_many_params_are_counted(runs: Path) -> None:
    names = [f"task {i}" for i in range(30)]
    matrix = AccuracyMatrix(names, names, np.tril(np.full((30, 30), 5)), np.tril(np.full((30, 30), 9)), tuple(range(30)))
    config = {"method": {"class_path": "m.M", "init_args": {f"a{i}": i for i in range(150)}}}
    folder = records.write(runs, "many", records.record(matrix=matrix, config=config))
    run, store = load(folder), open_store(runs)
    assert max(len(batch) for batch in content.points(run, 0)) == 3
    store.send(folder)
    params = dump(store)["many"]["params"]
    assert len(params) == 100 and params["method"] == "m.M" and params["left out - see record"] == "52"


def test_write_ahead_so_that_readers_and_writers_do_not_wait(runs: Path) -> None:
    open_store(runs)
    with sqlite3.connect(runs / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# -- nothing twice ----------------------------------------------------------------------------------------------------

def test_sent_again_nothing_changes(runs: Path) -> None:
    folder = records.write_learner(runs, "lora", 0)
    store = open_store(runs)
    assert store.send(folder)
    before = dump(store)
    note = json.loads((folder / STATE).read_text())["stores"][f"sqlite:///{runs / 'mlflow.db'}"]
    assert note["digest"] == before[folder.name]["tags"]["cl_bench.digest"]
    assert not store.send(folder)
    (folder / STATE).write_text("{ damaged")
    assert not open_store(runs).send(folder), "the store knows it, whatever the note says"
    assert dump(store) == before


def grow(runs: Path) -> Iterator[Path]:
    """A run as the runner writes it: the record after each of five experiences, then finished and DONE."""
    full = records.learner_matrix("lora", 0)
    with RunWriter(runs / "growing") as writer:
        for done in range(6):
            m = records.first_rows(full, done)
            if done:
                writer.event(kind="experience", t=2.0 * done, name=full.rows[done - 1])
            writer.write(records.record(matrix=m, metrics=records.metrics_of_matrix(m) if done else {}, status="running",
                                        fields=FIELDS))
            yield writer.folder
        writer.arrays({"correct": full.correct})
        writer.write(records.record(matrix=full, metrics=records.metrics_of_matrix(full), fields=FIELDS))
        writer.done()
    yield writer.folder


def test_one_batch_per_experience_while_the_run_goes_on(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, sizes = open_store(runs), []
    send = store.client.log_batch

    def count(run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        sizes.append(len(metrics))
        send(run_id, metrics, params, tags)
    monkeypatch.setattr(store.client, "log_batch", count)
    steps = grow(runs)
    for _ in range(6):
        folder = next(steps)
        store.send(folder, whole=False)
    assert len(sizes) == 6 and sizes[0] == 0 and all(sizes[1:]), sizes
    assert dump(store)["growing"]["status"] == "RUNNING"
    next(steps)
    store.send(folder)
    live = dump(store)["growing"]
    assert len(live["metrics"]["accuracy/average"]) == 5 and live["status"] == "FINISHED"
    assert [t for _, t, _ in live["metrics"]["accuracy/average"]] == [
        content.millis("2026-01-31T10:00:00+00:00") + 2000 * k for k in range(1, 6)]


class _Cut(Exception):
    """The process dies here."""


def test_cut_off_anywhere_and_sent_again_gives_what_an_uncut_sending_gives(
        runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, full = open_store(runs), records.learner_matrix("lora", 0)
    part = records.first_rows(full, 2)

    def cut(place: int) -> bool:
        """Send a run while it goes on and when it is done, dying before call ``place``; then send it again."""
        name, calls = f"cut{place}", [0]

        def written(matrix: AccuracyMatrix, status: str) -> Path:
            return records.write(runs, name, records.record(
                matrix=matrix, metrics=records.metrics_of_matrix(matrix), status=status, fields=FIELDS, suite=name),
                done=status != "running")

        def limited(send: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **named: Any) -> Any:
                if calls[0] == place:
                    raise _Cut
                calls[0] += 1
                return send(*args, **named)
            return wrapper
        died = False
        with monkeypatch.context() as patched:
            for call in ("create_run", "log_inputs", "log_batch", "log_artifacts", "set_terminated"):
                patched.setattr(store.client, call, limited(getattr(store.client, call)))
            inner = store.client._tracking_client.store
            patched.setattr(inner, "_set_tags", limited(inner._set_tags))  # between values and the tags that count them
            try:
                store.send(written(part, "running"), whole=False)
                store.send(written(full, "finished"))
            except (_Cut, StoreError):  # MLflow wraps what happens inside a batch
                died = True
        if not (runs / name / "DONE").exists():
            written(full, "finished")
        store._parents.clear()  # as in another process
        store.send(runs / name)
        return died
    assert not cut(10**6)
    places = 0
    while cut(places):
        places += 1
    assert 10 <= places < 20, "every call was cut once"
    stored = dump(store)

    def what(name: str, key: str) -> Any:
        return {k: v for k, v in stored[name].items() if k != "tags"}, stored[name]["tags"].get(key)
    whole = stored["cut1000000"]["metrics"]["accuracy/average"]
    assert len(whole) == 5
    for place in range(places):
        assert what(f"cut{place}", "cl_bench.sent_rows") == what("cut1000000", "cl_bench.sent_rows"), f"before call {place}"
        assert what(f"suite cut{place}", "cl_bench.kind") == what("suite cut1000000", "cl_bench.kind")


def test_a_failed_run_that_was_resumed_ends_as_one_finished_run(runs: Path) -> None:
    store = open_store(runs)
    full = records.learner_matrix("lora", 0)
    part = records.first_rows(full, 2)
    folder = records.write(runs, "r", records.record(matrix=part, metrics=records.metrics_of_matrix(part), status="failed",
                                                     error="no memory"), done=False)
    store.send(folder)
    assert dump(store)["r"]["status"] == "FAILED"
    later = {"started": "2026-02-01T08:00:00+00:00", "finished": "2026-02-01T08:01:00+00:00"}
    records.write(runs, "r", records.record(matrix=part, status="running", **later), done=False)
    store.send(folder, whole=False)
    assert dump(store)["r"]["status"] == "RUNNING"
    records.write(runs, "r", records.record(matrix=full, metrics=records.metrics_of_matrix(full), **later))
    store.send(folder)
    sent = dump(store)["r"]
    assert sent["status"] == "FINISHED" and sent["tags"]["cl_bench.error"] == ""
    assert [s for s, _, _ in sent["metrics"]["accuracy/average"]] == [0, 1, 2, 3, 4]
    assert [s for s, _, _ in sent["metrics"]["average_accuracy"]] == [2, 5], "what it had when it failed, and at the end"


def test_deleted_in_the_ui_stays_deleted(runs: Path) -> None:
    folder, store = records.write_learner(runs, "ncm", 0), open_store(runs)
    store.send(folder)
    store.client.delete_run(store.find(folder.name).info.run_id)
    (folder / "events.jsonl").write_text("")
    assert not store.send(folder)


def _write_all(runs: Path, start: Any, results: Any) -> None:
    try:
        store = open_store(runs)
        start.wait(60)
        results.put(sum(store.send(f) for f in sorted(runs.iterdir()) if (f / "run.json").exists()))
    except BaseException as fault:
        results.put(repr(fault))


def test_several_writers_at_once_make_one_store_and_no_run_twice(tmp_path: Path) -> None:
    """On a database that none of them has made yet."""
    import mlflow  # noqa: F401  (once, before the processes)

    for method in ("ncm", "lora", "joint"):
        records.write_learner(tmp_path, method, 0)
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(3), context.Queue()
    writers = [context.Process(target=_write_all, args=(tmp_path, start, results)) for _ in range(3)]
    for writer in writers:
        writer.start()
    sent = [results.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join(30)
    assert all(isinstance(n, int) for n in sent) and sum(sent) == 3, sent
    stored = dump(open_store(tmp_path))
    assert sorted(stored) == ["split_digits-joint-s0", "split_digits-lora-s0", "split_digits-ncm-s0", "suite synthetic"]
    assert len(stored["split_digits-lora-s0"]["metrics"]["accuracy/average"]) == 5


# -- names and values from strangers ----------------------------------------------------------------------------------

def test_hostile_names_arrive_as_text(runs: Path) -> None:
    names = ["../../etc/passwd", "a'; DROP TABLE runs; --", "<script>alert(1)</script>", "名前\0", "x" * 400, "", "A", "a"]
    total = np.tril(np.full((8, 8), 9))
    matrix = AccuracyMatrix(names, names, total, total)
    folder = records.write(runs, "hostile", records.record(
        scenario="s' OR 1=1", method="<b>m</b>", label="l" * 9000, suite="it's `x`", error="e" * 9000, matrix=matrix,
        config={"../x": {"a' b": "v" * 9000, "A' B": 1, "n": None, "e": {}}}, fields={"data": {"tr'ain": "d" * 99}}))
    store = open_store(runs)
    assert store.send(folder) and not store.send(folder)
    sent = dump(store)
    assert sorted(sent) == ["hostile", "suite it's `x`"]
    assert all(".." not in key for key in sent["hostile"]["metrics"])
    assert len([k for k in sent["hostile"]["metrics"] if k.startswith("accuracy/0")]) == 8
    assert sent["hostile"]["tags"]["cl_bench.scenario"] == "s' OR 1=1"


# -- and back ---------------------------------------------------------------------------------------------------------

def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != STATE}


def test_imported_records_are_the_same_bit_for_bit(runs: Path) -> None:
    store = open_store(runs)
    made = [records.write_learner(runs, "lora", 0), records.write_adapter(runs, "tent", 0), records.write(
        runs, "failed", records.record(status="failed", error="no memory"), done=False)]
    going = records.write(runs, "going", records.record(status="running"), done=False)
    for folder in [*made, going]:
        store.send(folder)
    other = Store(store.uri, runs / "other")
    folders, problems = other.fetch()
    assert [f.name for f in folders] == sorted(f.name for f in made) and not problems
    for folder in made:
        assert files(runs / "other" / folder.name) == files(folder)
        assert not other.send(runs / "other" / folder.name), "what came from the store is not sent back"
    assert sorted(p.name for p in (runs / "other").iterdir()) == sorted(f.name for f in made)
    assert other.fetch() == ([], [])


def test_import_leaves_what_is_here_and_refuses_what_was_changed(runs: Path) -> None:
    store = open_store(runs)
    kept, changed, escaping = (records.write_learner(runs, m, 0) for m in ("ncm", "lora", "joint"))
    for folder in (kept, changed, escaping):
        store.send(folder)
    other = runs / "other"
    (other / kept.name).mkdir(parents=True)
    artifact = next((runs / "mlartifacts").glob(f"{store.find(changed.name).info.run_id}/**/run.json"))
    artifact.write_text(artifact.read_text().replace('"seed": 0', '"seed": 1'))
    store.client.set_tag(store.find(escaping.name).info.run_id, "cl_bench.run_id", "../../out")
    folders, problems = Store(store.uri, other).fetch()
    assert folders == [] and len(problems) == 2
    assert "not those that were sent" in " ".join(problems) and "must start with a letter" in " ".join(problems)
    assert [p.name for p in other.iterdir()] == [kept.name] and not list((other / kept.name).iterdir())


def test_a_record_that_cannot_be_read_is_the_users_to_mend(runs: Path) -> None:
    folder = records.write_learner(runs, "ncm", 0)
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        open_store(runs).send(folder)


def test_not_a_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(tmp_path)


def test_unmeasured_is_not_sent_as_zero() -> None:
    assert content._points({"a": None, "b": float("nan"), "c": True, "d": 1.5}, 0, 0) == [content.Point("d", 1.5, 0, 0)]
    assert Stream(()).to_json() == []
