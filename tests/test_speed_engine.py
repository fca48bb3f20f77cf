"""What the engine spares changes no number: frozen trunks asked once, batches that fit, layouts, what an allocator keeps."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_toys import plan as plan_of
from test_resume import stop
from torch import Tensor, nn
from toys import coded, tiny_backbone

from cl_bench import LabelSpace, Method, TestSet
from cl_bench.command.config import parse, plan_from
from cl_bench.command.task import key_of, recorded
from cl_bench.engine import features as features_module
from cl_bench.engine.compute import Compute
from cl_bench.engine.features import Features
from cl_bench.engine.fit import FitPosition
from cl_bench.engine.layout import arrange, relaid, with_layout
from cl_bench.engine.measure import fitting, measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.protocol import fingerprint
from cl_bench.engine.runner import run
from cl_bench.engine.trunk import network_code, trunk_digest
from cl_bench.errors import told
from cl_bench.records.results import load
from cl_bench.records.source_digest import UNKNOWN
from cl_bench.registry import find
from cl_bench.state import own

CPU = torch.device("cpu")
COMPUTE = Compute(device="cpu")
SPACE = LabelSpace((0, 1, 2, 3))
DIGITS = ["--scenario", "split_digits", "--scenario.per_class", "6", "--device", "cpu"]


class Frozen(Method):
    """A head on a trunk that nothing trains."""

    def __init__(self, write: bool = False) -> None:
        super().__init__(tiny_backbone())
        self.head.grow(SPACE)
        self.write = write
        self.requires_grad_(False)
        self.eval()

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if self.write:
            x.mul_(0.5)
        return super().predict(x, space)


def counted(method: Method) -> list[int]:
    """How many images really go through the trunk, pass by pass."""
    passes: list[int] = []
    method.backbone.model[1].register_forward_hook(Counts(passes).hook)
    return passes


class Counts(Meter):
    """A hook of the engine's kind: the trunk stays a fixed function."""

    def __init__(self, passes: list[int]) -> None:
        super().__init__()
        self.passes = passes

    def hook(self, module: Any, inputs: Any, output: Any) -> None:
        self.passes.append(len(inputs[0]))


def test_a_trunk_that_nothing_trains_is_asked_once_for_every_test_image() -> None:
    tests = [TestSet("a", SPACE, coded(10)), TestSet("b", SPACE, coded(7))]
    method, meter = Frozen(), Meter()
    meter.attach(method.backbone, torch.zeros(1, 3, 4, 4))
    passes, features = counted(method), Features(COMPUTE, None, meter)
    start = meter.forward_images
    plain = [measure(method, tests[:n], [SPACE] * n, COMPUTE, 4, 0) for n in (1, 2)]
    assert sum(passes) == 27 == meter.forward_images - start
    passes.clear()
    kept = [measure(method, tests[:n], [SPACE] * n, COMPUTE, 4, 0, features) for n in (1, 2)]
    assert sum(passes) == 17, "each image once, although two rows ask for the first test set"
    assert meter.forward_images - start == 54, "a method's cost does not depend on what is remembered"
    for a, b in zip([s for row in plain for s in row], [s for row in kept for s in row], strict=True):
        assert a.correct == b.correct and (a.predictions == b.predictions).all()


def test_a_changed_trunk_is_asked_again_and_a_trained_one_always() -> None:
    tests, method = [TestSet("a", SPACE, coded(6))], Frozen()
    passes, features = counted(method), Features(COMPUTE, None, Meter())
    for _ in range(2):
        measure(method, tests, [SPACE], COMPUTE, 6, 0, features)
    with torch.no_grad():
        method.backbone.model[1].weight.mul_(2)
    measure(method, tests, [SPACE], COMPUTE, 6, 0, features)
    assert passes == [6, 6]
    method.backbone.requires_grad_(True)
    measure(method, tests, [SPACE], COMPUTE, 6, 0, features)
    measure(method, tests, [SPACE], COMPUTE, 6, 0, features)
    assert passes == [6] * 4


def test_images_that_a_method_has_written_into_go_through_the_network() -> None:
    tests = [TestSet("a", SPACE, coded(9))]
    method = Frozen(write=True)
    alone, = measure(method, tests, [SPACE], COMPUTE, 4, 0)
    beside, = measure(method, tests, [SPACE], COMPUTE, 4, 0, Features(COMPUTE, None, Meter()))
    assert (alone.predictions == beside.predictions).all()


