"""One run in several processes: the matrix of one process at the same batch size, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cl_bench import TensorData, ranks
from cl_bench.command.cli import main
from cl_bench.command.config import parse, plan_from
from cl_bench.command.processes import execute
from cl_bench.engine.compute import Compute
from cl_bench.engine.feed import TrainingFeed
from cl_bench.engine.processes import check_processes, joined, named_differences
from cl_bench.engine.runner import run
from cl_bench.errors import UserError
from cl_bench.records.results import load, load_all
from cl_bench.registry import GROUPS, entries, find

BASE = ["--scenario", "split_digits", "--scenario.increment", "5", "--scenario.per_class", "7", "--device", "cpu"]
SHORT = ["--method.epochs", "1", "--method.batch_size", "16"]  # 35 images: batches of 16, 16 and 3
METHODS: dict[str, list[str]] = {
    "finetune": [*SHORT, "--method.lr", "0.003"],
    "er": [*SHORT, "--method.buffer_size", "20", "--method.minibatch", "5"],  # a reservoir, shares of unequal size
    "ewc": SHORT,  # Fisher
    "lwf": SHORT,
    "joint": SHORT,
    "linear_probe": SHORT,
    "lora": [*SHORT, "--method.r", "2"],
    "codyra": ["--method.iterations", "4", "--method.batch_size", "16", "--method.rank", "2"],
    "ncm": [],  # prototypes
    "ranpac": [*SHORT, "--method.pet", "finetune", "--method.m", "64"],  # Gram sums
}
SPLIT = ["finetune", "lora", "lwf", "codyra"]  # --strategy fsdp: all weights, adapters, a teacher, gates that close
HOARDER = '''
from typing import ClassVar
import torch
from torch import Tensor
from cl_bench import Batch, Method

class Hoarder(Method):
    """Says that its batches may be shared, and keeps its own share."""

    shares_batches: ClassVar[bool] = True

    def __init__(self, backbone, *, epochs: int = 1, batch_size: int = 16) -> None:
        super().__init__(backbone, epochs=epochs, batch_size=batch_size)
        self.register_buffer("mean", torch.zeros(()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.mean = self.mean + batch.x.mean()
        return self.loss(self(batch.x), batch.y)
'''


def argv_of(name: str) -> list[str]:
    return [*BASE, "--method", name, *METHODS[name]]


def stopped(plan: Any, runs: Path) -> Path:
    """The folder of a run that was stopped after its first experience, in every process at once."""
    begun: list[Path] = []

    def listen(kind: str, facts: Any) -> None:
        begun.append(runs / facts["id"])
        if kind == "experience":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, runs, listen=listen)
    return begun[0]


def together(number: int, argvs: list[list[str]], runs: str, store: str, out: str) -> list[str]:
    """What each of the two processes does: every run in turn, and what became of it."""
    torch.set_num_threads(1)
    said = []
    with joined(number, 2, store, cuda=False):
        rows = torch.arange(14).reshape(7, 2)
        assert torch.equal(ranks.whole(ranks.share(rows)), rows) and len(ranks.share(rows)) == 4 - number
        for argv in argvs:
            try:
                said.append(str(run(plan_from(parse([*argv, "--devices", "2"])), Path(runs))))
            except UserError as fault:
                said.append(f"refused: {fault}")
        plan = plan_from(parse([*argv_of("er"), "--devices", "2"]))
        said.append(str(run(plan, Path(runs), resume=stopped(plan, Path(runs)))))
    Path(out).write_text("\n".join(said))
    return said


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, Any]:
    """Every method's run in two processes, by name, and what the second process has to say."""
    folder = tmp_path_factory.mktemp("devices")
    file = folder / "hoarder.py"
    file.write_text(HOARDER)
    split = [[*argv_of(name), "--strategy", "fsdp"] for name in [*SPLIT, "ewc"]]
    argvs = [*map(argv_of, METHODS), [*BASE, "--method", f"{file}:Hoarder"], *split]
    facts = argvs, str(folder / "runs"), str(folder / "store")
    other = get_context("spawn").Process(target=together, args=(1, *facts, str(folder / "other")))
    other.start()
    said = together(0, *facts, str(folder / "first"))
    other.join(60)
    assert other.exitcode == 0
    names = [*METHODS, "hoarder", *(f"{name} split" for name in [*SPLIT, "ewc"]), "resumed"]
    return {**dict(zip(names, said, strict=True)), "folder": folder,
            "other": (folder / "other").read_text().split("\n")}


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_make_the_matrix_of_one(name, shared, tmp_path) -> None:
    one, two = load(run(plan_from(parse(argv_of(name))), tmp_path)), load(shared[name])
    assert two.status == "finished" and two.matrix.to_json() == one.matrix.to_json()
    assert all(np.array_equal(two.arrays()[k], v) for k, v in one.arrays().items()), "answers in row order"
    assert two.record["metrics"] == one.record["metrics"] and two.fingerprint == one.fingerprint
    for key in ("backward_images", "optimizer_steps", "growth"):
        assert name == "ewc" or two.record["cost"][key] == one.record["cost"][key], key
    forward = [r.record["cost"]["forward_images"] for r in (one, two)]
    if name in ("ewc", "ncm", "ranpac"):  # what they compute after a fit is computed, and counted, in each process
        assert forward[0] < forward[1] <= 2 * forward[0]
    else:
        assert forward[0] == forward[1], "each image passes once, in one of the processes"
    losses = [[e["value"] for e in r.events() if e["kind"] == "loss"] for r in (one, two)]
    assert np.allclose(*losses, rtol=1e-4), "a batch's loss is the mean over all of its rows"
    assert two.record["warnings"] == one.record["warnings"]


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_trunk_learns_what_a_whole_one_does(name, shared) -> None:
    whole, split = load(shared[name]), load(shared[f"{name} split"])
    assert split.status == "finished" and split.matrix.to_json() == whole.matrix.to_json()
    assert split.record["config"]["compute"]["strategy"] == "fsdp" and split.fingerprint == whole.fingerprint
    losses = [[e["value"] for e in r.events() if e["kind"] == "loss"] for r in (whole, split)]
    assert np.allclose(*losses, rtol=1e-4) and len(losses[0]) > 4
    for key in ("forward_images", "backward_images", "optimizer_steps", "growth", "parameters"):
        assert split.record["cost"][key] == whole.record["cost"][key], key


