"""What a suite survives: workers that die, a parent that dies, methods that leave, code that was edited, odd launchers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from folder_toys import class_folders
from PIL import Image

from cl_bench import registry
from cl_bench.command.cli import main
from cl_bench.command.config import parse
from cl_bench.command.launchers import local
from cl_bench.command.rehearsal import Rehearsal
from cl_bench.command.sweep import read_suite, run_suite
from cl_bench.errors import UserError
from cl_bench.records import results, source_digest
from cl_bench.records.results import load, load_all

METHOD = '''
import os, signal, sys, time
from pathlib import Path
from cl_bench import Method

class Odd(Method):
    """Does what a file beside it says when its second experience begins."""

    def __init__(self, backbone, *, tag: str = "none"):
        super().__init__(backbone, epochs=1)
        self.tag = tag

    def begin(self, exp):
        super().begin(exp)
        do = Path(__file__).with_name(f"{self.tag}.do")
        if len(self.seen) > 5 and do.exists():
            exec(do.read_text())
'''
SUITE = """
name: odd
seeds: [{seeds}]
compute: {{device: cpu}}
runs:
  - scenario: {{class_path: split_digits, init_args: {{per_class: 4, increment: 5}}}}
    methods: [{methods}]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "odd.py").write_text(METHOD)
    return tmp_path


def suite(home: Path, *tags: str, seeds: str = "0", name: str = "Odd") -> Any:
    methods = ", ".join(f"{{class_path: '{home / 'odd.py'}:{name}', init_args: {{tag: {tag}}}}}" for tag in tags)
    (home / "suite.yaml").write_text(SUITE.format(methods=methods, seeds=seeds))
    return read_suite(home / "suite.yaml")


class Said(list[tuple[str, str]]):
    def __call__(self, kind: str, facts: Any) -> None:
        self.append((kind, str(facts["label"]).partition("tag=")[2][:1]))

    def of(self, kind: str) -> list[str]:
        return sorted(tag for k, tag in self if k == kind)


def numbers(folder: Path) -> Any:
    r = load(folder).record
    return r["method"]["label"], r["matrix"], r["metrics"], r["cost"]["optimizer_steps"]


def test_a_killed_worker_costs_its_own_run_and_the_next_call_goes_on_with_it(home: Path, capsys: pytest.CaptureFixture[str]
                                                                             ) -> None:
    whole = run_suite(suite(home, "a", "b", "c"), home / "whole", jobs=1)
    (home / "a.do").write_text("os.kill(os.getpid(), signal.SIGKILL)")
    (home / "b.do").write_text("os._exit(3)")
    argv = ["suite", str(home / "suite.yaml"), "--runs", str(home / "runs"), "--tracking", "none", "--jobs", "2"]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "Odd(tag=a) seed 0: its process was ended by SIGKILL: out of memory, or killed from outside" in err
    assert "Odd(tag=b) seed 0: its process left with code 3" in err and "Odd(tag=c) seed 0: its" not in err
    assert {r.method[-2]: r.status for r in load_all(home / "runs")} == {"a": "running", "b": "running", "c": "finished"}
    for file in home.glob("*.do"):
        file.unlink()
    said = Said()
    outcome = run_suite(suite(home, "a", "b", "c"), home / "runs", jobs=1, progress=said)
    assert (said.of("resume"), said.of("start"), said.of("skip"), outcome.failures) == (["a", "b"], [], ["c"], [])
    assert [numbers(f) for f in outcome.folders] == [numbers(f) for f in whole.folders]
    assert len(load_all(home / "runs")) == 3, "nothing began anew"
    assert [e["kind"] for e in load(outcome.folders[0]).events()].count("resume") == 1
    assert len(outcome.skipped) == 1


def test_an_interrupted_suite_goes_on_where_it_was(home: Path) -> None:
    (home / "b.do").write_text("raise KeyboardInterrupt")
    said = Said()
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite(home, "a", "b", "c"), home / "runs", jobs=1, progress=said)
    assert said.of("start") == ["a", "b"]
    assert {r.method[-2]: r.status for r in load_all(home / "runs")} == {"a": "finished", "b": "stopped"}
    (home / "b.do").unlink()
    said.clear()
    outcome = run_suite(suite(home, "a", "b", "c"), home / "runs", jobs=1, progress=said)
    assert (said.of("skip"), said.of("resume"), said.of("start")) == (["a"], ["b"], ["c"]) and not outcome.failures
    assert len(load_all(home / "runs")) == 3