@pytest.mark.parametrize("change", [
    lambda b: b.train(), lambda b: b.requires_grad_(True), lambda b: setattr(b.model[1], "forward", b.model[1].forward),
    lambda b: b.model[1].register_forward_hook(lambda *a: None),
    lambda b: b.model[1].register_forward_pre_hook(lambda *a: None),
    lambda b: setattr(b.model[1], "prompt", [torch.zeros(2, requires_grad=True)]),
    lambda b: setattr(b.model[1], "draw", torch.Generator()), lambda b: setattr(b.model[1], "draw", [np.random.default_rng(0)]),
], ids=["training", "trained", "another forward", "a hook", "a hook before", "a trained tensor in a list", "torch's generator",
        "numpy's generator in a list"])
def test_what_is_no_fixed_function_of_its_images_is_not_remembered(change: Callable[[Any], Any]) -> None:
    backbone = tiny_backbone().requires_grad_(False).eval()
    assert trunk_digest(backbone) is not None
    change(backbone)
    assert trunk_digest(backbone) is None


def scaling(by: float) -> Callable[[Tensor], Tensor]:
    return lambda x: by * x


def test_functions_are_told_apart_by_what_they_hold() -> None:
    backbone, told = tiny_backbone().requires_grad_(False).eval(), set()
    for act in (scaling(2), scaling(3), functools.partial(torch.add, 2), functools.partial(torch.add, 3), torch.relu, nn.ReLU):
        backbone.model[1].act = act
        told.add(trunk_digest(backbone))
    assert len(told) == 6 and None not in told


def recursive() -> Any:
    chain: list[Any] = []
    for _ in range(20_000):
        chain = [chain]
    return chain


def unbound() -> Callable[[], Any]:
    def inner() -> Any:
        return later

    if inner.__name__ == "never":
        later = 1
    return inner


@pytest.mark.parametrize("odd", [torch.Generator(), recursive(), unbound()], ids=["draws", "too deep", "an empty cell"])
def test_what_cannot_be_looked_into_is_not_remembered_and_stops_nothing(odd: Any) -> None:
    backbone = tiny_backbone().requires_grad_(False).eval()
    assert network_code(backbone) != UNKNOWN
    backbone.model[0].odd = odd
    assert trunk_digest(backbone) is None and network_code(backbone) == UNKNOWN, "of the modules behind it nothing is known"


@pytest.mark.parametrize("change", [
    lambda b: b.model[1].bias.data.add_(1e-6), lambda b: setattr(b.model[2], "eps", 1e-3), lambda b: b.mean.add_(0.1),
    lambda b: setattr(b.model[1], "prompt", [torch.zeros(2)]),
    lambda b: setattr(b.model[1], "act", torch.tanh), lambda b: setattr(b.model[1], "act", functools.partial(torch.add, 2)),
    lambda b: setattr(b.model[1], "act", scaling(3)), lambda b: setattr(b.model[1], "config", types.SimpleNamespace(scale=3)),
    lambda b: setattr(b.model[1], "table", {"scale": np.ones(2)}),
], ids=["a weight", "a setting", "a buffer", "a tensor in a list", "a function", "a partial", "a closure", "an object",
        "an array"])
def test_a_trunk_is_known_by_all_that_it_computes_with(change: Callable[[Any], Any]) -> None:
    backbone = tiny_backbone().requires_grad_(False).eval()
    first = backbone.model[1]
    first.act, first.config, first.table = torch.relu, types.SimpleNamespace(scale=2), {"scale": np.zeros(2)}
    before = trunk_digest(backbone)
    assert before == trunk_digest(copy.deepcopy(backbone)) != None  # noqa: E711
    change(backbone)
    assert trunk_digest(backbone) not in (None, before)


