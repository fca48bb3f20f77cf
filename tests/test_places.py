"""No place of a machine reaches what travels: pages, exports, figures; names that users give; settings told in every row."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import records
from hypothesis import HealthCheck, given, settings

from cl_bench.command.cli import main
from cl_bench.compare import exports
from cl_bench.compare.comparison import compare
from cl_bench.compare.dashboard.page import html_of
from cl_bench.compare.dashboard.payload import payload
from cl_bench.compare.figure import draw, drawing
from cl_bench.compare.places import hide_places, hide_places_in_json
from cl_bench.compare.sheets import WRITERS
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.records.results import load_all


@pytest.mark.parametrize("text,short", [
    ("/home/alice/data", "…/data"), ("/home/alice/my data/x", "…/x"), ("~/sets/cifar", "…/cifar"), ("~bob/x", "…/x"),
    ("C:\\Users\\bob\\c10", "…/c10"), ("file:///srv/x.pt", "…/x.pt"), ("local-dir:/srv/weights", "local-dir:…/weights"),
    ("sqlite:////srv/runs/mlflow.db", "…/mlflow.db"), ("weights=/srv/w.pt, seed 1", "weights=…/w.pt, seed 1"),
    ("cannot read /srv/a/run-1/run.json (gone)", "cannot read …/run-1/run.json (gone)"),
    ("--scenario.root '/srv/d' --seed 1", "--scenario.root '…/d' --seed 1"), ("/mnt", "…/mnt"),
    ("--scenario./srv/key 1", "--scenario.…/key 1"),
    ("https://example.org/a/b", "https://example.org/a/b"), ("a/b and/or 1/2", "a/b and/or 1/2"),
    ("seed / order", "seed / order"),
    ("train/0", "train/0"), ("vit: a/b", "vit: a/b"), ("", ""), ("/", "/")])
def test_a_path_keeps_its_name_alone(text, short) -> None:
    assert hide_places(text) == short and hide_places(short) == short
    assert json.loads(hide_places_in_json(json.dumps({text: [text]}))) == {short: [short]}


name = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=3, max_size=8)
planted = st.builds(lambda root, parts: root + "SECRET" + "".join(f"/{p}" for p in parts),
                    st.sampled_from(("/", "/home/", "~/")), st.lists(name, min_size=1, max_size=3))


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted)
def test_paths_planted_everywhere_reach_no_page_table_or_figure(tmp_path_factory, path) -> None:
    where = tmp_path_factory.mktemp("planted")
    for method in ("codyra", "lora"):
        for seed in range(2):
            matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, 70 + seed]], rows=["a", "b"], columns=["a", "b"])
            given = records.record(method=method, seed=seed, matrix=matrix, args={"lr": 0.1, "root": path, "note": path},
                                   label=f"{method}(note={path})", family=path, warnings=[f"read {path}: slow"],
                                   fields={"data": path}, metrics=records.metrics_of_matrix(matrix))
            given["config"] = {"scenario": {"class_path": "x:Y", "init_args": {"root": path, path: 1}}, "method": method,
                               "seed": seed}
            given["environment"]["git"]["commit"] = path
            given["environment"]["host"] = f"disk at {path}"
            given["scenario"]["args"] = {"root": path}
            records.write(where, f"{method}-{seed}", given, [{"kind": "warning", "text": f"{path} is slow"}])
    (where / "broken").mkdir()
    (where / "broken" / "run.json").write_text("{")
    made = compare(load_all(where))
    texts = {"page": html_of(made, f"runs in {path}").split("<script>")[0], "caption": drawing(made, "forgetting").caption}
    texts |= {ending: writer(made) for ending, writer in WRITERS.items()}
    texts |= {kind: writer(made) for kind, writer in exports.TIDY.items()}
    for ending in (".svg", ".tex"):
        texts["figure" + ending] = draw(drawing(made, "forgetting"), where / f"f{ending}").read_text()
    found = {kind: text[at - 60:at + 60] for kind, text in texts.items() if (at := text.find("SECRET")) >= 0}
    assert not found and str(where) not in texts["page"]


# -- names of settings ------------------------------------------------------------------------------------------------


def _swept(folder, values) -> None:
    for label, lr, rank in values:
        part = {"class_path": "adapters:lora", "init_args": {"rank": rank}}
        for seed in range(2):
            records.write(folder, f"{label.partition(chr(40))[0]}-{lr}-{rank}-{seed}", records.record(
                "one", "tent", seed, label=label, args={"lr": lr, "adapter": part, "root": "/x/y", "epochs": 1}))


def test_a_parameter_in_which_rows_differ_is_shown_in_every_row(tmp_path, capsys) -> None:
    _swept(tmp_path, [("tent", 0.001, 4), ("tent(lr=0.1)", 0.1, 4), ("tent(adapter=lora(rank=8))", 0.001, 8)])
    made = compare(load_all(tmp_path))
    # an argument with one of its own changed is told as a whole by the record; the others get what they lack
    assert {row.method for row in made.groups[0].rows} == {
        "tent(lr=0.001, adapter.rank=4)", "tent(lr=0.1, adapter.rank=4)", "tent(adapter=lora(rank=8), lr=0.001)"}
    assert {m["name"] for m in payload(made, "t")["methods"]} == {row.method for row in made.groups[0].rows}
    for asked, rows in (("tent(lr=0.1, adapter.rank=4)", 1), ("tent(lr=0.1)", 1), ("tent", 3)):
        assert len(compare(exports.chosen(load_all(tmp_path), [asked])).groups[0].rows) == rows
    capsys.readouterr()
    assert main(["compare", str(tmp_path)]) == 0
    assert "adapter.rank=4" in capsys.readouterr().out.replace("\n", "")


def test_one_setting_keeps_its_short_name_and_a_given_label_is_kept(tmp_path) -> None:
    _swept(tmp_path, [("tent", 0.001, 4)])
    assert [row.method for row in compare(load_all(tmp_path)).groups[0].rows] == ["tent"]
    for lr in (0.1, 0.2):
        run = records.record("one", "tent", int(10 * lr), label="mine", args={"lr": lr})
        run["config"]["label"] = "mine"
        records.write(tmp_path, f"mine-{lr}", run)
    group = compare(load_all(tmp_path)).groups[0]
    assert {row.method for row in group.rows} == {"tent(lr=0.001)", "mine"}
    assert any("'mine' was given to 2 different settings" in note for note in group.notes)


@pytest.mark.parametrize("argv,said", [(["--label", ""], "label"), (["--label", "x" * 81], "1 to 80"),
                                       (["--label", "a\nb"], "1 to 80")])
def test_labels_that_are_none_are_refused(argv, said, capsys, tmp_path) -> None:
    assert main(["run", "--scenario", "digits_c", "--method", "source", "--runs", str(tmp_path), *argv]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_label_is_recorded_and_repeated_by_the_command() -> None:
    from cl_bench.command.config import named, parse

    config = parse(["--scenario", "digits_c", "--method", "source", "--label", "plain model"])
    assert config["label"] == "plain model" and named(config, "method")["label"] == "plain model"
    assert "label" not in parse(["--scenario", "digits_c", "--method", "source"]), "keys of runs without one stay"
    assert main(["suite", "quickstart", "--label", "x"]) == 2