def test_a_method_that_leaves_fails_and_the_suite_goes_on(home: Path) -> None:
    (home / "a.do").write_text("sys.exit('enough')")
    outcome = run_suite(suite(home, "a", "b"), home / "runs", jobs=1)
    assert len(outcome.folders) == 1 and len(outcome.failures) == 1
    assert "Odd(tag=a) seed 0: " in outcome.failures[0] and "sys.exit('enough')" in outcome.failures[0]


def test_workers_end_with_their_parent_and_their_runs_go_on_later(home: Path) -> None:
    (home / "a.do").write_text("Path(__file__).with_name(f'{os.getpid()}.pid').touch(); time.sleep(600)")
    (home / "b.do").write_text((home / "a.do").read_text())
    made = suite(home, "a", "b")
    code = ("import sys; from cl_bench.command.cli import main\n"
            "if __name__ == '__main__':\n    main(sys.argv[1:])\n")
    (home / "parent.py").write_text(code)
    argv = ["suite", str(home / "suite.yaml"), "--jobs", "2", "--runs", str(home / "runs"), "--tracking", "none"]
    parent = subprocess.Popen([sys.executable, str(home / "parent.py"), *argv], stderr=subprocess.DEVNULL)
    workers = _wait(lambda: pids if len(pids := [int(f.stem) for f in home.glob("*.pid")]) == 2 else None)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert [r.status for r in load_all(home / "runs")] == ["stopped", "stopped"], "each had the time for its last record"
    for file in home.glob("*.do"):
        file.unlink()
    said = Said()
    assert len(run_suite(made, home / "runs", jobs=1, progress=said).folders) == 2 and said.of("resume") == ["a", "b"]


