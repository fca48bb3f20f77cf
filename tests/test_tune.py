"""Searching settings: never on test labels, within the budget, and told in every record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cl_bench.command.cli import main
from cl_bench.command.config import parse
from cl_bench.command.search_space import Axis, read_space
from cl_bench.command.tuning import HIDDEN, Search, search
from cl_bench.data.labels import labels_of
from cl_bench.engine.held_out import Blind, HeldOut
from cl_bench.errors import UserError
from cl_bench.records.results import load_all
from cl_bench.registry import find

pytest.importorskip("optuna", reason="the extra `tune` is not installed")
LEARN = ["--scenario", "split_digits", "--scenario.per_class", "5", "--scenario.increment", "5", "--method", "finetune",
         "--method.epochs", "1", "--device", "cpu"]
STREAM = ["--scenario", "digits_c", "--scenario.corruptions", "[fog, contrast]", "--method", "tent", "--source.epochs", "1",
          "--device", "cpu"]


def planned(argv: list[str], space: list[str], trials: int = 3, score: Any = None, **more: Any) -> Search:
    learns = argv[1] == "split_digits"
    name = "average_accuracy" if learns else "mano"
    return Search("s", parse(argv), read_space(space), trials, name, score or (lambda view: view[name]), learns, **more)


def data(scenario: str, **args: Any) -> Any:
    return find("cl_bench.scenarios", scenario)(**args)


# -- what a trial holds -----------------------------------------------------------------------------------------------


def test_held_out_parts_are_training_images_of_the_first_experiences() -> None:
    whole = data("split_digits", per_class=10)
    part = HeldOut(whole, first=2, share=0.2)
    assert [e.name for e in part.experiences()] == [e.name for e in whole.experiences()[:2]] and list(part.stream()) == []
    for before, exp, test in zip(whole.experiences(), part.experiences(), part.test_sets(), strict=False):
        images = {x.numpy().tobytes() for x in before.data.x}
        kept, asked = ({x.numpy().tobytes() for x in d.data.x} for d in (exp, test))
        assert kept | asked == images and not kept & asked
        counts = torch.bincount(labels_of(test.data))
        assert set(counts[counts > 0].tolist()) == {2}, "a fifth of ten images of each class"
        tests = {x.numpy().tobytes() for t in whole.test_sets() for x in t.data.x}
        assert not (kept | asked) & tests
        assert test.of == exp.name


def test_a_blind_stream_has_the_images_and_no_label() -> None:
    whole = data("digits_c", corruptions=["fog"])
    for before, after in zip(whole.stream(), Blind(whole).stream(), strict=True):
        assert torch.equal(before.data.x, after.data.x)
        assert labels_of(after.data).unique().tolist() == [before.space.ids[0]]
    assert list(Blind(whole).test_sets()) == []
    with pytest.raises(UserError, match="only a test stream"):
        Blind(data("split_digits")).experiences()


@pytest.mark.parametrize(("argv", "space"), [(LEARN, ["method.lr=1e-4..1e-1:log"]), (STREAM, ["method.lr=1e-4..1e-2:log"])])
def test_no_trial_knows_a_test_label(argv, space, tmp_path, monkeypatch) -> None:
    """A hostile objective sees plain numbers, and neither they nor anything the trials left change with the test labels."""
    seen: list[dict[str, float]] = []

    def hostile(view: Any) -> float:
        assert type(view) is dict and all(type(v) in (float, int) for v in view.values())
        assert not {"mean_error", "pooled_error", "error", "source_error_before"} & set(view)
        seen.append(view)
        return float(sum(view.values()))

    search(planned(argv, space, trials=2, score=hostile), tmp_path / "a")
    honest, seen[:] = list(seen), []
    scenario = find("cl_bench.scenarios", argv[1])
    for name in ("test_sets", "stream"):
        real = getattr(scenario, name)

        def poisoned(self: Any, real: Any = real) -> Any:
            from dataclasses import replace

            from cl_bench import TensorData

            flip = {a: b for t in real(self) for a, b in zip(t.space.ids, reversed(t.space.ids), strict=True)}
            return [replace(t, data=TensorData(t.data.x, torch.tensor([flip[int(y)] for y in t.data.y]))) for t in real(self)]

        monkeypatch.setattr(scenario, name, poisoned)
    search(planned(argv, space, trials=2, score=hostile), tmp_path / "b")
    assert seen == honest, "test labels reach a score"
    trials = load_all(tmp_path / "a" / HIDDEN / "s" / "trials")
    assert len(trials) >= 2
    for trial in trials:
        truths = {k: v for k, v in trial.arrays().items() if k.startswith("truth/")}
        assert truths and (argv is LEARN or all(len(np.unique(v)) == 1 for v in truths.values()))


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_search_is_in_every_record_and_its_final_seeds_are_fresh(tmp_path, capsys) -> None:
    argv = ["tune", *LEARN, "--search", "method.lr=1e-4..1e-1:log", "--search", "method.batch_size=8,16", "--trials", "3",
            "--final-seeds", "2", "--runs", str(tmp_path), "--tracking", "none", "--seed", "4", "--name", "mine"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "[3/3]" in out and "3 configurations tried" in out and "chosen among 3 configurations tried" in " ".join(out.split())
    runs = load_all(tmp_path)
    assert [r.seed for r in runs] == [5, 6], "no final run has the trials' seed, and no trial is among the records"
    told = runs[0].record["tuning"]
    assert (told["budget"], told["tried"], len(told["trials"])) == (3, 3, 3)
    assert told["space"] == {"method.lr": {"from": 1e-4, "to": 1e-1, "log": True}, "method.batch_size": {"values": [8, 16]}}
    best = max((t for t in told["trials"] if t["value"] is not None), key=lambda t: t["value"])
    assert told["chosen"] == best["settings"]
    args = runs[0].record["config"]["method"]["init_args"]
    assert {f"method.{k}": args[k] for k in ("lr", "batch_size")} == best["settings"]
    assert "chosen among 3 configurations" in (tmp_path / "mine.html").read_text()
    page = (tmp_path / "mine-trials.html").read_text()
    assert "3 configurations tried of a budget of 3" in page and "seeds 5, 6; the trials had seed 4" in page
    assert page.count("<td>complete") + page.count("<td>pruned") + page.count("<td>chosen") == 3
    before = {r.id for r in runs}
    assert main(argv) == 0, "called again, there is nothing to do"
    assert {r.id for r in load_all(tmp_path)} == before


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path, monkeypatch) -> None:
    space = ["method.lr=1e-4..1e-1:log"]
    whole = search(planned(LEARN, space, trials=3), tmp_path / "whole")
    calls = []

    def stops(row: Any) -> None:
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(planned(LEARN, space, trials=3), tmp_path / "cut", stops)
    cut = search(planned(LEARN, space, trials=3), tmp_path / "cut")
    assert [(r["settings"], r["value"]) for r in cut.rows] == [(r["settings"], r["value"]) for r in whole.rows]
    assert cut.best == whole.best and cut.tried == 3


def test_a_trial_that_was_killed_is_tried_again(tmp_path) -> None:
    import optuna

    def killed(view: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(planned(LEARN, ["method.lr=1e-4..1e-1:log"], trials=1, score=killed), tmp_path)
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / HIDDEN / 's' / 'study.db'}")
    assert study.n_trials == 1
    again = search(planned(LEARN, ["method.lr=1e-4..1e-1:log"], trials=1), tmp_path)
    assert again.tried == 1 and again.rows[0]["state"] == "complete", "the one that was killed costs none of the budget"


def test_another_search_of_the_same_name_is_refused(tmp_path) -> None:
    search(planned(LEARN, ["method.lr=0.01,0.02"], trials=1), tmp_path)
    with pytest.raises(UserError, match="another search is called s"):
        search(planned(LEARN, ["method.lr=0.01,0.03"], trials=1), tmp_path)


MINE = '''
from cl_bench import Method

class Mine(Method):
    """Learns."""

    def __init__(self, backbone, *, lr: float = 0.1):
        super().__init__(backbone, lr=lr, epochs=1)
'''


def test_a_search_whose_method_was_edited_is_another(tmp_path) -> None:
    """Trials of the old code say nothing of the new one, and are not counted among its trials."""
    file = tmp_path / "mine_tuned.py"
    argv = [*LEARN[:6], "--method", f"{file}:Mine", "--device", "cpu"]
    for code, same in ((MINE, True), (MINE, True), (MINE.replace("epochs=1", "epochs=2"), False), (MINE, True)):
        file.write_text(code)
        wanted = planned(argv, ["method.lr=0.01,0.02"], trials=1)
        if same:
            search(wanted, tmp_path / "runs")
        else:
            with pytest.raises(UserError, match="another search is called s: its options, code or data differ"):
                search(wanted, tmp_path / "runs")


def test_a_trial_that_fails_is_told_and_the_others_go_on(tmp_path) -> None:
    scores = iter([float("nan"), 1.0, RuntimeError("boom")])

    def score(view: Any) -> float:
        value = next(scores)
        if isinstance(value, Exception):
            raise value
        return value

    found = search(planned(LEARN, ["method.batch_size=8,16,32"], trials=3, score=score), tmp_path)
    assert [r["state"] for r in found.rows] == ["fail", "complete", "fail"]
    assert "not finite" in found.rows[0]["why"] and "boom" in found.rows[2]["why"]


def test_a_trial_behind_the_others_is_pruned(tmp_path, monkeypatch) -> None:
    from cl_bench.command import tuning

    monkeypatch.setattr(tuning, "STARTUP", 1)
    found = search(planned(LEARN, ["method.lr=0.03,0.02,1e-9"], trials=4), tmp_path)
    for row in found.rows:
        assert row["state"] == "complete" or (row["state"] == "pruned" and "worse so far" in row["why"])


@pytest.mark.parametrize(("words", "said"), [
    ([], "say what to search"), (["lr=1,2"], "only options of the method"), (["method.lr"], "must name an option"),
    (["method.lr=2..1"], "smaller to the larger"), (["method.lr=0..1:log"], "from above 0"), (["method.lr=1,1"], "each once"),
    (["method.lr=1,2", "method.lr=3,4"], "stands twice"),
])
def test_a_space_that_is_none_is_a_sentence(words, said) -> None:
    with pytest.raises(UserError, match=said):
        read_space(words)


def test_axes() -> None:
    a, b, c = read_space(["method.rank=4,8", "method.epochs=1..5", "method.lr=1e-4..0.1:log"])
    assert (a, b, c) == (Axis("method.rank", (4, 8)), Axis("method.epochs", low=1, high=5, whole=True),
                         Axis("method.lr", low=1e-4, high=0.1, log=True))


@pytest.mark.parametrize(("more", "said"), [
    (["--search", "method.lr=-1,0.1"], "lr"), (["--search", "method.rank=1,2"], "no option 'rank'"),
    (["--search", "method.lr=0.1,0.2", "--objective", "mano"], "is none of"),
    (["--search", "method.lr=0.1,0.2", "--trials", "0"], "--trials 0"),
])
def test_a_mistake_is_told_before_the_first_trial(more, said, tmp_path, capsys) -> None:
    assert main(["tune", *LEARN, *more, "--runs", str(tmp_path / "runs"), "--tracking", "none"]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.rglob("run.json"))
