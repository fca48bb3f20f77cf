"""Verifying: what agrees passes however the machine differs, and no edited number does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cl_toys import mnist_files
from sharing_toys import LEARN, STREAM, edited, files_of, made, recounted, zipped
from test_sharing import EDITS

from cl_bench.command.cli import main
from cl_bench.command.verification import filled
from cl_bench.errors import UserError
from cl_bench.records.archive import export
from cl_bench.records.audit import contradictions
from cl_bench.records.privacy import PLACE
from cl_bench.records.results import load


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return made([*LEARN, "--threads", "1"], tmp_path_factory.mktemp("verify") / "runs")


def flipped(record: dict[str, Any], arrays: dict[str, np.ndarray], most: int = 10_000) -> None:
    """Up to ``most`` wrong answers of the last row made right, in predictions, counts and metrics alike."""
    last = record["matrix"]["rows"][-1]
    for column in record["matrix"]["columns"]:
        answers, truth = arrays[f"{last}/{column}"].copy(), arrays[f"truth/{column}"]
        wrong = np.flatnonzero(answers != truth)[:most]
        answers[wrong], most = truth[wrong], most - len(wrong)
        arrays[f"{last}/{column}"] = answers
    recounted(record, arrays)


def elsewhere(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    record["environment"]["processor"] = "Another Processor 9000"


def test_a_record_of_another_thread_count_passes(tmp_path, capsys) -> None:
    two = made([*LEARN, "--threads", "2"], tmp_path / "runs")
    assert load(two).record["environment"]["threads"] == 2
    assert main(["verify", str(two), "--threads", "1", "--seeds", "2"]) == 0
    assert "every answer" in capsys.readouterr().out or "spread" in capsys.readouterr().out


def test_a_stream_passes_in_every_bit(tmp_path, capsys) -> None:
    folder = made(STREAM, tmp_path / "runs")
    assert main(["verify", str(folder)]) == 0
    assert f"{folder.name}: every answer and every metric is the same" in capsys.readouterr().out

    def kinder(record: dict[str, Any], arrays: Any) -> None:
        record["stream"][0]["correct"] += 1

    assert main(["verify", str(edited(folder, tmp_path / "e", kinder))]) == 1
    assert "its predictions give" in capsys.readouterr().out


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__.strip("_"))
def test_an_edited_number_fails(edit, done, tmp_path, capsys) -> None:
    assert main(["verify", str(edited(done, tmp_path, edit)), "--runs", str(tmp_path / "again")]) == 1
    assert "does not agree" in capsys.readouterr().out
    assert not (tmp_path / "again").exists(), "what contradicts itself is not run"


def test_a_careful_edit_fails_where_bits_must_agree(done, tmp_path, capsys) -> None:
    folder = edited(done, tmp_path, lambda record, arrays: flipped(record, arrays, 1))
    assert contradictions(load(folder), load(folder).arrays()) == [], "everything in it fits together"
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "does not agree" in out and "average_accuracy is" in out


def test_on_another_processor_the_spread_over_seeds_decides(done, tmp_path, capsys) -> None:
    def little(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        elsewhere(record, arrays)
        flipped(record, arrays, 1)

    def much(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        elsewhere(record, arrays)
        flipped(record, arrays)

    assert main(["verify", str(edited(done, tmp_path / "a", elsewhere)), "--seeds", "0"]) == 0
    assert "every answer" in capsys.readouterr().out
    assert main(["verify", str(edited(done, tmp_path / "b", little)), "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "within the spread over seeds" in out and "processor" in out
    assert main(["verify", str(edited(done, tmp_path / "c", much)), "--seeds", "2"]) == 1
    assert "over 3 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "key", "value"), [("method", "label", "far_better"), ("scenario", "name", "split_imagenet"),
                                                    ("backbone", "name", "vit_large")])
def test_a_name_that_the_config_does_not_make_fails(part, key, value, done, tmp_path) -> None:
    from cl_bench.identity import protocol_id

    def renamed(record: dict[str, Any], arrays: Any) -> None:
        record[part][key] = value
        if key == "name":
            record["fingerprint"]["fields"][part] = value
            record["fingerprint"]["id"] = protocol_id(record["fingerprint"]["fields"])

    folder = edited(done, tmp_path, renamed)
    assert contradictions(load(folder), load(folder).arrays()) == []
    assert main(["verify", str(folder)]) == 1


def test_a_record_without_predictions_is_not_verified(done, tmp_path, capsys) -> None:
    def bare(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays.clear()

    assert main(["verify", str(edited(done, tmp_path, bare))]) == 1
    assert "no predictions" in capsys.readouterr().out


def test_an_archive_is_verified_where_its_places_are_given_and_the_report_is_bound_to_it(tmp_path, capsys) -> None:
    (tmp_path / "here").mkdir()
    mnist_files(tmp_path / "here")
    folder = made(["--scenario", "split_mnist", "--scenario.root", str(tmp_path / "here"), "--method", "ncm", "--device", "cpu",
                   "--checkpoint", "false"], tmp_path / "runs")
    path = export([load(folder)], tmp_path / "x.zip", [])
    (tmp_path / "here").rename(tmp_path / "there")
    assert main(["verify", str(path)]) == 2
    assert "does not tell where scenario.root lies; give --scenario.root PLACE" in capsys.readouterr().err
    given = ["--scenario.root", str(tmp_path / "there"), "--report", str(tmp_path / "reports")]
    assert main(["verify", str(path), *given]) == 0
    (report,) = (tmp_path / "reports").iterdir()
    told = json.loads(report.read_text())
    assert (told["run"], told["level"], told["agrees"]) == (folder.name, "bits", True)
    assert str(tmp_path) not in report.read_text()
    (tmp_path / "other").mkdir()
    mnist_files(tmp_path / "other", seed=1)
    assert main(["verify", str(path), "--scenario.root", str(tmp_path / "other")]) == 1
    assert "the protocol's scenario.data is" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--method.lr", "0.5"], ["--seed", "4"], ["--precision", "64-true"],
                                   ["--scenario", "split_mnist"]])
def test_no_option_makes_another_run_of_it(words, done) -> None:
    with pytest.raises(UserError, match="would change it"):
        filled(load(done).record["config"], words, foreign=False)


def test_an_archive_names_neither_places_nor_code_of_this_machine(done, tmp_path) -> None:
    def reading(record: dict[str, Any], arrays: Any) -> None:
        record["config"]["scenario"]["init_args"]["root"] = "/etc"

    def coding(record: dict[str, Any], arrays: Any) -> None:
        record["config"]["method"]["class_path"] = "this.Method"

    def hidden(record: dict[str, Any], arrays: Any) -> None:
        record["config"]["method"]["class_path"] = f"{PLACE}mine.py:Mine"

    for change, said in ((reading, "scenario.root"), (coding, "registered by nothing"), (hidden, "give --method FILE.py")):
        path = zipped(tmp_path / "x.zip", files_of(edited(done, tmp_path / change.__name__, change)))
        with pytest.raises(UserError, match=said):
            main_raises(["verify", str(path)])


def main_raises(argv: list[str]) -> None:
    main([*argv, "--debug"])