def test_runs_share_features_and_damaged_ones_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "LONG", 0.0)
    tests = [TestSet("a", SPACE, coded(9))]

    def run_once() -> tuple[int, list[int]]:
        torch.manual_seed(0)
        method = Frozen()
        passes = counted(method)
        scored, = measure(method, tests, [SPACE], COMPUTE, 4, 0, Features(COMPUTE, tmp_path, Meter()))
        return sum(passes), scored.predictions.tolist()

    (first, told), (second, again) = run_once(), run_once()
    assert (first, second) == (9, 0) and told == again
    (file,) = tmp_path.glob("features-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run_once() == (9, told)


@pytest.mark.parametrize("method", ["ncm", "linear_probe"])
def test_a_run_says_the_same_with_and_without_what_is_remembered(method: str, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*DIGITS, "--method", method, "--checkpoint", "false"]
    kept = load(run(plan_from(parse(words)), tmp_path / "kept")).record
    monkeypatch.setattr(Features, "of", lambda *a: None)
    plain = load(run(plan_from(parse(words)), tmp_path / "plain")).record
    assert kept["matrix"] == plain["matrix"] and kept["metrics"]["average_accuracy"] == plain["metrics"]["average_accuracy"]
    assert kept["cost"]["forward_images"] == plain["cost"]["forward_images"]


@pytest.mark.parametrize("answers", ["seen", "task"])
def test_a_row_takes_each_test_image_through_the_method_once(answers: str) -> None:
    """Class-incremental: all seen test data in one pass; task-incremental: each test set among its own classes."""
    tests = [TestSet(n, LabelSpace((k, k + 2)), coded(8)) for k, n in enumerate("ab")]
    spaces = [SPACE, SPACE] if answers == "seen" else [t.space for t in tests]
    method = Frozen()
    passes = counted(method)
    measure(method, tests, spaces, COMPUTE, 16, 0)
    assert passes == ([16] if answers == "seen" else [8, 8])


def test_a_test_batch_fits() -> None:
    method = Frozen()
    method.backbone.info["preprocess"]["size"] = 224
    data = [coded(4)]
    assert fitting(method, data, 256, CPU) == 27, "27 images of 224 x 224 float pixels are 16 MiB"
    assert fitting(method, data, 256, torch.device("cuda")) == 256 and fitting(method, data, 5, CPU) == 5
    method.backbone.info["preprocess"]["size"] = None
    assert fitting(method, data, 256, CPU) == 256
    assert fitting(method, [], 256, CPU) == 256


def test_what_follows_from_the_batch_is_measured_on_whole_batches() -> None:
    """Batch statistics of 27 images are others than of the 64 that a stream has."""
    for name in ("bn", "lame", "source"):
        method = find("cl_bench.methods", name)(tiny_backbone())
        method.backbone.info["preprocess"]["size"] = 224
        assert fitting(method, [coded(4)], 64, CPU) == 64, name


def test_channels_last_reaches_convolutions_copies_and_what_optimizers_keep() -> None:
    backbone = find("cl_bench.backbones", "glyph_resnet")()
    method = Method(backbone)
    arrange(method, Compute(device="cpu", layout="channels_last"), Meter())
    weights = [m.weight for m in method.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    twin = next(m for m in copy.deepcopy(method).modules() if isinstance(m, torch.nn.Conv2d))
    assert twin.weight.is_contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    optimizer.state[weights[-1]]["momentum_buffer"] = torch.zeros(weights[-1].shape)
    relaid([optimizer])
    assert optimizer.state[weights[-1]]["momentum_buffer"].stride() == weights[-1].stride()


def test_a_run_on_channels_last_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of its second fit, where an optimizer holds moments that lie as their weights do."""
    words = [*DIGITS, "--scenario.increment", "4", "--backbone", "glyph_resnet", "--method", "finetune", "--method.epochs", "2",
             "--method.batch_size", "8", "--checkpoint_every", "0"]
    last = [*words, "--layout", "channels_last"]
    words += ["--layout", "contiguous"]
    whole = run(plan_from(parse(last)), tmp_path / "whole")
    folder = stop(last, tmp_path / "cut", monkeypatch, lambda p: p.step == 1 and isinstance(p.inside, FitPosition), skip=2)
    resumed = run(plan_from(parse(last)), tmp_path / "cut", resume=folder)
    plain = run(plan_from(parse(words)), tmp_path / "plain")
    losses = [[e["value"] for e in load(f).events() if e["kind"] == "loss"] for f in (whole, resumed, plain)]
    assert losses[0] == losses[1] != losses[2], "the layout moves last bits, a stop does not"
    assert all((a == b).all() for a, b in zip(load(whole).arrays().values(), load(resumed).arrays().values(), strict=True))


def test_what_changes_numbers_is_in_the_fingerprint_and_defaults_are_not() -> None:
    words = [*DIGITS, "--method", "finetune"]
    plain = fingerprint(plan_from(parse(words)))
    assert not [k for k in plain["fields"] if k.startswith("compute.")]
    ids = {plain["id"]}
    for option, value in (("layout", "channels_last"), ("layout", "images_last"), ("compile", "true"), ("optimizers", "fused"),
                          ("precision", "bf16-mixed")):
        other = fingerprint(plan_from(parse([*words, f"--{option}", value])))
        assert f"compute.{option}" in other["fields"] and value in other["name"].lower(), other["name"]
        ids.add(other["id"])
    assert len(ids) == 6


def test_a_config_of_before_the_options_is_the_same_config() -> None:
    config = parse([*DIGITS, "--method", "finetune"])
    old = {**config, "compute": {k: v for k, v in config["compute"].items() if k not in ("layout", "compile")}}
    then = {**config, "compute": {**config["compute"], "layout": "contiguous"}}
    assert recorded(old) == then and key_of(old) == key_of(then)
    assert len({key_of(old), key_of(config), key_of({**then, "compute": {**then["compute"], "compile": True}})}) == 3
    assert [recorded(odd) for odd in (None, [], {"compute": 3})] == [None, [], {"compute": 3}]


@pytest.mark.parametrize(("name", "options", "layout"), [
    ("glyph_resnet", {}, "images_last"), ("glyph_vit", {}, "contiguous"),
    ("timm_model", {"name": "test_resnet.r160_in1k", "pretrained": False}, "images_last")])
def test_images_of_a_convolutional_trunk_have_their_channels_last_by_default(name: str, options: dict, layout: str) -> None:
    backbone = find("cl_bench.backbones", name)(**options)
    plan = plan_of(backbone=backbone)
    assert plan.compute.layout == layout and with_layout(plan.compute, backbone) == plan.compute
    assert fingerprint(plan)["fields"].get("compute.layout", "contiguous") == layout
    seen: list[bool] = []
    handle = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    method = Method(backbone)
    strides = [p.stride() for p in method.parameters()]
    twin = copy.deepcopy(method)
    arrange(method, plan.compute, Meter())
    for holder in (method, twin, copy.deepcopy(method)):
        holder.backbone.forward_features(torch.rand(2, 3, 32, 32))
    handle.remove()
    last = layout == "images_last"
    assert seen == [last, False, last] and [p.stride() for p in method.parameters()] == strides, "weights stay as they are"


def test_a_network_of_a_user_is_asked_first() -> None:
    """Its code may call `view` on feature maps, which fails where channels lie beside each other."""
    backbone = find("cl_bench.backbones", "glyph_resnet")()
    backbone.any_layout = False
    assert with_layout(Compute(device="cpu"), backbone).layout == "contiguous"
    with pytest.raises(RuntimeError) as fault:
        torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).view(2, -1)
    assert "--layout contiguous" in told(fault.value)


def test_features_are_not_shared_between_layouts() -> None:
    backbone = find("cl_bench.backbones", "glyph_resnet")().requires_grad_(False)
    method, digests = Method(backbone).eval(), []
    for layout in ("contiguous", "images_last", "channels_last"):
        arrange(method, Compute(device="cpu", layout=layout), Meter())
        digests.append(trunk_digest(method.backbone))
    assert None not in digests and len({*digests}) == 3


def test_a_compiled_trunk_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call, *a, **k: compiled.append(call) or call)
    monkeypatch.setattr(torch.compiler, "disable", lambda hook: lambda *a: hook(*a))
    method = Frozen()
    plain = list(own(method.backbone.model))
    arrange(method, Compute(device="cpu", compile=True), Meter())
    assert len(compiled) == 1 and method.backbone.model._compiled_call_impl is not None
    assert list(own(method.backbone.model)) == plain
    assert getattr(copy.deepcopy(method).backbone.model, "_compiled_call_impl", None) is None


def test_an_allocator_is_told_by_commands_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cl_bench.cli import main
    from cl_bench.engine import allocator

    told: list[str] = []
    monkeypatch.setattr(allocator, "keep_memory", lambda: told.append("keep"))
    monkeypatch.setenv(allocator.ASKED, "")
    words = ["run", *DIGITS, "--method", "ncm", "--tracking", "none", "--checkpoint", "false"]
    run(plan_from(parse([*DIGITS, "--method", "ncm", "--checkpoint", "false"])), tmp_path / "embedded")
    assert not told
    assert main([*words, "--runs", str(tmp_path / "a"), "--allocator", "system"]) == 0 and not told
    assert main([*words, "--runs", str(tmp_path / "b")]) == 0 and told == ["keep"]
    allocator.as_asked()
    assert told == ["keep"], "a worker does what the process that started it was told: nothing"
    monkeypatch.setenv(allocator.ASKED, "keep")
    allocator.as_asked()
    assert told == ["keep"] * 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_the_allocator_here_takes_the_thresholds() -> None:
    code = "from cl_bench.engine.allocator import keep_memory; import sys; print(keep_memory(), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    glibc = "glibc" in os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else False
    assert said.stdout.split() == [str(glibc), "False"]


def test_a_network_whose_code_was_edited_answers_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name, weights and settings, another forward: nothing that the old code computed is used."""
    monkeypatch.setattr(features_module, "LONG", 0.0)
    monkeypatch.syspath_prepend(tmp_path)
    tests, told = [TestSet("a", SPACE, coded(9))], []
    for number, change in enumerate(("x", "-x", "-x")):
        file = tmp_path / "mine_edited.py"
        file.write_text(f"from torch import nn\nclass Turn(nn.Module):\n    def forward(self, x):\n        return {change}\n")
        os.utime(file, (number, number))
        sys.modules.pop("mine_edited", None)
        importlib.invalidate_caches()
        method = Frozen()
        method.backbone.model.append(importlib.import_module("mine_edited").Turn())
        passes = counted(method)
        measure(method, tests, [SPACE], COMPUTE, 4, 0, Features(COMPUTE, tmp_path / "cache", Meter()))
        told.append(sum(passes))
    assert told == [9, 9, 0], "the edited network is asked, and remembered itself"