def test_what_needs_single_weights_whole_says_so(shared) -> None:
    assert "computes with single weights of the trunk" in shared["ewc split"] and "--strategy ddp" in shared["ewc split"]


def test_a_run_of_two_processes_goes_on_to_the_same_bits(shared) -> None:
    whole, resumed = load(shared["er"]), load(shared["resumed"])
    assert "resume" in [e["kind"] for e in resumed.events()] and resumed.status == "finished"
    assert resumed.matrix.to_json() == whole.matrix.to_json() and resumed.record["metrics"] == whole.record["metrics"]
    assert all(np.array_equal(resumed.arrays()[k], v) for k, v in whole.arrays().items())
    losses = [[(e["experience"], e["step"], e["value"]) for e in r.events() if e["kind"] == "loss"] for r in (whole, resumed)]
    assert losses[0] == losses[1], "bit for bit"
    for key in ("forward_images", "backward_images", "optimizer_steps", "growth"):
        assert resumed.record["cost"][key] == whole.record["cost"][key], key


def test_one_process_writes(shared) -> None:
    made = load_all(shared["folder"] / "runs")
    whole = [name for name in shared if name not in ("hoarder", "ewc split", "folder", "other")]
    assert {str(r.folder) for r in made if r.status == "finished"} == {shared[name] for name in whole}
    assert set(shared["other"]) >= {shared[name] for name in whole}, "the other one speaks of the same folders"


def test_what_keeps_its_share_is_found_out(shared) -> None:
    for said in (shared["hoarder"], shared["other"][len(METHODS)]):
        assert "Hoarder holds another mean in each process after learning" in said


def test_the_command_starts_the_processes(tmp_path, capsys) -> None:
    argv = argv_of("finetune")
    assert main(["run", *argv, "--devices", "2", "--runs", str(tmp_path / "two"), "--tracking", "none"]) == 0
    (two,) = load_all(tmp_path / "two")
    one = load(run(plan_from(parse(argv)), tmp_path / "one"))
    assert two.matrix.to_json() == one.matrix.to_json() and two.record["config"]["compute"]["devices"] == 2


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "said"), [
    (["--scenario", "digits_c", "--method", "tent"], "a stream is answered in one process"),
    (["--scenario", "split_digits", "--method", "derpp"], "does not say that a batch of it may be shared"),
    (["--scenario", "deployed_digits", "--method", "finetune"], "has a test stream"),
])
def test_what_does_not_say_that_it_can_is_refused(argv, said, tmp_path) -> None:
    with pytest.raises(UserError, match=f"{said}.*--devices 1"):
        execute(plan_from(parse([*argv, "--devices", "2", "--device", "cpu"])), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("more", "said"), [
    ({"devices": 1}, "--devices 2"), ({"devices": 2, "optimizers": "apex"}, "torch or fused")])
