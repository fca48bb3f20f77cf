"""The published protocols: what their files say, what is asked of a machine, and all of them executed on synthetic copies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cl_bench.cli import main
from cl_bench.command.config import parse
from cl_bench.command.dry_run import Copies, cut, dry_run
from cl_bench.command.published import facts_of
from cl_bench.command.shipped import shipped_configs
from cl_bench.command.suites import Job, read_suite
from cl_bench.data.layouts import LAYOUTS, synthetic
from cl_bench.registry import find

PUBLISHED = {key: file for key, file in shipped_configs().items() if key.startswith("published/")}


def label(method: object) -> str:
    """A method as ``reach`` calls it: its name and, for APER, what it tunes with."""
    if isinstance(method, str):
        return method
    assert isinstance(method, dict)
    args = method.get("init_args") or {}
    return " ".join([method["class_path"], *([args["pet"]] if method["class_path"] == "aper" else [])])


def test_the_tables_of_the_field_are_there():
    assert len(PUBLISHED) >= 25
    data = {key.partition("/")[2].partition("_b0")[0] for key in PUBLISHED}
    assert {"cifar100", "imagenet_r", "imagenet_a", "cub", "objectnet", "omnibenchmark", "vtab", "core50_ranpac",
            "domainnet_ranpac", "cifar10_c_wrn28_10", "cifar100_c_resnext29", "imagenet_c_resnet50",
            "imagenet_c_vit_b_16", "mtil_order1", "mtil_order2", "x_tail"} <= data
    assert sum(key.startswith("published/c3box_") for key in PUBLISHED) == 18, "nine data sets, B0 and half-base"


@pytest.mark.parametrize("key", sorted(PUBLISHED))
def test_a_published_file_is_complete(key):
    """Every method has a number and every number a method; the first lines hold the numbers and where they come from; weights
    are named with their tag."""
    file = PUBLISHED[key]
    suite, facts, text = read_suite(file), facts_of(file), file.read_text(encoding="utf-8")
    assert suite.name == key.partition("/")[2] == file.stem
    head = " ".join(line.lstrip("# ") for line in text.partition("\nname:")[0].splitlines())
    labels = [label(job.config["method"]) for job in suite.jobs]
    assert set(facts["reach"]) == set(labels) and facts["source"]
    for name, numbers in facts["reach"].items():
        shown = re.search(rf"{name} ([0-9.\- /]+[0-9])", head)
        assert shown and {float(v) for v in re.findall(r"[0-9.]+[0-9]", shown[1])} == set(numbers.values()), name
    for part in facts["source"].split("; "):
        assert part.split(",")[0] in head
    for job in suite.jobs:
        args = job.config["backbone"]["init_args"]
        kind = job.config["backbone"]["class_path"]
        assert "." in args["name"] if kind == "timm_model" else args["pretrained" if kind == "open_clip_model" else "weights"]
    if "cifar" in key and "_c_" in key:
        corrupted_cifar(suite.jobs)


def corrupted_cifar(jobs: tuple[Job, ...]) -> None:
    """What CIFAR-C is published with: batches of 200, and the values for 100 classes where a method has some."""
    for job in jobs:
        args = job.config["scenario"]["init_args"]
        assert args.get("of", {"init_args": args})["init_args"]["test_batch_size"] == 200
        method = job.config["method"]
        presets = find("cl_bench.methods", label(method)).presets
        preset = method.get("preset") if isinstance(method, dict) else None
        hundred = "cifar100" in job.config["backbone"]["init_args"]["weights"]
        assert preset == ("cifar100" if hundred and "cifar100" in presets else None)


def test_imagenet_suites_take_published_presets_where_a_method_has_one():
    """Values that stand in a suite instead would part from the method's own; what a network asks beside them may."""
    files = [file for key, file in PUBLISHED.items() if "imagenet_c" in key]
    chosen = [job.config["method"] for file in files for job in read_suite(file).jobs]
    having = [m for m in chosen if "imagenet" in find("cl_bench.methods", m if isinstance(m, str) else m["class_path"]).presets]
    assert len(having) > 40 and all(isinstance(m, dict) and m["preset"] == "imagenet" for m in having)


