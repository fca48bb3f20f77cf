"""Configuration: one meaning from a name, a class path, a file and the command line; every default written down."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cl_bench.command.config import config_file, parse, plan_from
from cl_bench.command.rehearsal import Rehearsal
from cl_bench.command.sweep import read_suite
from cl_bench.errors import UserError
from cl_bench.registry import find

HOME = Path(__file__).resolve().parents[1]
SPLIT = ["--scenario", "split_digits", "--method", "finetune"]


def args(config: dict[str, Any], root: str = "method") -> dict[str, Any]:
    return dict(config[root]["init_args"])


def test_every_default_is_written_down_and_the_result_is_plain() -> None:
    config = parse(SPLIT)
    cls = find("cl_bench.methods", "finetune")
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items() if n != "backbone"}
    assert args(config) == defaults
    assert args(config, "backbone") == {"pretrained": True, "seed": 0}
    assert config["seed"] == 0 and config["compute"]["threads"] == 1 and config["source"]["epochs"] == 10
    assert json.loads(json.dumps(config)) == config


def test_what_parse_returns_parses_to_itself() -> None:
    config = parse([*SPLIT, "--method.epochs", "2", "--seed", "3", "--compute.threads", "2"])
    assert parse([], config) == config
    assert parse(["--seed", "4"], config) == {**config, "seed": 4}


def test_three_ways_to_name_a_class(tmp_path: Path) -> None:
    cls = find("cl_bench.methods", "ncm")
    by_name = parse(["--scenario", "split_digits", "--method", "ncm"])
    dotted = parse(["--scenario", "split_digits", "--method", f"{cls.__module__}:{cls.__name__}"])
    equals = parse(["--scenario=split_digits", "--method=ncm"])
    path = parse(["--scenario", "split_digits", "--method", f"{cls.__module__}.{cls.__name__}"])
    assert by_name == dotted == equals == path
    (tmp_path / "own_config.py").write_text(
        "from cl_bench import Method\n\nclass Own(Method):\n    '''Mine.'''\n\n"
        "    def __init__(self, backbone, *, lr: float = 0.5):\n        super().__init__(backbone, lr=lr)\n")
    own = parse(["--scenario", "split_digits", "--method", f"{tmp_path}/own_config.py:Own", "--method.lr", "0.25"])
    assert own["method"]["class_path"] == f"{tmp_path}/own_config.py:Own", "another process must find the file again"
    assert parse([], own) == own
    plan = plan_from(own)
    assert plan.method.__name__ == "Own" and plan.build(plan.backbone).lr == 0.25
    assert plan.names["method"]["label"] == "own_config.py:Own(lr=0.25)"


def test_an_option_may_stand_before_the_name_it_belongs_to() -> None:
    assert parse(["--method.epochs", "2", *SPLIT]) == parse([*SPLIT, "--method.epochs", "2"])


def test_a_file_then_options_that_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({
        "scenario": {"class_path": "split_digits", "init_args": {"per_class": 7}},
        "method": {"class_path": "finetune", "init_args": {"epochs": 3, "lr": 0.01}}, "seed": 5}))
    plain = parse(["--config", str(file)])
    assert args(plain)["epochs"] == 3 and args(plain)["lr"] == 0.01 and plain["seed"] == 5
    won = parse(["--config", str(file), "--method.epochs", "1", "--seed", "6", "--scenario.increment", "5"])
    assert args(won)["epochs"] == 1 and args(won)["lr"] == 0.01, "only what was named changes"
    assert won["seed"] == 6 and args(won, "scenario") == {**args(plain, "scenario"), "increment": 5}
    assert parse([f"--config={file}"]) == plain
    other = parse(["--config", str(file), "--method", "ncm"])
    assert other["method"]["class_path"].endswith(".NCM") and "epochs" not in args(other)


def test_two_files_the_later_wins_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("scenario: split_digits\nmethod: finetune\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("method: ncm\n")
    both = parse(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")])
    assert both["method"]["class_path"].endswith(".NCM") and both["seed"] == 1


def test_nested_scenarios_by_name(tmp_path: Path) -> None:
    argv = ["--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severity", "3", "--scenario.visits", "2",
            "--method", "tent"]
    config = parse(argv)
    inner = args(config, "scenario")["of"]
    assert inner["class_path"].endswith("DigitsC") and inner["init_args"]["severity"] == 3
    assert config["backbone"]["class_path"].endswith("glyph_resnet"), "a wrapper's backbone is that of what it wraps"
    plan = plan_from(config)
    assert plan.scenario.visits == 2 and plan.scenario.of.severity == 3
    assert plan.names["scenario"]["name"] == "recurring(of=digits_c(severity=3), visits=2)"
    file = tmp_path / "nested.yaml"
    file.write_text(yaml.safe_dump({"method": "tent", "scenario": {"class_path": "recurring", "init_args": {
        "visits": 2, "of": {"class_path": "digits_c", "init_args": {"severity": 3}}}}}))
    assert parse(["--config", str(file)]) == config


def test_nested_twice_and_not_at_all() -> None:
    twice = parse(["--scenario", "recurring", "--scenario.of", "correlated", "--scenario.of.of", "digits_c",
                   "--scenario.of.of.severity", "2", "--method", "tent"])
    assert args(twice, "scenario")["of"]["init_args"]["of"]["init_args"]["severity"] == 2
    bare = parse(["--scenario", "recurring", "--method", "tent"])
    assert bare["backbone"]["class_path"].endswith("glyph_resnet"), "without `of` it wraps Digits-C and needs its backbone"


def test_two_different_inner_scenarios_have_two_names() -> None:
    names = {plan_from(parse(["--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severity", s,
                              "--method", "tent"])).names["scenario"]["name"] for s in ("3", "4")}
    assert len(names) == 2, f"a table would put both under {names}"


def test_short_forms_of_compute() -> None:
    config = parse([*SPLIT, "--device", "cpu", "--threads=2", "--workers", "1", "--optimizers", "fused"])
    assert config["compute"] == {
        "device": "cpu", "precision": "32-true", "workers": 1, "threads": 2, "optimizers": "fused",
        "devices": 1, "strategy": "ddp", "layout": "auto", "compile": False}


def test_a_label_names_what_was_changed() -> None:
    plan = plan_from(parse([*SPLIT, "--method.epochs", "2", "--scenario.per_class", "9"]))
    assert plan.names["method"]["label"] == "finetune(epochs=2)"
    assert plan.names["scenario"]["name"] == "split_digits(per_class=9)"
    assert plan.names["backbone"]["label"] == "glyph_vit"


def test_a_label_is_the_same_when_it_comes_back_from_a_record() -> None:
    """JSON has no tuples: a resumed run must not become another row of the table."""
    config = parse(["--scenario", "split_digits", "--method", "codyra", "--method.rank", "8"])
    for again in (config, json.loads(json.dumps(config)), parse([], json.loads(json.dumps(config)))):
        assert plan_from(again).names["method"]["label"] == "codyra(rank=8)"


def test_a_plan_is_checked_when_it_is_made_and_a_machine_when_it_is_asked_for() -> None:
    with pytest.raises(UserError, match="needs source"):
        plan_from(parse(["--scenario", "split_digits", "--method", "eata"]))
    rehearsal = Rehearsal()
    rehearsal(parse(SPLIT))
    with pytest.raises(UserError, match="needs source"):
        rehearsal(parse(["--scenario", "split_digits", "--method", "eata"]))
    with pytest.raises(UserError, match="is not a device"):
        rehearsal(parse([*SPLIT, "--device", "gpuu"]))
    Rehearsal(elsewhere=True)(parse([*SPLIT, "--device", "gpuu"]))


def test_config_files_by_name_and_path(tmp_path: Path) -> None:
    assert config_file("quickstart").name == "quickstart.yaml"
    assert config_file("suite/quickstart") == config_file("quickstart")
    assert config_file("configs/suite/quickstart.yaml").name == "quickstart.yaml"
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    assert config_file(str(tmp_path / "x.yaml")) == tmp_path / "x.yaml"
    with pytest.raises(UserError, match="did you mean quickstart"):
        config_file("quickstrat")


@pytest.mark.parametrize("file", sorted((HOME / "configs" / "run").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_config_is_valid(file: Path) -> None:
    plan_from(parse(["--config", str(file)]), backbone=None)
    assert file.read_text().startswith("# "), "its first line says what it should reach"


@pytest.mark.parametrize("file", sorted((HOME / "configs" / "suite").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_suite_is_valid(file: Path) -> None:
    suite = read_suite(file)
    assert suite.about and suite.jobs
    built = Path("../shared").is_dir() or "../shared" not in file.read_text()  # a scenario from files needs them to be built
    seen = set()
    for job in suite.jobs:
        key = json.dumps({**job.config, "seed": 0}, sort_keys=True)
        if key not in seen:
            config = parse([], job.config)
            if built:
                plan_from(config, backbone=None)
        seen.add(key)


# ---------------------------------------------------------------------------- presets
def test_a_preset_is_published_values_that_options_may_change_and_the_record_names() -> None:
    from cl_bench.command.parts import read_part
    from cl_bench.method import Method

    part = read_part("method", Method, {"class_path": "cotta", "preset": "imagenet"})
    args = part["init_args"]
    assert part["preset"] == "imagenet"
    official = {"lr": 1e-2, "optimizer": "sgd", "restore": 1e-3, "threshold": 0.1, "symmetric": True}  # cfgs/imagenet_c/cotta
    assert {k: args[k] for k in official} == official
    assert read_part("method", Method, part) == part, "what was read once means the same when it is read again"
    changed = read_part("method", Method, {"class_path": "cotta", "init_args": {"preset": "imagenet", "lr": 0.5}})
    assert changed["init_args"] == {**args, "lr": 0.5}
    assert "preset" not in read_part("method", Method, "cotta")
    for name, given in (("cotta", "imagenett"), ("ncm", "imagenet")):
        with pytest.raises(UserError, match="has no preset 'image"):
            read_part("method", Method, {"class_path": name, "preset": given})


def test_every_preset_is_one_of_options_that_the_method_takes() -> None:
    from cl_bench.command.parts import read_part
    from cl_bench.method import Method
    from cl_bench.registry import entries, find

    named = [(name, preset) for name in entries("cl_bench.methods") for preset in find("cl_bench.methods", name).presets]
    assert len(named) >= 15
    for name, preset in named:
        given = find("cl_bench.methods", name).presets[preset]
        args = read_part("method", Method, {"class_path": name, "preset": preset})["init_args"]
        assert {k: args[k] for k in given} == given, (name, preset)
