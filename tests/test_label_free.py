"""Label-free selection among runs: what streams record without labels, and what is chosen from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import records
import scipy.stats
import torch
from toys import Oracle, Stream, coded

from cl_bench import cli
from cl_bench.compare.comparison import Group, compare
from cl_bench.compare.selection import choices
from cl_bench.engine.compute import Compute
from cl_bench.engine.meter import Meter
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.label_free.scorers import SCORERS
from cl_bench.label_free.sums import UnlabelledSums
from cl_bench.numbers.stream_metrics import StreamEntry
from cl_bench.records.results import load_all
from cl_bench.types import LabelSpace, TestSet

ENTRIES = records.adapter_stream("tent", 0, visits=1).entries
LOGITS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("scale", [1.0, 9.0], ids=["Taylor", "softmax"])
def test_sums_give_the_scorers_of_whole_arrays(scale):
    """Entropies by scipy; MaNo as its authors' code has it: softmax or second-order Taylor softmax, then a matrix norm."""
    z = LOGITS * scale
    codes = np.arange(60) % 3
    sums = UnlabelledSums(60, 4, codes)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for rows in order.split(7):
        sums.add(rows, z[rows])
    for domain in range(3):
        own = z[torch.from_numpy(codes == domain)].double()
        p, recorded = own.softmax(1).numpy(), sums.of(domain)
        assert recorded is not None
        entropy, calibrated = scipy.stats.entropy(p, axis=1).mean(), -own.log_softmax(1).mean() <= 5
        assert SCORERS["prediction_entropy"](recorded) == pytest.approx(-entropy)
        assert SCORERS["information_maximisation"](recorded) == pytest.approx(scipy.stats.entropy(p.mean(0)) - entropy)
        taylor = (1 + own + own ** 2 / 2).numpy()
        normal = taylor / taylor.sum(1, keepdims=True) if calibrated else p
        assert SCORERS["mano"](recorded) == pytest.approx(np.linalg.norm(normal.ravel(), 4) / normal.size ** (1 / 4))
        assert calibrated == (scale == 1), "both branches of MaNo are asked"


def test_scores_of_answers_whose_value_is_known():
    """Sure and diverse; the same class always; uniform."""
    eye, same, uniform = 200 * torch.eye(4).repeat(5, 1), 200 * torch.eye(4)[[0] * 20], torch.zeros(20, 4)
    said = []
    for z in (eye, same, uniform):
        sums = UnlabelledSums(20, 4)
        sums.add(torch.arange(20), z)
        said.append({name: score(sums.of(0)) for name, score in SCORERS.items()})
    assert [x["prediction_entropy"] for x in said] == pytest.approx([0, 0, -math.log(4)])
    assert [x["information_maximisation"] for x in said] == pytest.approx([math.log(4), 0, 0], abs=1e-9)
    assert [x["mano"] for x in said] == pytest.approx([0.25 ** 0.25, 0.25 ** 0.25, 0.25])


def test_answers_that_are_not_finite_are_left_out():
    z = LOGITS.clone()
    z[3, 1], z[5, 0], z[7] = math.nan, math.inf, -math.inf
    z[9, 2] = -math.inf  # a class that cannot be: a finite answer
    sums, plain = UnlabelledSums(60, 4), UnlabelledSums(60, 4)
    sums.add(torch.arange(60), z)
    kept = torch.tensor([i for i in range(60) if i not in (3, 5, 7)])
    plain.add(kept, z[kept])
    assert sums.of(0) == plain.of(0) and all(math.isfinite(v) for v in sums.of(0).values())
    nothing = UnlabelledSums(2, 4)
    nothing.add(torch.arange(2), torch.full((2, 4), math.nan))
    assert nothing.of(0) is None


def test_a_stream_records_them_per_domain():
    test = TestSet("mixed", LabelSpace((0, 1, 2, 3)), coded(6), rows=(("fog", "snow"), np.array([0, 1, 0, 1, 0, 1])))
    entries, _ = stream_step(Oracle(LOGITS[:6]), test, test.space, Stream(), Compute(device="cpu"), Meter(), StreamState(), 0)
    for code, entry in enumerate(entries):
        p = LOGITS[:6][code::2].double().softmax(1).numpy()
        assert entry.unlabelled["entropy"] == pytest.approx(scipy.stats.entropy(p, axis=1).mean())
        assert StreamEntry.from_json(entry.to_json()).unlabelled == entry.unlabelled