def test_a_split_that_cannot_be_is_refused(more, said) -> None:
    finetune, scenario = find(GROUPS["methods"], "finetune"), find(GROUPS["scenarios"], "split_digits")()
    with pytest.raises(UserError, match=said):
        check_processes(Compute(device="cpu", strategy="fsdp", **more), finetune, scenario, "finetune")


def test_a_subclass_says_it_for_itself() -> None:
    finetune = find(GROUPS["methods"], "finetune")

    class Mine(finetune):
        """Inherits all but the word."""

    compute = Compute(device="cpu", devices=2)
    check_processes(compute, finetune, find(GROUPS["scenarios"], "split_digits")(), "finetune")
    with pytest.raises(UserError, match="does not say"):
        check_processes(compute, Mine, find(GROUPS["scenarios"], "split_digits")(), "mine")


def test_no_test_time_method_says_it() -> None:
    for name, entry in entries(GROUPS["methods"]).items():
        method = entry.load()
        if method.adapts:
            assert not vars(method).get("shares_batches", False), name


def test_an_engine_without_its_processes_says_who_starts_them(tmp_path) -> None:
    with pytest.raises(UserError, match="is started by `cl-bench run`"):
        run(plan_from(parse([*argv_of("finetune"), "--devices", "2"])), tmp_path)


def test_a_batch_with_fewer_images_than_processes_is_refused() -> None:
    data = TensorData(torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.arange(9))
    with pytest.raises(UserError, match="a batch of 1 images cannot be shared among 2 processes"):
        TrainingFeed(data, 4, torch.device("cpu"), seed=0, part=(0, 2))


def test_shares_of_a_feed_are_the_batches_of_one(tmp_path) -> None:
    images = torch.arange(11 * 48).reshape(11, 3, 4, 4).remainder(256).to(torch.uint8)
    data = TensorData(images, torch.arange(11))

    def noise(x: Any, g: Any) -> Any:
        return x + torch.rand(x.shape, generator=g)

    told: list[tuple[int, int]] = []
    make = lambda **more: TrainingFeed(data, 4, torch.device("cpu"), seed=3, augment=noise, **more)  # noqa: E731
    whole = list(make())
    parts = [list(make(part=(k, 2), told=lambda a, b: told.append((a, b)))) for k in range(2)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert torch.equal(batch.x[0::2], a.x) and torch.equal(batch.x[1::2], b.x) and torch.equal(batch.y[1::2], b.y)
    assert told == [(2, 4), (2, 4), (2, 3), (2, 4), (2, 4), (1, 3)]


def test_what_differs_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
    assert [s.split()[0] for s in named_differences(network)] == ["BatchNorm", "Dropout"]
    assert [s.split()[0] for s in named_differences(network.eval())] == ["Dropout"]
    assert named_differences(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))) == []


def test_one_process_is_all_there_is() -> None:
    x = torch.arange(5)
    assert (ranks.rank(), ranks.size()) == (0, 1)
    assert ranks.whole(x) is x and ranks.share(x) is x and ranks.gathered(x) == [x] and ranks.summed([1, 2]) == [1.0, 2.0]
    assert replace(Compute(), devices=1) == Compute()


def test_a_process_that_ends_before_it_joins_ends_the_run(tmp_path, monkeypatch) -> None:
    """The method's file goes away between the plan and the start of the other process, which cannot build the run then."""
    source = tmp_path / "hoarder.py"
    source.write_text(HOARDER)
    argv = argv_of("finetune")
    argv[argv.index("finetune")] = f"{source}:Hoarder"
    plan = plan_from(parse([*argv[:-2], "--devices", "2"]))
    source.unlink()
    with pytest.raises(RuntimeError, match=r"another process of the run failed: .*hoarder"):
        execute(plan, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