def _wait(asked: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := asked():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_method_that_does_not_fit_one_of_the_scenarios_is_told_before_the_first_run() -> None:
    rehearse = Rehearsal()
    argv = ["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "inflora", "--method.tasks", "5"]
    rehearse(parse(argv))
    with pytest.raises(UserError, match="tasks=5 but there are 10 experiences"):
        rehearse(parse([*argv, "--scenario.increment", "1"]))


def test_an_edited_method_runs_again_and_others_do_not(home: Path) -> None:
    first = run_suite(suite(home, "a"), home / "runs", jobs=1)
    said = Said()
    again = run_suite(suite(home, "a"), home / "runs", jobs=1, progress=said)
    assert again.folders == first.folders and said.of("skip") == ["a"]
    (home / "odd.py").write_text(METHOD.replace("epochs=1", "epochs=3"))
    for keep in (True, False):  # --keep is for cl-bench's own code
        said.clear()
        edited = run_suite(suite(home, "a"), home / f"runs{keep}" if keep else home / "runs", jobs=1, keep=keep, progress=said)
        assert said.of("start") == ["a"]
    assert numbers(edited.folders[0])[3] == 3 * numbers(first.folders[0])[3], "the new code ran"
    (home / "odd.py").write_text(METHOD)
    assert run_suite(suite(home, "a"), home / "runs", jobs=1).folders == first.folders, "put back, it has finished earlier"


def test_a_change_of_cl_benchs_own_code_or_of_torch_runs_again_unless_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "s.yaml").write_text("seeds: [0]\nruns: [{scenario: {class_path: split_digits, init_args: {per_class: 4}}, "
                                 "methods: [ncm]}]\n")
    made = read_suite(home / "s.yaml")
    first = run_suite(made, home / "runs", jobs=1)
    installed = results._version
    for package, again in (("mlflow", False), ("timm", True)):
        monkeypatch.setattr(results, "_version", lambda name, p=package: "0.0" if name == p else installed(name))
        assert run_suite(made, home / "runs", jobs=1, keep=True).folders == first.folders
        assert (run_suite(made, home / "runs", jobs=1).folders != first.folders) == again
    monkeypatch.setattr(results, "_version", installed)
    assert run_suite(made, home / "runs", jobs=1).folders == first.folders
    before = [r.folder for r in load_all(home / "runs")]
    monkeypatch.setattr(source_digest, "code_digest", lambda: "another")
    assert run_suite(made, home / "runs", jobs=1, keep=True).folders[0] in before
    assert run_suite(made, home / "runs", jobs=1).folders[0] not in before


@pytest.mark.parametrize(("body", "said"), [
    ("raise ValueError('rank is larger than the layer')", r"Odd\(tag=b\) cannot be built: rank is larger than the layer\."),
    ("sys.exit(0)", r"cannot be built: SystemExit: 0"), ("{}['x']", r"cannot be built: KeyError: 'x' \(odd.py, line 12\)")])
def test_what_a_constructor_refuses_is_told_before_the_first_run(home: Path, body: str, said: str) -> None:
    line = "        self.tag = tag\n"
    (home / "odd.py").write_text(METHOD.replace(line, f"{line}        if tag == 'b': {body}\n"))
    with pytest.raises(UserError, match=said):
        run_suite(suite(home, "a", "b"), home / "runs", jobs=1)
    assert not (home / "runs").exists()


def test_missing_files_are_told_before_the_first_run(home: Path) -> None:
    (home / "s.yaml").write_text("runs:\n  - {scenario: split_digits, methods: [ncm]}\n  - {scenario: {class_path: cifar10c, "
                                 f"init_args: {{root: {home / 'nowhere'}}}}}, methods: [bn], backbone: glyph_resnet}}\n")
    with pytest.raises(UserError, match=r"cifar10c\(.*nowhere"):
        run_suite(read_suite(home / "s.yaml"), home / "runs", jobs=1)
    assert not (home / "runs").exists()


def test_a_run_that_stands_twice_runs_once(home: Path) -> None:
    said = Said()
    outcome = run_suite(suite(home, "a", seeds="0, 1"), home / "runs", jobs=1, overrides=["--seed", "5"], progress=said)
    assert len(outcome.folders) == len(load_all(home / "runs")) == 1 and not outcome.failures
    assert said.of("skip") == ["a"]


# -- launchers --------------------------------------------------------------------------------------------------------

OUTSIDE = '''
def backwards(configs, run, *, workers=0):
    """Everything in this process, last first."""
    for k, config in reversed(list(enumerate(configs))):
        yield k, *run(config)
'''


def test_a_launcher_comes_from_outside_by_an_entry_point(home: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    info = home / "site" / "my_cluster-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-cluster\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[cl_bench.launchers]\nbackwards = my_cluster:backwards\n")
    (home / "site" / "my_cluster.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(home / "site"))
    registry.entries.cache_clear()
    try:
        suite(home, "a", "b")
        argv = ["suite", str(home / "suite.yaml"), "--runs", str(home / "runs"), "--tracking", "none"]
        assert main([*argv, "--launcher", "backwards"]) == 0
        assert main([*argv, "--launcher", "backward"]) == 2
    finally:
        registry.entries.cache_clear()
    assert "did you mean backwards" in capsys.readouterr().err
    assert [r.method[-2] for r in sorted(load_all(home / "runs"), key=lambda r: r.folder.stat().st_ctime)] == ["b", "a"]


def test_ours_is_an_entry_point_too() -> None:
    assert registry.find("cl_bench.launchers", "local") is local


@pytest.mark.parametrize(("fault", "said"), [
    ("lost", "the launcher gave no result for it"), ("raised", r"the launcher failed: ConnectionError: cluster away"),
    ("lied", "the launcher calls it finished, and nowhere holds no finished run"),
    ("index", "the launcher failed: IndexError")])
def test_what_a_launcher_does_wrong_is_told_and_what_it_did_is_kept(home: Path, fault: str, said: str) -> None:
    def launcher(configs: Iterable[Any], run: Callable[[Any], Any], *, workers: int = 0) -> Iterator[Any]:
        first, *_ = configs
        yield 0, *run(first)
        if fault == "raised":
            raise ConnectionError("cluster away")
        if fault in ("lied", "index"):
            yield 1 if fault == "lied" else 7, "nowhere", None

    outcome = run_suite(suite(home, "a", "b"), home / "runs", launcher=launcher)
    assert len(outcome.folders) == 1 and len(outcome.failures) == 1 and "Odd(tag=b) seed 0: " in outcome.failures[0]
    assert re.search(said, outcome.failures[0])


# -- class orders -----------------------------------------------------------------------------------------------------

ORDERS = """
{top}
runs:
  - scenario: {{class_path: split_digits, init_args: {{per_class: 4}}}}
    methods: [ncm, er]
    {row}
  - {{scenario: {{class_path: online, init_args: {{of: split_digits}}}}, methods: [ncm]}}
"""


def orders(home: Path, top: str, row: str = "") -> list[tuple[Any, int]]:
    (home / "o.yaml").write_text(ORDERS.format(top=top, row=row))
    return [(j.config["scenario"].get("init_args", {}).get("order", "of " + str(j.config["scenario"]["init_args"].get("of"))),
             j.config["seed"]) for j in read_suite(home / "o.yaml").jobs]


def test_orders_follow_the_seed_or_are_listed(home: Path) -> None:
    within = [f"of {{'class_path': 'split_digits', 'init_args': {{'order': {k}}}}}" for k in (3, 4)]
    assert orders(home, "seeds: [3, 4]\norders: seed") == [(3, 3), (4, 4), (3, 3), (4, 4), (within[0], 3), (within[1], 4)]
    assert orders(home, "seeds: [0, 1]", "orders: [7, 8]")[:4] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    assert orders(home, "seeds: [0, 1]")[4:] == [("of split_digits", 0), ("of split_digits", 1)]


def test_orders_give_the_same_runs_as_spelling_them_out(home: Path) -> None:
    row = ("  - {{scenario: {{class_path: split_digits, init_args: {{per_class: 4, order: {k}}}}}, methods: [ncm, er], "
           "seeds: [{k}]}}\n")
    (home / "long.yaml").write_text("runs:\n" + "".join(row.format(k=k) for k in (1993, 1996)))
    (home / "short.yaml").write_text("seeds: [1993, 1996]\norders: seed\nruns:\n  - {scenario: {class_path: split_digits, "
                                     "init_args: {per_class: 4}}, methods: [ncm, er]}\n")
    long, short = (read_suite(home / f"{name}.yaml").jobs for name in ("long", "short"))
    assert {j.key for j in long} == {j.key for j in short} and len(short) == 4


@pytest.mark.parametrize(("top", "said"), [
    ("orders: all", "orders in .* must be `seed` or a list of whole numbers, not 'all'"),
    ("orders: []", "must be `seed` or a list"), ("orders: [1.5]", "must be `seed` or a list"),
    ("order: seed", "unknown key 'order'; did you mean 'orders'")])
def test_orders_that_are_none_are_told(home: Path, top: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        orders(home, top)


def test_an_order_is_given_once_and_to_what_takes_one(home: Path) -> None:
    (home / "o.yaml").write_text("orders: seed\nruns: [{scenario: {class_path: split_digits, init_args: {order: 1}}, "
                                 "methods: [ncm]}]\n")
    with pytest.raises(UserError, match=r"split_digits\(order=1\) in .* has an order of its own beside `orders`"):
        read_suite(home / "o.yaml")
    (home / "o.yaml").write_text("orders: seed\nruns: [{scenario: ccc, methods: [bn]}]\n")
    with pytest.raises(UserError, match="has no option 'order'"):
        run_suite(read_suite(home / "o.yaml"), home / "runs", jobs=1)


def test_other_data_under_the_same_path_are_run_anew(home: Path) -> None:
    """An image is drawn again where it lay: what was measured on the old one is no run of today's data."""
    class_folders(home / "pictures", "train", "test", n=3)
    (home / "s.yaml").write_text(f"seeds: [0]\nruns: [{{scenario: {{class_path: class_folders, init_args: {{root: "
                                 f"{home / 'pictures'}, increment: 1}}}}, methods: [ncm]}}]\n")
    told = []
    for _ in range(3):
        said = Said()
        run_suite(read_suite(home / "s.yaml"), home / "runs", jobs=1, progress=said)
        told.append(["skip" if said.of("skip") else "start" if said.of("start") else "neither"])
        if len(told) == 2:
            image = next((home / "pictures").rglob("*.png"))
            Image.new("RGB", Image.open(image).size, (250, 3, 9)).save(image)
    assert told == [["start"], ["skip"], ["start"]]
