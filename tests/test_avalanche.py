"""Avalanche both ways: its strategies under our runner give its own loop's accuracy matrix; its benchmarks are scenarios."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cl_bench import Backbone, LabelSpace, Scenario, TensorData, UserError
from cl_bench.backbones import Preprocess
from cl_bench.data.digits import digits
from cl_bench.data.tensor import labels_of
from cl_bench.engine.compute import Compute
from cl_bench.engine.protocol import Plan
from cl_bench.engine.runner import run
from cl_bench.engine.seeding import derive, seeded
from cl_bench.identity import arguments
from cl_bench.records.results import load
from cl_bench.registry import find

pytestmark = pytest.mark.filterwarnings("ignore")
SEED, LR, MOMENTUM, EPOCHS, BATCH = 5, 0.05, 0.9, 2, 16


def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 24), nn.ReLU())
    return Backbone(model, num_features=24, preprocess=Preprocess(None), info={"name": "tiny"})


def scenario() -> Scenario:
    """Six digits, two at a time, thirty images each; a class order that makes labels and columns differ."""
    return find("cl_bench.scenarios", "split_digits")(per_class=30, order=[7, 2, 5, 0, 9, 1, 3, 4, 6, 8])


def strategy_args() -> list[Any]:
    return [
        pytest.param("Naive", None, id="naive"),
        pytest.param("Replay", {"mem_size": 40}, id="replay"),
        pytest.param("EWC", {"ewc_lambda": 10.0}, id="ewc"),
    ]


def ours(strategy: str, args: dict[str, Any] | None, runs: Path) -> tuple[np.ndarray, list[int]]:
    cls = find("cl_bench.methods", "avalanche_strategy")

    def build(b: Backbone) -> Any:
        return cls(b, strategy=strategy, args=args, lr=LR, momentum=MOMENTUM, epochs=EPOCHS, batch_size=BATCH)

    names = {
        "scenario": {"name": "split_digits", "class_path": "x", "args": {}},
        "method": {"name": "avalanche_strategy", "class_path": "x", "args": {}, "label": strategy, "family": "", "paper": ""},
        "backbone": {"name": "tiny", "args": {}},
    }
    plan = Plan(scenario(), backbone(), cls, build, names, seed=SEED, compute=Compute("cpu"), checkpoint=False)
    record = load(run(plan, runs)).record
    correct = np.array([[np.nan if c is None else c for c in row] for row in record["matrix"]["correct"]], float)
    return correct, [g["stored_samples"] for g in record["cost"]["growth"]]


def theirs(strategy: str, args: dict[str, Any] | None) -> np.ndarray:
    """Avalanche alone: its benchmark, its loop, its evaluation; of ours only the data and the seeds."""
    import avalanche.training as training
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as make
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import IncrementalClassifier
    from avalanche.training.plugins import EvaluationPlugin

    s = scenario()
    column = {label: k for k, label in enumerate(s.space.ids)}

    def convert(parts: Any) -> list[Any]:
        return [make(p.data.x.float() / 255, torch.tensor([column[int(t)] for t in p.data.y])) for p in parts]

    benchmark = with_classes_timeline(benchmark_from_datasets(train=convert(s.experiences()), test=convert(s.test_sets())))
    with seeded(derive(SEED, "build")):
        b = backbone()
        features = nn.Sequential(b.model, IncrementalClassifier(b.num_features, initial_out_features=2))
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    sgd = torch.optim.SGD(features.parameters(), lr=LR, momentum=MOMENTUM)
    runner = getattr(training, strategy)(
        model=features, optimizer=sgd, criterion=nn.CrossEntropyLoss(), train_mb_size=BATCH, train_epochs=EPOCHS,
        eval_mb_size=BATCH, evaluator=evaluator, **(args or {}),
    )  # fmt: skip
    n = len(s.experiences())
    matrix = np.full((n, n), np.nan)
    for i, experience in enumerate(benchmark.streams["train"]):
        with seeded(derive(SEED, "learn", s.experiences()[i].name)):
            runner.train(experience)
        found = runner.eval(list(benchmark.streams["test"])[: i + 1])
        for j in range(i + 1):
            key = next(k for k in found if k.startswith("Top1_Acc_Exp/") and k.endswith(f"Exp{j:03d}"))
            matrix[i, j] = found[key] * len(s.test_sets()[j].data)  # type: ignore[arg-type]
    return matrix


@pytest.mark.parametrize(("strategy", "args"), strategy_args())
def test_same_accuracy_matrix_as_avalanches_own_loop(strategy: str, args: dict[str, Any] | None, tmp_path: Path) -> None:
    mine, stored = ours(strategy, args, tmp_path)
    other = theirs(strategy, args)
    lower = np.tril(np.ones_like(other, dtype=bool))
    assert np.array_equal(mine[lower], np.rint(other[lower])), f"\n{mine}\n{other}"
    assert mine[0, 0] > 0.6 * 71, "the comparison must be of something that learned"
    assert stored[-1] == (40 if strategy == "Replay" else 0), "what the strategy stores is counted"


@pytest.mark.parametrize("strategy, args, stored", [
    ("Naive", {}, [0, 0]), ("Replay", {"mem_size": 20}, [20, 20]), ("GEM", {"patterns_per_exp": 7}, [7, 14]),
    ("AGEM", {"patterns_per_exp": 6, "sample_size": 4}, [6, 12]), ("GDumb", {"mem_size": 10}, [10, 10]),
    ("Cumulative", {}, [40, 80]), ("DER", {"mem_size": 16}, [16, 16]), ("ER_ACE", {"mem_size": 16}, [16, 16]),
])
def test_what_a_strategy_holds_is_counted_and_nothing_else_is_kept(strategy: str, args: Any, stored: list[int]) -> None:
    """The numbers follow from the strategies' own arguments, experiences of 40 images each; a walk over everything finds as
    many, by shape and by pixels."""
    from cl_toys import learn, tiny_backbone, toy

    from cl_bench.state import stored_images
    from cl_bench.testing.trial import kept

    torch.manual_seed(0)
    m = find("cl_bench.methods", "avalanche_strategy")(tiny_backbone(), strategy=strategy, args=args, epochs=1)
    assert m.stored_samples() == 0
    experiences = toy((0, 1)), toy((2, 3))
    for exp, want in zip(experiences, stored, strict=True):
        learn(m, exp)
        assert m.stored_samples() == want == stored_images(m, (3, 8, 8)), strategy
    assert len(kept(m, torch.cat([e.data.x for e in experiences]))) == want  # type: ignore[attr-defined]


def test_images_that_strategies_keep_as_plain_tensors_are_counted() -> None:
    """GSS has one table for its whole memory, iCaRL a list with a tensor per class; gradients and scores are no images."""
    from types import SimpleNamespace

    from avalanche.training.plugins import GSS_greedyPlugin
    from avalanche.training.supervised.icarl import _ICaRLPlugin
    from cl_bench_methods.continual._avalanche import held_images

    icarl = _ICaRLPlugin(memory_size=10)
    icarl.x_memory = [torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 8, 8)]
    both = SimpleNamespace(plugins=[GSS_greedyPlugin(mem_size=12, input_size=[3, 8, 8]), icarl])
    assert held_images(both, (3, 8, 8)) == 17


def test_a_copy_of_a_strategy_goes_on_alone() -> None:
    from cl_bench.engine.fit import fit

    torch.manual_seed(0)
    m = find("cl_bench.methods", "avalanche_strategy")(backbone(), strategy="Replay", args={"mem_size": 20}, epochs=1)
    one, two = scenario().experiences()[:2]
    fit(m, one, Compute("cpu"), 1)
    twin = copy.deepcopy(m)
    assert twin.running.model is twin.network and twin.running.model is not m.running.model
    fit(m, two, Compute("cpu"), 2)
    fit(twin, two, Compute("cpu"), 2)
    x = two.data.x[:5].float() / 255  # type: ignore[attr-defined]
    assert torch.equal(m.predict(x, m.seen), twin.predict(x, m.seen))
    assert m.predict(x, LabelSpace((2, 7))).shape == (5, 2)


def test_online_caps_avalanches_epochs() -> None:
    from cl_bench.engine.fit import fit

    m = find("cl_bench.methods", "avalanche_strategy")(backbone(), epochs=7)
    fit(m, scenario().experiences()[0], Compute("cpu"), 1, max_epochs=1)
    assert m.running.train_epochs == 1
    assert m.running.clock.total_iterations == 2, "60 images in batches of 32, once"


def test_unknown_strategy_is_one_sentence() -> None:
    m = find("cl_bench.methods", "avalanche_strategy")(backbone(), strategy="Replayy")
    with pytest.raises(UserError, match="Replayy"):
        m.begin(scenario().experiences()[0])
    for name, args in (("ICaRL", None), ("Replay", {"mem_sizes": 3})):
        m = find("cl_bench.methods", "avalanche_strategy")(backbone(), strategy=name, args=args)
        with pytest.raises(UserError, match=f"{name} takes other arguments"):
            m.begin(scenario().experiences()[0])


# ---------------------------------------------------------------------------------------------- the other way
def make_benchmark(n_experiences: int = 3, noise: float = 0.0, light: float = 1.0) -> Any:
    """A class-incremental Avalanche benchmark over six digits, whose class order is drawn from global generators."""
    from avalanche.benchmarks import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    parts = {}
    for part in ("train", "test"):
        data = digits(part)  # type: ignore[arg-type]
        rows = data.y < 6
        dataset: Any = TensorDataset(data.x[rows].float() / 255 * light + noise, data.y[rows])
        dataset.targets = data.y[rows].tolist()
        parts[part] = as_classification_dataset(dataset)
    return class_incremental_benchmark(parts, num_experiences=n_experiences)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    import sys
    import types

    module = types.ModuleType("benchmarks_of_a_user")
    module.make_benchmark = make_benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks_of_a_user", module)
    return "benchmarks_of_a_user:make_benchmark"


def test_a_benchmark_is_a_scenario(factory: str) -> None:
    cls = find("cl_bench.scenarios", "avalanche_benchmark")
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    s, again = (cls(factory=factory, seed=3) for _ in range(2))
    groups = [e.space.ids for e in s.experiences()]
    assert [len(g) for g in groups] == [2, 2, 2] and sorted(i for g in groups for i in g) == list(range(6))
    assert groups == [e.space.ids for e in again.experiences()] and s.protocol() == again.protocol()
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    plain = digits("test")
    for test, group in zip(s.test_sets(), groups, strict=True):
        assert test.space.ids == group
        rows = torch.isin(plain.y, torch.tensor(group))
        assert isinstance(test.data, TensorData) and test.data.x.dtype == torch.uint8
        assert sorted(labels_of(test.data).tolist()) == sorted(plain.y[rows].tolist())
        assert int(test.data.x.long().sum()) == int(plain.x[rows].long().sum()), "pixels must come through unchanged"
    one = cls(factory=factory, seed=3, in_memory=False).experiences()[0]
    assert torch.equal(one.data[4][0], s.experiences()[0].data[4][0])


def tensors(*parts: tuple[Any, Any], transform: Any = None) -> list[Any]:
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    out = []
    for x, y in parts:
        dataset: Any = TensorDataset(x, y)
        dataset.targets = y.tolist() if transform is None else transform(y).tolist()
        out.append(as_classification_dataset(dataset))
    return out


def odd_benchmark(kind: str = "") -> Any:
    """Three experiences of all six digits and one test set; labels as ``kind`` says."""
    from avalanche.benchmarks import benchmark_from_datasets

    x, y = digits("train").x[:90].float() / 255, digits("train").y[:90] % 6
    taught = y.clone()
    if kind == "more":
        y = y.clone()
        y[0] = 9
    train = tensors(*((x[k::3], taught[k::3]) for k in range(3)))
    return benchmark_from_datasets(train=train, test=tensors((x, y), transform=(lambda v: 5 - v) if kind == "mapped" else None))


def test_streams_that_do_not_pair_up_are_told_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("odd_benchmarks")
    module.make = odd_benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "odd_benchmarks", module)
    make = find("cl_bench.scenarios", "avalanche_benchmark")
    s = make(factory="odd_benchmarks:make", answers="all")
    assert [t.name for t in s.test_sets()] == ["test 1"], "one shared test set belongs to no experience"
    assert not {t.name for t in s.test_sets()} & {e.name for e in s.experiences()}
    with pytest.raises(UserError, match="answers=task every experience needs label ids of its own"):
        make(factory="odd_benchmarks:make", answers="task").experiences()
    with pytest.raises(UserError, match="holds class 9, which no training experience has"):
        make(factory="odd_benchmarks:make", args={"kind": "more"}, answers="all").experiences()
    with pytest.raises(UserError, match=r"carries label .*target_transform"):
        _ = make(factory="odd_benchmarks:make", args={"kind": "mapped"}, answers="all").test_sets()[0].data.x


def test_the_protocol_of_a_benchmark_holds_pixels_and_no_place(factory: str) -> None:
    make = find("cl_bench.scenarios", "avalanche_benchmark")
    for in_memory in (True, False):
        made = [make(factory=factory, seed=3, in_memory=in_memory, args=args).protocol()["data"]
                for args in (None, {"light": 1.0}, {"light": 0.9})]
        assert made[0] == made[1] != made[2], "another pixel, another digest"
    told = arguments(make, {"args": {"noise": 0.0, "dataset_root": "data", "where": "/home/a", "transform": tensors}})
    assert told == {"args": {"noise": 0.0, "transform": f"{__name__}.tensors"}}


def test_normalised_images_and_missing_factories_are_refused(factory: str) -> None:
    cls = find("cl_bench.scenarios", "avalanche_benchmark")
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        _ = cls(factory=factory, args={"noise": 2.0}).experiences()[0].data.x
    for wrong in ("", "nowhere:thing", "avalanche.benchmarks:Nothing"):
        with pytest.raises(UserError, match="module:attribute"):
            cls(factory=wrong).experiences()


def test_avalanche_is_imported_only_when_named() -> None:
    import subprocess
    import sys

    code = ("import sys; from cl_bench.registry import entries, find; entries('cl_bench.methods'); "
            "find('cl_bench.methods', 'er'); find('cl_bench.scenarios', 'split_digits'); "
            "find('cl_bench.methods', 'avalanche_strategy'); print('avalanche' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("factory", "args", "message"), [
    (":SplitMNIST", {}, "there is no"),
    ("avalanche.benchmarks.classic:SplitNothing", {}, "there is no"),
    ("math:pi", {}, "there is no"),
    ("avalanche.benchmarks.classic:SplitMNIST", {"n_experiences": 5, "colour": 3}, "cannot make its benchmark"),
])  # fmt: skip
def test_a_factory_that_makes_nothing_is_told_in_a_sentence(factory, args, message):
    with pytest.raises(UserError, match=message):
        find("cl_bench.scenarios", "avalanche_benchmark")(factory=factory, args=args).experiences()
