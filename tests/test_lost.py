"""Images that a run lost: which they are, and their pictures where the data are at hand and asked for."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import records
from PIL import Image

import cl_bench
from cl_bench.command.cli import main
from cl_bench.compare.lost import Lost, lost_images
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.records.results import load
from cl_bench.registry import find


def test_lost_images_are_right_at_first_and_wrong_at_the_end(tmp_path) -> None:
    names = ["a", "b", "c"]
    rates = [[100, np.nan, np.nan], [50, 100, np.nan], [50, 100, 100]]
    matrix = AccuracyMatrix.from_rates(rates, size=4, rows=names, columns=names)
    folder = records.write(tmp_path, "run", records.record(matrix=matrix))
    # row 0 stays, 1 is lost at b and at the end, 2 is lost at b and regained, 3 at c
    held = {"truth/a": [0, 0, 1, 1], "a/a": [0, 0, 1, 1], "b/a": [0, 2, 3, 1], "c/a": [0, 5, 1, 4], "truth/b": [2, 3],
            "b/b": [2, 9], "c/b": [2, 9], "truth/c": [4], "c/c": [5]}
    np.savez(folder / "arrays.npz", **{name: np.array(values) for name, values in held.items()})
    assert lost_images(load(folder)) == [Lost("a", 1, 0, 5, "b"), Lost("a", 3, 1, 4, "c")]
    assert len(lost_images(load(folder), most=1)) == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    cl_bench.run("split_digits", "finetune", runs=folder, scenario_args={"per_class": 8}, method_args={"epochs": 2},
                 device="cpu", threads=1, checkpoint=False)
    return folder


def _data(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_pictures_are_the_images_of_the_data_and_only_where_asked(runs, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", str(runs), "--html", str(page)]) == 0
    assert _data(page)["groups"][0]["lost"] == [] and "data:image/png" not in page.read_text().split("<script>")[0]
    assert main(["compare", str(runs), "--html", str(page), "--images"]) == 0
    (entry,) = _data(page)["groups"][0]["lost"]
    expected = lost_images(cl_bench.load(runs)[0])
    assert [(i["set"], i["truth"], i["said"]) for i in entry["images"]] == [(x.test_set, x.truth, x.said) for x in expected]
    assert len(expected) > 3
    tests = {t.name: t for t in find("cl_bench.scenarios", "split_digits")(per_class=8).test_sets()}
    for shown, lost in zip(entry["images"], expected, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2]))))
        x = np.asarray(tests[lost.test_set].data[lost.row][0])
        x = x / 255 if x.dtype == np.uint8 else x
        assert picture.shape == (48, 48, 3)
        step = 48 / x.shape[-1]
        at = [int((k + 0.5) * step) for k in range(x.shape[-1])]
        assert np.abs(picture[np.ix_(at, at)][:, :, 0] / 255 - x[0]).max() < 0.01


def test_other_data_or_no_page_are_told(runs, tmp_path, capsys) -> None:
    assert main(["compare", str(runs), "--images"]) == 2 and "--html" in capsys.readouterr().err
    folder = next(p for p in runs.iterdir() if (p / "run.json").exists())
    record = json.loads((folder / "run.json").read_text())
    record["config"]["scenario"]["init_args"]["increment"] = 5  # as if the data here were others
    copy = tmp_path / "runs" / folder.name
    copy.mkdir(parents=True)
    for name in ("events.jsonl", "arrays.npz", "DONE"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "run.json").write_text(json.dumps(record))
    assert main(["compare", str(tmp_path / "runs"), "--html", str(tmp_path / "p.html"), "--images"]) == 0
    assert "no pictures of split_digits" in capsys.readouterr().err and _data(tmp_path / "p.html")["groups"][0]["lost"] == []
