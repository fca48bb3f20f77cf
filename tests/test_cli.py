"""The command line: what works, and that every mistake ends in one sentence, exit code 2 and nothing half written."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_bench.command.cli import main
from cl_bench.errors import UserError
from cl_bench.records.results import load
from cl_bench.registry import find

TINY = ["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "ncm", "--device", "cpu"]
USER_CODE = '''
from cl_bench import Method, Scenario

class Mine(Method):
    """A method of mine."""

class Stream(Scenario):
    """A scenario of mine."""

class Neither:
    """Nothing that a run can use."""

def function(backbone):
    return backbone
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    file = tmp_path / "mine_cli.py"
    file.write_text(USER_CODE)
    return file


def mistake(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run ``argv`` and return its one sentence; nothing may be on disk but what was there."""
    runs = tmp_path / "runs"
    if argv[:1] in (["run"], ["suite"]):
        argv = [*argv, "--runs", str(runs), "--tracking", "none"]
    before = sorted(runs.rglob("*"))
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 2, (code, err)
    assert err.startswith("cl-bench: ") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Namespace(" not in err and len(err) < 500, err
    assert out == ""
    assert sorted(runs.rglob("*")) == before, "a mistake left something behind"
    return err


@pytest.mark.parametrize(("argv", "said"), [
    ([], "required: COMMAND"),
    (["rum"], "did you mean run?"),
    (["list", "methodz"], "did you mean methods?"),
    (["list", "methods", "--bogus"], "no option '--bogus'"),
    (["list", "methods", "--backbone", "glyph_vit"], "goes with `cl-bench list adapters`"),
    (["list", "adapters", "--backbone", "glyph_vti"], "did you mean glyph_vit"),
    (["check"], "say what to check"),
    (["check", "tnet"], "did you mean tent"),
    (["compare", "/no/such/folder"], "there is no folder /no/such/folder"),
    (["serve", "/no/such/folder"], "there is no folder /no/such/folder"),
    (["run"], "name a scenario with --scenario NAME"),
    (["run", "--scenario", "split_digits"], "name a method with --method NAME"),
    (["run", "--method", "ncm"], "name a scenario with --scenario NAME"),
    (["run", "--scenario", "split_digits", "--method.epochs", "2"], "name a method with --method NAME"),
    (["run", *TINY, "--sede", "3"], "there is no option 'sede'; did you mean seed?"),
    (["run", *TINY, "--compute.devcie", "cpu"], "did you mean compute.device"),
    (["run", *TINY, "stray"], "'stray' is no option of a run"),
    (["run", *TINY, "--method", "finetune", "--method.epoch", "3"], "Finetune has no option 'epoch'; did you mean epochs"),
    (["run", *TINY, "--method.zzz", "3"], "NCM has no option 'zzz'; it takes batch_size."),
    (["run", *TINY, "--method", "finetune", "--method.epochs", "three"], "epochs must be int, not 'three'"),
    (["run", *TINY, "--method", "finetune", "--method.lr", "fast"], "lr must be float, not 'fast'"),
    (["run", *TINY, "--seed", "x"], "seed must be int, not 'x'"),
    (["run", *TINY, "--checkpoint", "perhaps"], "checkpoint must be bool"),
    (["run", *TINY, "--threads", "-1"], "compute.threads must be at least 0"),
    (["run", *TINY, "--precision", "7-bit"], "compute.precision must be one of '32-true'"),
    (["run", *TINY, "--device", "gpuu"], "'gpuu' is not a device; use cpu, cuda or auto"),
    (["run", *TINY, "--device", "mps"], "use cpu, cuda or auto"),
    (["run", *TINY, "--method", "codira"], "no method is called 'codira'; did you mean codyra"),
    (["run", *TINY, "--method", "zzzzzz"], "see `cl-bench list methods`"),
    (["run", *TINY, "--scenario", "split_digit"], "did you mean split_digits"),
    (["run", *TINY, "--backbone", "glyph_vti"], "did you mean glyph_vit"),
    (["run", *TINY, "--backbone", "cifar_resnet"], "cifar_resnet needs folder: give --backbone.folder VALUE"),
    (["run", *TINY, "--backbone.pretrained", "false"], "name a backbone with --backbone NAME"),
    (["run", *TINY, "--method", "nopackage.module:Mine"], "there is no module 'nopackage.module'"),
    (["run", *TINY, "--method", "no_such_file.py:Mine"], "there is no file no_such_file.py"),
    (["run", *TINY, "--method", "digits_c"], "no method is called 'digits_c'"),
    (["run", *TINY, "--method", "inflora", "--method.tasks", "2"], "tasks=2 but there are 5 experiences or more"),
    (["run", *TINY, "--method", "coda_prompt", "--method.tasks", "2"], "tasks=2 but there are 5 experiences or more"),
    (["run", *TINY, "--method", "eata"], "method eata needs source, which scenario split_digits(per_class=4) does not give"),
    (["run", *TINY, "--scenario.answers", "sen"], "answers must be one of 'seen', 'task', 'all', not 'sen'"),
    (["run", *TINY, "--scenario.increment", "0"], "increment must be at least 1"),
    (["run", *TINY, "--scenario.order", "[1,2]"], "order must list each of the classes"),
    (["run", "--scenario", "recurring", "--scenario.of", "digitsc", "--method", "tent"], "did you mean digits_c"),
    (["run", "--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severty", "3", "--method", "tent"],
     "DigitsC has no option 'severty'; did you mean severity?"),
    (["run", "--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severity", "x", "--method", "tent"],
     "severity must be int, not 'x'"),
    (["run", "--scenario", "recurring", "--scenario.of", "digits_c", "--scenario.of.severity", "9", "--method", "tent"],
     "severity 9: corruptions have severities 1 to 5"),
    (["run", "--scenario", "recurring", "--scenario.of.severity", "3", "--method", "tent"],
     "name a scenario with --scenario.of NAME"),
    (["run", "--scenario", "recurring", "--scenario.of", "split_digits", "--method", "tent"], "no test-time stream"),
    (["run", "--config", "split_digits_codira"], "did you mean split_digits_codyra"),
    (["run", "--config", "/no/such/file.yaml"], "there is no config '/no/such/file.yaml'"),
    (["run", "--config"], "there is no config ''"),
    (["run", "--method.help", "codira"], "did you mean codyra"),
    (["run", "--method.help"], "--method.help needs a name; see `cl-bench list methods`"),
    (["run", *TINY, "--method"], "--method needs a name"),
    (["compare", "/no/such/folder", "--export", "t.docx"], "--export t.docx: a table's file ends in .csv, .md, .tex"),
    (["compare", "--html", "/"], "--html / is a folder; name a file in it"),
    (["suite", "quickstart", "--html", "/"], "--html / is a folder; name a file in it"),
    (["run", "--resume", "/no/such/run"], "/no/such/run holds no run"),
    (["suite", "quikstart"], "did you mean quickstart"),
    (["suite", "split_digits_codyra"], "is no suite"),
    (["suite", "quickstart", "--jobs", "-1"], "argument --jobs: give the number of processes"),
    (["serve", "--port", "99999"], "a port is a number from 0 to 65535"), (["ui", "--port", "-1"], "a port is a number"),
    (["list", "adapters", "--backbone", "os:getcwd"], "getcwd made no backbone, but '/"),
    (["list", "adapters", "--backbone", "timm_model"], "timm_model needs name"),
    (["list", "adapters", "--backbone", ""], "must not be empty"), (["sync", ".", "--tracking", ""], "must not be empty"),
    (["suite", "quickstart", "--launcher", "x"], "no launcher is called 'x'"),
    (["suite", "quickstart", "--launcher", "os:getcwd"], "os:getcwd is no launcher: it must take configs, run and workers"),
    (["compare", ""], "must have a name"), (["run", *TINY, "--resume", ""], "must have a name"),
    (["run", "--resume", "\ud800"], "no folder or file can be called '\\ud800'"),
    (["compare", "a\0b"], "no folder or file can be"), (["compare", "x" * 300], "no folder or file can be called 'xxx"),
    (["x" * 5000], "cl-bench has no 'xxx"),
    (["sync", "a", "--runs", "b"], "works on one folder of records; it was given a, b"),
    (["ui", "a", "b"], "no option 'b'"),
    (["suite", "quickstart", "--compute.devcie", "cpu"], "did you mean compute.device"),
], ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None)
def test_a_mistake_is_one_sentence(argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in mistake(argv, tmp_path, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no CUDA device" in mistake(["run", *TINY, "--device", "cuda"], tmp_path, capsys)


@pytest.mark.parametrize(("content", "said"), [
    ("scenario: [split_digits\n", "is not valid YAML"),
    ("- one\n- two\n", "must hold a mapping"),
    ("just words", "must hold a mapping"),
    ("scenario: split_digits\nmethdo: ncm\n", "there is no option 'methdo'; did you mean method?"),
    ("scenario: split_digits\nmethod: {rank: 4}\n", "method must be a name, or a mapping with class_path and init_args"),
    ("scenario: split_digits\nmethod: {class_path: ncm, args: {}}\n", "not one with class_path, args"),
    ("scenario: split_digits\nmethod: {class_path: ncm, init_args: 3}\n", "init_args of ncm must be a mapping"),
    ("scenario: split_digits\nmethod: {class_path: ncm, init_args: {foo: 1}}\n", "NCM has no option 'foo'"),
    ("scenario: split_digits\nmethod: {class_path: finetune, init_args: {lr: x}}\n", "lr must be float, not 'x'"),
    ("scenario: 3\nmethod: ncm\n", "scenario must be a name, or a mapping"),
    ("scenario: split_digits\nmethod: ncm\nseed: many\n", "seed must be int, not 'many'"),
    ("scenario: split_digits\nmethod: ncm\ncompute: {devcie: cpu}\n", "did you mean compute.device"),
])
def test_a_mistake_in_a_file(content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(content)
    assert said in mistake(["run", "--config", str(tmp_path / "run.yaml")], tmp_path, capsys)


def test_a_file_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not valid YAML" in mistake(["run", "--config", str(tmp_path / "run.yaml")], tmp_path, capsys)


@pytest.mark.parametrize(("content", "said"), [
    ("runs: 3\n", "is no suite"),
    ("runs: []\n", "must list mappings"),
    ("runs: [a]\n", "must list mappings"),
    ("sedes: [0]\nruns: [{scenario: split_digits, methods: [ncm]}]\n", "unknown key 'sedes'; did you mean 'seeds'?"),
    ("runs: [{scenario: split_digits, methdos: [ncm]}]\n", "unknown key 'methdos'; did you mean 'methods'?"),
    ("runs: [{scenario: split_digits, methods: ncm}]\n", "needs a scenario and a list of methods"),
    ("runs: [{methods: [ncm]}]\n", "needs a scenario and a list of methods"),
    ("seeds: 3\nruns: [{scenario: split_digits, methods: [ncm]}]\n", "must be a list of whole numbers, not 3"),
    ("name: ../../x\nruns: [{scenario: split_digits, methods: [ncm]}]\n", "must begin with a letter or digit and hold no /"),
    ("name: null\nruns: [{scenario: split_digits, methods: [ncm]}]\n", "hold no / and no \\, not null"),
    ("runs: [{scenario: split_digits, methods: [ncm], seeds: [-1]}]\n", "seed must be at least 0, not -1"),
    ("runs: [{scenario: {class_path: split_digits, init_args: {per_class: -3}}, methods: [ncm]}]\n",
     "split_digits(per_class=-3) ncm seed 0: scenario.per_class must be at least 0, not -3"),
    ("orders: [1]\nruns: [{scenario: {class_path: split_digits, init_args: [1]}, methods: [ncm]}]\n", "must be a mapping"),
    ("seeds: [a]\nruns: [{scenario: split_digits, methods: [ncm]}]\n", "must be a list of whole numbers"),
    ("runs: [{scenario: split_digits, methods: [ncm, {finetune: {lr: 1}}]}]\n", "method must be a name, or a mapping"),
])
def test_a_mistake_in_a_suite(content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(content)
    assert said in mistake(["suite", str(tmp_path / "suite.yaml")], tmp_path, capsys)


@pytest.mark.parametrize(("part", "name", "said"), [
    ("--method", "Mnie", "Did you mean Mine"),
    ("--method", "Neither", "Neither is no method: it is not a subclass of cl_bench.Method"),
    ("--method", "function", "function is no method"),
    ("--method", "Stream", "Stream is no method"),
    ("--scenario", "Mine", "Mine is no scenario: it is not a subclass of cl_bench.Scenario"),
    ("--backbone", "Mine", "Mine is no backbone"),
])
def test_a_wrong_class_in_a_file(part: str, name: str, said: str, code: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert said in mistake(["run", *TINY, part, f"{code}:{name}"], tmp_path, capsys)


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file stands here")
    for runs in ("taken", "taken/inside"):
        assert main(["run", *TINY, "--runs", str(tmp_path / runs), "--tracking", "none"]) == 2
        assert "cannot make the folder" in capsys.readouterr().err
    assert "choose another with --html" in mistake(["suite", "quickstart", "--html", str(tmp_path / "taken" / "page.html")],
                                                   tmp_path, capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codira"):
        main(["run", *TINY, "--method", "codira", "--debug", "--runs", str(tmp_path), "--tracking", "none"])
    ran = subprocess.run([sys.executable, "-m", "cl_bench.cli", "compare", "/no/such/folder", "--debug"],
                         capture_output=True, text=True)
    assert ran.returncode == 1 and "Traceback" in ran.stderr and "UserError: there is no folder" in ran.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    runs = tmp_path_factory.mktemp("cli") / "runs"
    assert main(["run", *TINY, "--runs", str(runs), "--tracking", "none"]) == 0
    return runs


def only(runs: Path) -> Path:
    (folder,) = [f for f in runs.iterdir() if (f / "run.json").is_file()]
    return folder


def test_run_prints_its_table_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY, "--seed", "4", "--runs", str(tmp_path / "runs"), "--tracking", "none"]) == 0
    out = capsys.readouterr().out
    folder = only(tmp_path / "runs")
    assert f"record: {folder}" in out and "ncm" in out
    run = load(folder)
    assert run.done and run.seed == 4 and run.record["config"]["seed"] == 4


def test_compare_exports_and_page(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, page = tmp_path / "t.csv", tmp_path / "page.html"
    assert main(["compare", str(finished), "--export", str(table), "--html", str(page)]) == 0
    assert "ncm" in capsys.readouterr().out
    assert "ncm" in table.read_text() and page.read_text().lstrip().lower().startswith("<!doctype html")
    assert main(["compare", str(finished), "--export", str(tmp_path / "t.docx"), "--html", str(tmp_path / "no.html")]) == 2
    out, err = capsys.readouterr()
    assert "t.docx" in err and not out and not (tmp_path / "no.html").exists(), "refused before anything is written"
    assert main(["compare", str(tmp_path)]) == 2
    assert "there are no runs here yet" in capsys.readouterr().err


def test_compare_refuses_to_mix_protocols_and_names_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    for pretrained in ("true", "false"):
        assert main(["run", *TINY, "--backbone", "glyph_vit", "--backbone.pretrained", pretrained, "--runs", runs,
                     "--tracking", "none"]) == 0
    capsys.readouterr()
    assert main(["compare", runs]) == 2
    err = capsys.readouterr().err
    assert "cannot stand in one table" in err and "weights" in err and err.count("\n") == 1
    assert main(["compare", runs, "--mix"]) == 0
    assert "Mixed protocols" in capsys.readouterr().out


def test_what_cannot_be_resumed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only(finished)
    before = {f: f.read_bytes() for f in folder.iterdir()}
    assert "has finished; there is nothing to resume" in mistake(["run", "--resume", str(folder)], tmp_path, capsys)
    assert "leave out --seed" in mistake(["run", "--resume", str(folder), "--seed", "2"], tmp_path, capsys)
    assert "holds no run" in mistake(["run", "--resume", str(tmp_path)], tmp_path, capsys)
    assert before == {f: f.read_bytes() for f in folder.iterdir()}
    (folder / "DONE").unlink()  # as if it had been killed between its last record and its mark
    assert "has finished; there is nothing to resume" in mistake(["run", "--resume", str(folder)], tmp_path, capsys)
    assert before == {f: f.read_bytes() for f in folder.iterdir()}


def test_a_run_without_a_checkpoint_starts_over_and_says_so(finished: Path, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "runs" / only(finished).name
    shutil.copytree(only(finished), copy)
    (copy / "DONE").unlink()
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    assert main(["run", "--resume", str(copy), "--tracking", "none", "--runs", str(tmp_path / "runs")]) == 0
    assert "stopped before its first checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "suite", "list", "check", "compare", "select", "serve", "sync", "ui"])
def test_help_answers(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"cl-bench {command}" in capsys.readouterr().out


LIGHT = """
import sys
from cl_bench.command.cli import main
heavy = {"torch", "numpy", "pytorch_lightning", "mlflow", "avalanche", "timm", "torchvision", "jsonargparse", "plotly",
         "sklearn", "scipy", "pandas"}
for argv in (["--help"], ["run", "--help"], ["suite", "--help"], ["list", "--help"], ["check", "--help"],
             ["compare", "--help"], ["select", "--help"], ["serve", "--help"], ["sync", "--help"], ["ui", "--help"],
             ["--version"], ["list", "methods"], ["list", "scenarios", "--json"], ["list", "backbones"], ["list", "adapters"],
             ["list", "suites"], ["list", "configs"]):
    try:
        main(argv)
    except SystemExit as left:
        assert not left.code, (argv, left.code)
    found = heavy & set(sys.modules)
    if found:
        sys.exit(f"{argv} imports {sorted(found)}")
"""


def test_help_and_lists_import_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["eata"]["needs"] == ["source"] and rows["codyra"]["paper"]
    assert main(["list", "adapters", "--json", "--backbone", "glyph_vit"]) == 0
    counts = {r["name"]: r["parameters"] for r in json.loads(capsys.readouterr().out)}
    trunk = find("cl_bench.backbones", "glyph_vit")().model
    linears = [m for n, m in trunk.named_modules() if n.endswith(("qkv", "attn.proj", "fc1", "fc2"))]
    assert counts["lora"] == sum(8 * (m.in_features + m.out_features) for m in linears), "r (in + out) at every linear"


@pytest.mark.parametrize(("part", "name", "words"), [
    ("method", "codyra", ["anchored pattern of layer names"]),
    ("scenario", "digits_c", ["--scenario.severity", "1 to 5", "default: 60"]),
    ("backbone", "glyph_vit", ["--backbone.pretrained", "load the embedded weights"]),
])
def test_help_on_one_part_is_its_signature_and_docstring(part: str, name: str, words: list[str],
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", f"--{part}.help", name])
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    takes = [p for n, p in inspect.signature(find(f"cl_bench.{part}s", name)).parameters.items() if n != "backbone"]
    for word in [*words, *(f"--{part}.{p.name} " for p in takes), *(f"default: {p.default})" for p in takes[:1])]:
        assert word in out, out


def test_check_passes_fails_and_says_so(tmp_path: Path, code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{code}:Neither"]) == 1
    assert "is not a subclass of cl_bench.Method" in capsys.readouterr().out
    assert main(["check", "split_digits"]) == 0
    assert "passed split_digits" in capsys.readouterr().out


def test_every_command_takes_the_folder_of_records_both_ways(finished: Path, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["compare"], ["select"]):
        said = []
        for folder in ([str(finished)], ["--runs", str(finished)]):
            code = main([*command, *folder])
            said.append((code, capsys.readouterr()))
        assert said[0] == said[1] and "no folder" not in said[0][1].err
    for command in (["serve"], ["compare"], ["select"]):
        for folder in (["/no/such/folder"], ["--runs", "/no/such/folder"]):
            assert main([*command, *folder]) == 2 and "there is no folder /no/such/folder" in capsys.readouterr().err
    for folder in ([str(tmp_path)], ["--runs", str(tmp_path)]):
        assert main(["ui", *folder]) == 2 and f"no MLflow store {tmp_path}/mlflow.db" in capsys.readouterr().err


def test_a_suites_help_shows_what_overrides_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["suite", "--help"])
    out = capsys.readouterr().out
    for option in ("--method NAME", "--device cpu|cuda|auto", "--seed N", "--checkpoint", "--jobs", "--again", "--html"):
        assert option in out
