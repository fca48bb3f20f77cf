"""The pages of continual-learning suites: rows that do not beat fine-tuning are told, numbers follow from the records."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from records import write_adapter, write_learner

from cl_bench.compare.comparison import compare
from cl_bench.records.results import load_all

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "tables_cl.py"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="benchmarks are part of a checkout only")


def script():
    spec = importlib.util.spec_from_file_location("tables_cl", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gaps_are_paired_by_seed_and_a_row_behind_fine_tuning_is_named(tmp_path: Path) -> None:
    for seed in range(2):
        for method in ("finetune", "joint", "lora"):
            write_learner(tmp_path, method, seed)
    (group,) = compare(load_all(tmp_path)).groups
    rows = {r.method: r.values["average_accuracy"] for r in group.rows}
    text = script().above(group)
    gaps = [rows["joint"][k] - rows["finetune"][k] for k in rows["joint"]]
    assert f"| joint | {sum(gaps) / 2:+.2f} ({min(gaps):+.2f}) |" in text
    assert "Every method is above every fine-tuning row." in text
    for key in rows["lora"]:
        rows["lora"][key] = rows["finetune"][key] - 1
    assert "Not above all fine-tuning rows: lora." in script().above(group)


def test_a_line_holds_what_the_numbers_follow_from(tmp_path: Path) -> None:
    write_learner(tmp_path, "lora", 3, order=5)
    (run,) = load_all(tmp_path)
    line = json.loads(json.dumps(script().line_of(run)))
    assert (line["seed"], line["order"], line["fingerprint"]) == (3, 5, run.fingerprint)
    assert line["matrix"]["correct"] == run.record["matrix"]["correct"] and line["packages"]["torch"]


def test_unfinished_runs_make_no_page(tmp_path: Path) -> None:
    write_learner(tmp_path, "lora", 0, status="running")
    with pytest.raises(SystemExit, match="did not finish"):
        script().page("nothing", {"cl_digits": tmp_path})


def test_a_stream_has_its_error_by_domain_and_learning_has_none(tmp_path: Path) -> None:
    for seed in range(2):
        write_adapter(tmp_path / "stream", "tent", seed)
        write_learner(tmp_path / "learn", "lora", seed)
    (group,) = compare(load_all(tmp_path / "stream")).groups
    fog = [e for run in group.rows[0].runs.values() for e in run.stream.entries if e.domain == "fog"]
    mean = sum(100 - 100 * e.correct / e.total for e in fog) / len(fog)
    head, _, row = script().domains(group).splitlines()[2:5]
    assert row.split("|")[1 + head.split("|").index(" fog ") - 1].strip() == f"{mean:.1f}"
    assert script().domains(compare(load_all(tmp_path / "learn")).groups[0]) == ""


def test_a_suite_without_a_folder_keeps_its_section_and_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "configs" / "suite").mkdir(parents=True)
    for suite in ("one", "two", "three"):
        (tmp_path / "configs" / "suite" / f"{suite}.yaml").write_text(f"# About {suite}.\nname: {suite}\n")
        write_learner(tmp_path / suite, "lora", 0, suite=suite)
    both = {"one": tmp_path / "one", "two": tmp_path / "two"}
    module.page("pair", both)
    page, lines = (tmp_path / "results" / "continual" / f"pair.{kind}" for kind in ("md", "jsonl"))
    before = page.read_text(), lines.read_text()
    module.page("pair", {**both, "one": None})
    assert (page.read_text(), lines.read_text()) == before
    write_learner(tmp_path / "two", "lora", 1, suite="two")
    module.page("pair", {**both, "one": None})
    old, new = (text.split("## two")[0] for text in (before[0], page.read_text()))
    assert old == new and "| **lora** | 2 |" in page.read_text()
    assert [json.loads(row)["suite"] for row in lines.read_text().splitlines()] == ["one", "two", "two"]
    with pytest.raises(SystemExit, match="has no section of three"):
        module.page("pair", {**both, "three": None})


def test_a_page_says_on_which_card_and_in_which_precision(tmp_path: Path) -> None:
    from records import record

    write_learner(tmp_path, "lora", 0)
    module = script()
    assert ", on a shared machine, CPU, 2 thread each; " in module.made_on(load_all(tmp_path))
    plain = record()
    card = {**plain["environment"], "device": "cuda", "card": "NVIDIA H100 80GB HBM3", "git": {"commit": None, "dirty": None},
            "code_digest": "0123abcd"}
    write_learner(tmp_path / "gpu", "lora", 0, environment=card,
                  config={**plain["config"], "compute": {"precision": "bf16-mixed"}})
    told = module.made_on(load_all(tmp_path / "gpu"))
    assert ", on NVIDIA H100 80GB HBM3, bf16-mixed, 2 thread each; " in told and told.endswith("; no checkout, code 0123abcd.")