def runs_of(folder: Path, settings: dict[str, tuple[float, float, float, float]], name: str = "tent", seeds: int = 2) -> None:
    """Runs of one method, label -> (entropy, marginal entropy, MaNo, error in percent)."""
    for k, (label, (entropy, marginal, mano, error)) in enumerate(settings.items()):
        said = {"entropy": entropy, "marginal_entropy": marginal, "mano": mano}
        for seed in range(seeds):
            write(folder, f"{name}-{k}-{seed}", name, seed, label, [
                replace(e, correct=round(e.total * (1 - error / 100)), unlabelled=said) for e in ENTRIES])


def write(folder: Path, run_id: str, name: str, seed: int, label: str, entries: list[StreamEntry]) -> None:
    stream = records.Stream(tuple(entries))
    records.write(folder, run_id, records.record("digits_c", name, seed, kind="stream", stream=stream, label=label,
                                                 metrics=records.metrics_of_stream(stream)))


def group_of(folder: Path) -> Group:
    return compare(load_all(folder)).groups[0]


def test_the_choice_and_its_gap(tmp_path):
    runs_of(tmp_path, {"tent(lr=1)": (0.5, 2.2, 0.6, 20), "tent(lr=2)": (0.4, 2.2, 0.5, 30), "tent(lr=3)": (0.6, 1.9, 0.4, 10)})
    runs_of(tmp_path, {"eata": (0.3, 2.3, 0.9, 16)}, name="eata")
    found = {(c.among, c.selection.scorer): c for c in choices(group_of(tmp_path))}
    assert set(found) == {(among, scorer) for among in ("tent", "all methods") for scorer in SCORERS}
    entropy, mano = found["tent", "prediction_entropy"], found["tent", "mano"]
    assert (entropy.candidates, entropy.selection.chosen, entropy.selection.oracle) == (3, "tent(lr=2)", "tent(lr=3)")
    assert entropy.selection.gap == pytest.approx(20, abs=0.3) and entropy.selection.spearman == pytest.approx(-1)
    assert mano.selection.chosen == "tent(lr=1)" and mano.selection.gap == pytest.approx(10, abs=0.3)
    assert found["all methods", "information_maximisation"].selection.chosen == "eata" and not entropy.gated


def test_a_collapsed_setting_is_refused_beside_the_source(tmp_path):
    runs_of(tmp_path, {"tent(lr=1)": (0.5, 2.2, 0.6, 20), "tent(lr=9)": (0.01, 0.02, 1.0, 90)})
    assert choices(group_of(tmp_path))[0].selection.chosen == "tent(lr=9)"  # flattered: nothing to refuse it by
    runs_of(tmp_path, {"source": (0.8, 2.2, 0.3, 40)}, name="source", seeds=1)
    found = choices(group_of(tmp_path))
    assert all(c.gated and c.selection.refused == ("tent(lr=9)",) and c.selection.chosen == "tent(lr=1)"
               for c in found if c.among == "tent")
    assert choices(group_of(tmp_path), source="tent(lr=9)")[0].selection.refused == ()


def test_records_without_scores_are_no_candidates(tmp_path, capsys):
    runs_of(tmp_path / "a", {"tent(lr=1)": (0.5, 2.2, 0.6, 20)})
    write(tmp_path / "a", "old", "eata", 0, "eata", [replace(e, unlabelled=None) for e in ENTRIES])
    assert choices(group_of(tmp_path / "a")) == []
    assert cli.main(["select", str(tmp_path / "a")]) == 2 and "run the suite again" in capsys.readouterr().err


def test_a_domain_without_a_finite_answer_is_never_chosen(tmp_path):
    runs_of(tmp_path, {"tent(lr=1)": (0.5, 2.2, 0.6, 20)})
    perfect = {"entropy": 0.0, "marginal_entropy": 2.3, "mano": 1.0}
    write(tmp_path, "x", "tent", 0, "tent(lr=8)", [replace(e, unlabelled=perfect if k != 3 else None)
                                                   for k, e in enumerate(ENTRIES)])
    assert {c.selection.chosen for c in choices(group_of(tmp_path))} == {"tent(lr=1)"}


def test_the_command_prints_choice_oracle_and_gap(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    runs_of(tmp_path, {"tent(lr=1)": (0.5, 2.2, 0.6, 20), "tent(lr=2)": (0.4, 2.2, 0.5, 30)})
    assert cli.main(["select", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    gap = choices(group_of(tmp_path))[0].selection.gap
    assert "prediction entropy" in out and "tent(lr=2)" in out and f"{gap:.2f}" in out and "not refused" in out
    assert cli.main(["select", str(tmp_path / "nowhere")]) == 2