def kinds(job: Job) -> set[tuple[str, ...]]:
    """What a run tries: its method with the words among its options, on its kind of network; and the layout of its data."""
    method, scenario = job.config["method"], job.config["scenario"]
    args = method.get("init_args") or {} if isinstance(method, dict) else {}
    words = [v for v in args.values() if isinstance(v, str)]
    inner = scenario["init_args"].get("of", scenario)["class_path"]
    kind = job.config["backbone"]["class_path"]
    named = job.config["backbone"]["init_args"].get("name", kind)
    network = kind if kind == "open_clip_model" else "vit" if "vit" in named else "resnet"
    return {("method", label(method), network, *words), ("layout", scenario["class_path"], inner)}


SEQUENCES = {key for key in PUBLISHED if re.match("published/(mtil|x_tail)", key)}


@pytest.mark.parametrize("some", [PUBLISHED.keys() - SEQUENCES, SEQUENCES], ids=["single data sets", "sequences of data sets"])
def test_every_published_suite_runs_on_a_synthetic_copy_of_its_data(tmp_path, some):
    """Every config is read, cut down and named; of all files together every method with every choice of words, and every
    layout, goes its whole way (`cl-bench suite published/NAME --dry-run` runs all of one file)."""
    tried: set[tuple[str, ...]] = set()
    failures, copies, count = [], Copies(tmp_path), 0
    for file in map(PUBLISHED.__getitem__, sorted(some)):
        jobs = read_suite(file).jobs
        for job in jobs:
            assert cut(parse([], job.config), copies)["backbone"]["class_path"].startswith("cl_bench.backbones.stand_ins.")
        chosen = []
        for job in jobs:
            if not kinds(job) <= tried:
                chosen.append(job)
                tried |= kinds(job)
        count += len(chosen)
        failures += [f"{file.stem}: {sentence}" for sentence in dry_run(chosen)]
    assert not failures, "\n".join(failures)
    assert count >= (8 if some == SEQUENCES else 40)


def test_the_command_line_rehearses_a_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["suite", "published/cub_b0_inc20_ranpac", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("[ok]") == 2 and "mean nothing" in out and not Path("runs").exists()
    assert main(["suite", "quickstart", "--dry-run"]) == 1
    assert "no synthetic copy of the data of digits_c" in capsys.readouterr().out


def test_the_check_says_what_is_missing_and_what_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["suite", "published/vtab_b0_inc10_sema", "--check", "--backbone.name", "test_vit.r160_in1k"]) == 1
    out = capsys.readouterr().out
    assert "[missing] data: missing" in out and "train/<class>/<image>" in out
    assert "[missing] weights" in out and "--backbone.checkpoint_path" in out and "[ok] estimate: about" in out
    synthetic("split_vtab", tmp_path / "data/vtab", {})
    assert main(["suite", "published/vtab_b0_inc10_sema", "--check", "--scenario.increment", "2", "--backbone.name",
                 "test_vit.r160_in1k", "--backbone.pretrained", "false"]) == 1
    out = capsys.readouterr().out
    assert "[missing] data: other data" in out and "4 classes where 50 are published" in out and "[ok] weights" in out


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_synthetic_copy_is_the_same_each_time(name, tmp_path):
    options = {"corruptions": ["fog"], "severity": 5}
    first, second = (synthetic(name, tmp_path / part, options) for part in "ab")
    assert first.keys() == second.keys()
    files = [sorted(f.relative_to(tmp_path / part) for f in (tmp_path / part).rglob("*") if f.is_file()) for part in "ab"]
    assert files[0] == files[1]
    for file in files[0]:
        texts = [(tmp_path / part / file).read_bytes().replace(bytes(tmp_path / part), b"") for part in "ab"]
        assert texts[0] == texts[1], file
