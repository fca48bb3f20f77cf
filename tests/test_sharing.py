"""Archives: nothing private leaves, nothing hostile comes in, and what came in stands beside what was here."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import string
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
from sharing_toys import LEARN, edited, files_of, made, zipped

from cl_bench.command.cli import main
from cl_bench.compare.comparison import compare
from cl_bench.errors import UserError
from cl_bench.records import archive as archives
from cl_bench.records import privacy
from cl_bench.records.archive import export, import_archive
from cl_bench.records.audit import contradictions
from cl_bench.records.results import load, load_all

USER, HOST = "annika", "gpu-box-07"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return made(LEARN, tmp_path_factory.mktemp("sharing") / "runs")


@pytest.fixture
def me(monkeypatch) -> None:
    monkeypatch.setattr(privacy, "names_of_this_machine", lambda: [USER, HOST])


# -- out --------------------------------------------------------------------------------------------------------------

FREE = ("error", "suite", "warnings.0", "scenario.args.root", "scenario.args.note", "scenario.class_path",
        "method.args.checkpoint", "method.class_path", "method.summary", "method.paper", "backbone.source",
        "backbone.args.weights", "config.scenario.init_args.root", "config.method.init_args.checkpoint",
        "config.method.init_args.nested.file", "config.method.class_path", "config.backbone.init_args.names.0",
        "environment.platform", "environment.device", "environment.packages.torch", "environment.ops_backend", "source.note",
        "cost.note", "experiences.0.note", "test_sets.0.note", "unheard.of.field")
PRIVATE = ("/{a}/{b}", "/home/{user}/{a}", "/Users/{a}x/{b} c", "C:\\{a}\\{b}", "\\\\{host}\\{a}", "file:///{a}/{b}",
           "sqlite:////home/{user}/{a}.db", "~{user}/{a}", "~/{a}", "local-dir:/{a}/{b}", "{user}", "{host}", "{User}",
           "{user}@{host}", "x_{user}_y")
AROUND = (("", ""), ("cannot read ", " any more"), ("in '", "' is gone"), ('File "', '", line 3'), ("root=", ", a=1"),
          ("(", ")"), ("a: ", "."))


def cases(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """(place, text): every kind of private text, each in some words and some field."""
    draw = random.Random(seed)
    words = ["w" + "".join(draw.choices(string.ascii_lowercase + string.digits, k=draw.randint(1, 6))) for _ in range(40)]
    for k in range(n):
        before, after = draw.choice(AROUND)
        text = PRIVATE[k % len(PRIVATE)].format(a=draw.choice(words), b=draw.choice(words), user=USER, host=HOST,
                                                User=USER.upper())
        yield draw.choice(FREE), before + text + after


def plant(record: dict[str, Any], place: str, text: str) -> None:
    """Put ``text`` at a dotted place of a record, which is made where missing."""
    here: Any = record
    *way, last = place.split(".")
    for step, following in zip(way, place.split(".")[1:], strict=True):
        key = int(step) if isinstance(here, list) else step
        inner = here[key] if isinstance(here, list) or key in here else None
        if following == "0":
            here[key] = inner if isinstance(inner, list) and inner else [{}]
        elif not isinstance(inner, dict):
            here[key] = {}
        here = here[key]
    here[int(last) if isinstance(here, list) else last] = text


def told(text: str) -> str | None:
    """Written apart from the code under test: what of a text names a place or a person."""
    found = re.search(rf"(?i)(?<![a-z0-9])({USER}|{HOST})(?![a-z0-9])|(?<![\w./<>~)\]])/\w|[A-Za-z]:\\|\\\\\w|~\w*/"
                      r"|(file|sqlite):/", text)
    return found.group() if found else None


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in strings(part)]
    if isinstance(value, list):
        return [s for part in value for s in strings(part)]
    return [value] if isinstance(value, str) else []


def test_no_free_text_tells_where_or_who(done: Path) -> None:
    whole = load(done).record
    for place, text in cases(600, 0):
        record = copy.deepcopy(whole)
        plant(record, place, text)
        if place in ("method.summary", "method.paper"):
            record["method"]["class_path"] = "theirs.Method"  # a class of cl-bench's own states public facts
        cleaned = privacy.clean(record, [USER, HOST])
        assert not [s for s in strings(cleaned) if told(s)], (place, text)
        kept = ("id", "fingerprint", "matrix", "metrics", "seed", *(() if place.startswith("test_sets") else ("test_sets",)))
        assert all(cleaned[k] == record[k] for k in kept), "what identifies the run and what it found is as it was"


def test_no_event_tells_where_or_who() -> None:
    for _, text in cases(200, 1):
        event = {"kind": "error", "t": 1.0, "message": text, "traceback": f"Traceback\n  {text}\n    raise\n"}
        cleaned = privacy.clean_event(event, [USER, HOST], {})
        assert not [s for s in strings(cleaned) if told(s)], text
        assert cleaned["kind"] == "error" and cleaned["t"] == 1.0


@pytest.mark.parametrize("place", ["scenario.name", "method.label", "matrix.rows.0", "fingerprint.fields.weights",
                                   "test_sets.0.name"])
def test_a_name_in_what_identifies_a_run_is_refused_and_may_be_allowed(place, done) -> None:
    record = copy.deepcopy(load(done).record)
    plant(record, place, f"birds of {USER}")
    with pytest.raises(UserError, match=f"tell '{USER}'.*--allow"):
        privacy.clean(record, [USER])
    assert privacy.clean(record, [])["id"] == record["id"]


def test_the_name_of_another_user_is_found_in_their_paths(done) -> None:
    record = load(done).record | {"error": "cannot read /home/bertram/x", "warnings": ["asked by bertram on monday"]}
    assert not [s for s in strings(privacy.clean(record, [])) if "bertram" in s]


def test_a_citation_of_our_own_keeps_its_authors(done) -> None:
    record = copy.deepcopy(load(done).record)
    record["method"]["paper"] = "Zhang et al. 2024"
    assert privacy.clean(record, ["zhang"])["method"]["paper"] == "Zhang et al. 2024"


def test_the_archive_itself_holds_nothing_private(done, tmp_path, me, capsys) -> None:
    def spoil(record: dict[str, Any], arrays: Any) -> None:
        record["suite"] = f"nightly of {USER}"
        record["config"]["method"]["init_args"]["weights_file"] = f"/home/{USER}/w.pt"
        record["config"]["method"]["class_path"] = f"/home/{USER}/code/mine.py:Mine"

    copied = edited(done, tmp_path / "runs", spoil)
    with open(copied / "events.jsonl", "a") as file:
        file.write(json.dumps({"kind": "error", "message": f"on {HOST}", "traceback": f'File "/home/{USER}/a b/c.py"'}) + "\n")
    assert main(["export", str(tmp_path / "runs"), "-o", str(tmp_path / "x.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if not name.endswith("npz")).decode()
        config = json.loads(archive.read(f"{done.name}/run.json"))["config"]["method"]
    assert USER not in text.lower() and HOST not in text.lower() and "/home" not in text
    assert config["class_path"] == f"{privacy.PLACE}mine.py:Mine" and config["init_args"]["weights_file"] == privacy.PLACE
    assert b"".join(zip_names(tmp_path / "x.zip")).find(USER.encode()) < 0


def zip_names(path: Path) -> list[bytes]:
    return [name.encode() for name in zipfile.ZipFile(path).namelist()]


def test_the_same_records_make_the_same_archive(done, tmp_path) -> None:
    one, two = (export([load(done)], tmp_path / name, []) for name in ("a.zip", "b.zip"))
    assert one.read_bytes() == two.read_bytes()


def test_what_goes_on_is_left_out_and_what_failed_is_not(tmp_path, capsys) -> None:
    records.write(tmp_path / "runs", "a", records.record(status="running"), done=False)
    failed = records.record(status="failed", error="boom in /tmp/here")
    failed["fingerprint"]["fields"] |= {"backbone": "tiny_vit"}
    from cl_bench.identity import protocol_id
    failed["fingerprint"]["id"] = protocol_id(failed["fingerprint"]["fields"])
    records.write(tmp_path / "runs", "b", failed, done=False)
    assert main(["export", str(tmp_path / "runs"), "-o", str(tmp_path / "x.zip")]) == 0
    assert "left out: a is running" in capsys.readouterr().err
    assert [f.name for f in import_archive(tmp_path / "x.zip", tmp_path / "in").folders] == ["b"]
    assert load(tmp_path / "in" / "b").record["error"] == "boom in <path>"


# -- in ---------------------------------------------------------------------------------------------------------------


def test_there_and_back_is_the_same_run(done, tmp_path, capsys) -> None:
    export([load(done)], tmp_path / "x.zip", [])
    first = import_archive(tmp_path / "x.zip", tmp_path / "in")
    back, was = load(first.folders[0]), load(done)
    assert back.record == was.record and back.status == "finished" and list(back.events()) == list(was.events())
    assert all(np.array_equal(back.arrays()[k], v) for k, v in was.arrays().items())
    again = import_archive(tmp_path / "x.zip", tmp_path / "in")
    assert (again.folders, again.known) == ([], [done.name]), "a duplicate is told and changes nothing"
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == [done.name]


def test_the_same_result_under_another_id_is_told(done, tmp_path) -> None:
    def renamed(record: dict[str, Any], arrays: Any) -> None:
        record["id"] = "another"

    folder = edited(done, tmp_path, renamed).rename(tmp_path / "another")
    export([load(done)], tmp_path / "x.zip", [])
    export([load(folder)], tmp_path / "y.zip", [])
    import_archive(tmp_path / "x.zip", tmp_path / "in")
    assert f"another repeats {done.name}" in import_archive(tmp_path / "y.zip", tmp_path / "in").notes[0]


def test_another_version_of_a_run_is_refused_whole(done, tmp_path) -> None:
    def later(record: dict[str, Any], arrays: Any) -> None:
        record["finished"] = "2099-01-01T00:00:00+00:00"

    export([load(done)], tmp_path / "x.zip", [])
    import_archive(tmp_path / "x.zip", tmp_path / "in")
    before = (tmp_path / "in" / done.name / "run.json").read_bytes()
    other = files_of(edited(done, tmp_path / "e", later))
    with pytest.raises(UserError, match="another version of it"):
        import_archive(zipped(tmp_path / "y.zip", other), tmp_path / "in")
    assert (tmp_path / "in" / done.name / "run.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "in").iterdir()] == [done.name]


HOSTILE = ["../evil/run.json", "/etc/evil", "x/../../evil", "run\\..\\evil", "good/extra.py", "good/sub/run.json", "C:/evil"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_a_runs_folder(name, done, tmp_path) -> None:
    (tmp_path / "deep" / "in").mkdir(parents=True)
    files = files_of(done)
    path = zipped(tmp_path / "x.zip", {**files, name: b"evil"}, {done.name: [f.partition("/")[2] for f in files]})
    with pytest.raises(UserError, match="refused"):
        import_archive(path, tmp_path / "deep" / "in")
    assert not list((tmp_path / "deep" / "in").iterdir()), "nothing half written"
    listed = zipped(tmp_path / "y.zip", {**files_of(done), name: b"evil"})
    with pytest.raises(UserError):
        import_archive(listed, tmp_path / "deep" / "in")
    assert {p.name for p in tmp_path.rglob("*")} == {"x.zip", "y.zip", "deep", "in"}


def test_a_link_in_an_archive_is_a_file_that_is_no_record(done, tmp_path) -> None:
    files = files_of(done)
    path = zipped(tmp_path / "x.zip", {k: v for k, v in files.items() if not k.endswith("events.jsonl")})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(f"{done.name}/events.jsonl")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError):
        import_archive(path, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_bomb_is_stopped_where_no_record_goes_on(done, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(archives.LARGEST, "events.jsonl", 1 << 20)
    path = zipped(tmp_path / "x.zip", {**files_of(done), f"{done.name}/events.jsonl": b"\n" * (8 << 20)})
    assert path.stat().st_size < 64 << 10
    with pytest.raises(UserError, match="unpacks to more than"):
        import_archive(path, tmp_path / "in")
    monkeypatch.setattr(archives, "LARGEST_WHOLE", 1 << 18)
    monkeypatch.setattr(archives, "LARGEST_RATIO", 1)
    small = zipped(tmp_path / "y.zip", {**files_of(done), f"{done.name}/events.jsonl": b"\n" * (1 << 20)})
    with pytest.raises(UserError, match="unpacks to more than"):
        import_archive(small, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_arrays_larger_than_their_data_or_with_objects_are_refused(done, tmp_path) -> None:
    head, held = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i4", "fortran_order": False, "shape": (1 << 40,)})
    np.savez(held, evil=np.array([{"a": 1}], dtype=object))
    found = [held.getvalue()]
    for member in (head.getvalue(), b"\x93NUMPY\x01\x00" + b"junk"):
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as inner:
            inner.writestr("huge.npy", member)
        found.append(buffer.getvalue())
    for data in found:
        path = zipped(tmp_path / "x.zip", {**files_of(done), f"{done.name}/arrays.npz": data})
        with pytest.raises(UserError, match=r"arrays\.npz"):
            import_archive(path, tmp_path / "in")


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"no zip", lambda b: b"",
                                   lambda b: b[:300] + b"\0" * 40 + b[340:]], ids=["cut", "text", "empty", "damaged"])
def test_a_damaged_archive_is_a_sentence(spoil, done, tmp_path, capsys) -> None:
    path = export([load(done)], tmp_path / "x.zip", [])
    path.write_bytes(spoil(path.read_bytes()))
    assert main(["import", str(path), "--runs", str(tmp_path / "in")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "in").exists()


def test_no_prefix_of_an_import_that_fails_stays(done, tmp_path, monkeypatch) -> None:
    def renamed(record: dict[str, Any], arrays: Any) -> None:
        record["id"] = "zzz"

    second = edited(done, tmp_path, renamed).rename(tmp_path / "zzz")
    export([load(done), load(second)], tmp_path / "x.zip", [])
    real, calls = archives.os.rename, []

    def fails_the_second_time(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(archives.os, "rename", fails_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        import_archive(tmp_path / "x.zip", tmp_path / "in")
    assert len(calls) == 2 and not (tmp_path / "in").exists()


# -- what contradicts itself ------------------------------------------------------------------------------------------


def _metric(record: dict[str, Any], arrays: Any) -> None:
    record["metrics"]["average_accuracy"] += 1


def _cell(record: dict[str, Any], arrays: Any) -> None:
    record["matrix"]["correct"][0][0] -= 1


def _prediction(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    key = next(k for k in arrays if not k.startswith("truth") and (arrays[k] != arrays[f"truth/{k.partition('/')[2]}"]).any())
    truth = arrays[f"truth/{key.partition('/')[2]}"]
    arrays[key] = truth.copy()


def _field(record: dict[str, Any], arrays: Any) -> None:
    record["fingerprint"]["fields"]["test_batch_size"] = 1


def _id(record: dict[str, Any], arrays: Any) -> None:
    record["fingerprint"]["id"] = "0" * 12


EDITS = [_metric, _cell, _prediction, _field, _id]


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__.strip("_"))
def test_an_edited_record_is_neither_taken_in_nor_given_out(edit, done, tmp_path) -> None:
    assert contradictions(load(done), load(done).arrays()) == []
    folder = edited(done, tmp_path / "e", edit)
    with pytest.raises(UserError, match="contradicts itself"):
        import_archive(zipped(tmp_path / "x.zip", files_of(folder)), tmp_path / "in")
    with pytest.raises(UserError, match="contradicts itself"):
        export([load(folder)], tmp_path / "y.zip", [])
    assert not (tmp_path / "in").exists() and not (tmp_path / "y.zip").exists()


def test_two_machines_with_the_same_data_elsewhere_share_a_table(tmp_path) -> None:
    from cl_toys import mnist_files

    for k, place in enumerate(("first machine", "other/disk")):
        (tmp_path / place).mkdir(parents=True)
        mnist_files(tmp_path / place)
        argv = ["--scenario", "split_mnist", "--scenario.root", str(tmp_path / place), "--method", "ncm", "--device", "cpu",
                "--seed", str(k), "--checkpoint", "false"]
        export([load(made(argv, tmp_path / f"runs{k}"))], tmp_path / f"{k}.zip", [])
        import_archive(tmp_path / f"{k}.zip", tmp_path / "all")
    runs = load_all(tmp_path / "all")
    (table,) = compare(runs).groups
    assert len(table.rows) == 1 and table.rows[0].n == 2
    assert {r.record["config"]["scenario"]["init_args"]["root"] for r in runs} == {privacy.PLACE}
