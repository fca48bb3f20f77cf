"""The pages of vision-language suites: numbers follow from the records, and what CoDyRA keeps is said from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import records
import scripts
import torch

from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.records.results import load_all

pytestmark = scripts.needs_checkout


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a root of its own to write below."""
    module = scripts.script("tables_vlm")
    (tmp_path / "configs" / "suite").mkdir(parents=True)
    for suite in ("vlm_glyphs", "tta_vlm"):
        (tmp_path / "configs" / "suite" / f"{suite}.yaml").write_text(f"# About {suite}.\nname: {suite}\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def page(script: ModuleType, suite: str, folder: Path) -> tuple[str, list[dict[str, object]]]:
    script.write(suite, folder)
    where = script.ROOT / "results" / "vision_language"
    lines = [json.loads(line) for line in (where / f"{suite}.jsonl").read_text().splitlines()]
    return (where / f"{suite}.md").read_text(), lines


def test_a_stream_is_a_row_of_errors_by_domain_best_first(script: ModuleType, tmp_path: Path) -> None:
    for method in ("source", "tent"):
        records.write_adapter(tmp_path / "runs", method, 0)
    text, lines = page(script, "tta_vlm", tmp_path / "runs")
    runs = sorted(load_all(tmp_path / "runs"), key=lambda r: r.metrics["mean_error"])
    assert [line["method"] for line in lines] == [r.method for r in runs]
    for run, line in zip(runs, lines, strict=True):
        entry = run.record["stream"][3]
        assert line["by_domain"][entry["name"]] == pytest.approx(100 * (1 - entry["correct"] / entry["total"]))
        assert f"| {run.method} | {run.metrics['mean_error']:.1f} |" in text
    assert "About tta_vlm." in text and f"one stream of {30 * 450} images" in text


def learned(folder: Path, method: str, seed: int, future: int, args: str = "lr=0.1") -> None:
    """A run over two domains of 100 images: 60 right of the second before it is learned, then ``future``."""
    matrix = AccuracyMatrix(("before learning", "a", "b"), ("a", "b"), np.array([[50, 60], [80, future], [70, 90]]),
                            np.full((3, 2), 100), (1, 2), before=True)
    run = records.record("vlm_glyphs", method, seed, label=f"{method}({args})", matrix=matrix,
                         metrics=records.metrics_of_matrix(matrix))
    records.write(folder, f"{method}-{len(args)}-{seed}", run)


def test_what_codyra_keeps_is_said_order_by_order(script: ModuleType, tmp_path: Path) -> None:
    for seed, (codyra, lora, full) in enumerate(((61, 58, 57), (58, 60, 50))):
        for method, future in (("codyra_clip", codyra), ("clip_lora", lora), ("clip_finetune", full)):
            learned(tmp_path / "runs", method, seed, future)
        learned(tmp_path / "runs", "codyra_clip", seed, 55, "lr=0.1, kappa_max=0.0")
    text, lines = page(script, "vlm_glyphs", tmp_path / "runs")
    assert len(lines) == 8 and "| codyra_clip(lr=0.1) | 2 | 59.5 |" in text and "| +1.0, -2.0 |" in text
    assert "+0.50 points of zero-shot accuracy against clip_lora, mean over 2 orders (+3.00, -2.00): more in 1 of 2." in text
    assert "+6.00 points of zero-shot accuracy against clip_finetune" in text
    assert "its own change is -0.50 points: it loses some of its zero-shot accuracy." in text
    assert "Closing gates is worth +4.50 points of it, mean over 2 orders (+6.00, +3.00)" in text


def test_each_scenario_has_a_section_and_what_nothing_teaches_a_column(script: ModuleType, tmp_path: Path) -> None:
    for seed, last in enumerate((40, 50)):
        matrix = AccuracyMatrix(("before learning", "a"), ("a", "held"), np.array([[50, 60], [80, last]]), np.full((2, 2), 100),
                                (1, None), before=True)
        for answers in ("task", "all"):
            run = records.record("vlm_real", "rail", seed, label="rail", matrix=matrix, fields={"answers": answers},
                                 metrics=records.metrics_of_matrix(matrix))
            records.write(tmp_path / "runs", f"rail-{answers}-{seed}", run)
    (script.ROOT / "configs" / "suite" / "vlm_real.yaml").write_text("# About it.\nname: vlm_real\n")
    text = script.write("vlm_real", tmp_path / "runs", "real")
    assert (script.ROOT / "results" / "vision_language" / "real.md").read_text() == text
    assert "## vlm_real, each set among its own classes" in text and text.count("| held out, change |") == 2
    (line, _) = [row for row in text.splitlines() if row.startswith("| rail ")]
    assert "| -15.0 |" in line, "the mean of 40 - 60 and 50 - 60"
    assert "python benchmarks/tables_vlm.py vlm_real runs/vlm_real real" in text


def test_a_run_that_was_asked_in_both_spaces_has_a_row_in_both_sections(script: ModuleType, tmp_path: Path) -> None:
    names = ("a", "b", "held", "a, of all", "b, of all")
    matrix = AccuracyMatrix(("before learning", "a", "b"), names, np.array([[50, 40, 60, 20, 10], [80, 44, 60, 70, 13],
                            [74, 90, 54, 60, 80]]), np.full((3, 5), 100), (1, 2, None, 1, 2), before=True)  # fmt: skip
    run = records.record("image_sets", "rail", 3, label="rail", matrix=matrix, metrics=records.metrics_of_matrix(matrix),
                         fields={"answers": "task", "scenario.joint": True, "compute.precision": "bf16-mixed"})
    run["environment"] |= {"device": "cuda:0", "card": "Some GPU"}
    records.write(tmp_path / "runs", "rail-3", run)
    (script.ROOT / "configs" / "suite" / "vlm_real.yaml").write_text("# About it.\nname: vlm_real\n")
    own, joint = (part.splitlines() for part in script.write("vlm_real", tmp_path / "runs", "real").split("## ")[1:])
    assert own[0] == "image_sets, each set among its own classes"
    assert joint[0] == "image_sets, among the classes of all sets that are taught"
    for part, cells in ((own, "44.0 | 67.0 | 72.7 | 50.0 | 0.5 | 6.0 | -6.0 | +0.5"),
                        (joint, "13.0 | 56.2 | 64.7 | 30.0 | 0.0 | 10.0 | -6.0 | +0.0")):
        (row,) = [line for line in part if line.startswith("| rail ")]
        assert row.startswith(f"| rail | 1 | {cells} |")
        said = "\n".join(part)
        assert "seconds by the clock, the GPU being shared, of its quickest run. Computed on Some GPU in bf16-mixed." in said
    lines = [json.loads(x) for x in (script.ROOT / "results" / "vision_language" / "real.jsonl").read_text().splitlines()]
    assert [line["matrix"]["columns"] for line in lines] == [["a", "b", "held"], ["held", "a", "b"]]


def test_runs_of_an_earlier_page_stay_beside_new_ones_and_versions_of_code_are_told(script: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        learned(tmp_path / "old", "rail", seed, 57)
        learned(tmp_path / "old", "coop", seed, 61)
    first, before = page(script, "vlm_glyphs", tmp_path / "old")
    learned(tmp_path / "new", "rail", 1, 50)
    record = tmp_path / "new" / "rail-6-1" / "run.json"
    run = json.loads(record.read_text())
    run["method"]["source_digest"] = "f" * 64
    record.write_text(json.dumps(run))
    text = script.write("vlm_glyphs", tmp_path / "new", keep=True)
    where = script.ROOT / "results" / "vision_language"
    lines = [json.loads(line) for line in (where / "vlm_glyphs.jsonl").read_text().splitlines()]
    assert [line for line in lines if (line["method"], line["seed"]) != ("rail(lr=0.1)", 1)] == [
        line for line in before if (line["method"], line["seed"]) != ("rail(lr=0.1)", 1)]  # fmt: skip
    assert "| coop(lr=0.1) | 2 | 61.0 |" in text and "| rail(lr=0.1) | 2 | 53.5 |" in text, "50 in the place of seed 1's 57"
    assert "Versions of the code of rail by seed:" in text and "; ffffffffffff: 1." in text and "code of coop" not in text
    assert "Versions" not in first and "vlm_glyphs runs/vlm_glyphs --keep" in text


def test_a_stream_of_an_earlier_page_keeps_its_row(script: ModuleType, tmp_path: Path) -> None:
    for method in ("source", "tent"):
        records.write_adapter(tmp_path / method, method, 0)
    text, _ = page(script, "tta_vlm", tmp_path / "tent")
    (tent,) = [line for line in text.splitlines() if line.startswith("| tent ")]
    both = script.write("tta_vlm", tmp_path / "source", keep=True).splitlines()
    assert [line for line in both if line.startswith("| tent ")] == [tent]


def test_memory_is_what_was_alive_at_once() -> None:
    def twice() -> None:
        for _ in range(2):
            held = [torch.zeros(2**16), torch.zeros(2**16)]  # 256 KiB each; the first two are gone before the others come
            del held

    assert 2**19 <= scripts.script("steering_cost").peak(twice) < 2**19 + 2**14
