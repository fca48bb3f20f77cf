"""Values that make no sense are refused before any work, in one sentence with the option's name, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fuzz_cases import few_digits

from cl_bench.command.cli import main
from cl_bench.command.config import parse, plan_from
from cl_bench.command.parts import class_of, read_part, takes
from cl_bench.command.typed import Reader, Word
from cl_bench.engine.compute import Compute
from cl_bench.errors import UserError
from cl_bench.records.results import load
from cl_bench.registry import GROUPS, find

LEARN = ["--scenario", "split_digits", "--scenario.per_class", "4", "--method", "finetune", "--method.epochs", "1", "--device",
         "cpu"]
STREAM = ["--scenario", "digits_c", "--scenario.corruptions", "fog", "--method", "tent", "--device", "cpu"]


def refused(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence by which a run is refused; nothing may be left of it."""
    code = main([*argv, "--runs", str(tmp_path / "runs"), "--tracking", "none"])
    out, err = capsys.readouterr()
    assert code == 2, (code, err)
    assert err.startswith("cl-bench: ") and err.count("\n") == 1 and len(err) < 500 and not out, err
    assert "Error" not in err and not (tmp_path / "runs").exists()
    return err


@pytest.mark.parametrize(("options", "said"), [
    (["--compute.threads", "100000"], "compute.threads must be at most 1024, not 100000"),
    (["--threads", "-1"], "compute.threads must be at least 0"),
    (["--workers", "99999"], "compute.workers must be at most 256"),
    (["--scenario.per_class", "-3"], "scenario.per_class must be at least 0, not -3"),
    (["--scenario.order", "-3"], "scenario.order must be at least 0, not -3"),
    (["--scenario.order", "4294967296"], "scenario.order must be at most 4294967295"),
    (["--scenario.increment", "0"], "scenario.increment must be at least 1, not 0"),
    (["--method.epochs", "-1"], "method.epochs must be at least 0, not -1"),
    (["--method.lr", ".nan"], "method.lr must be a finite number, not nan"),
    (["--method.lr", "nan"], "method.lr must be float, not 'nan'"),
    (["--method.lr", "1e999"], "method.lr must be a finite number, not inf"),
    (["--method.lr", "-0.1"], "method.lr must be at least 0, not -0.1"),
    (["--method.lr", ""], "method.lr must be float, not ''"),
    (["--method.batch_size", "true"], "method.batch_size must be int, not 'true'"),
    (["--method.batch_size", "2.5"], "method.batch_size must be int, not '2.5'"),
    (["--method.batch_size", "null"], "method.batch_size must be int, not 'null'"),
    (["--method.masked", "1"], "method.masked must be bool, not '1'"),
    (["--seed", "null"], "seed must be int, not 'null'"), (["--seed", "-1"], "seed must be at least 0, not -1"),
    (["--seed", "18446744073709551616"], "seed must be at most 9223372036854775807, not 18446744073709551616"),
    (["--seed", "9" * 5000], "seed must be int, not '999"), (["--seed", "1e3"], "seed must be int, not '1e3'"),
    (["--source.epochs", "-1"], "source.epochs must be at least 0"),
    (["--source.batch_size", "0"], "source.batch_size must be"),
    (["--checkpoint_every", "-1"], "checkpoint_every must be at least 0"),
    (["--device", ""], "compute.device must not be empty"), (["--device", "cpu:7"], "device 'cpu:7' is not supported"),
    (["--method", "lora", "--method.r", "-2"], "method.r must be at least 1, not -2"),
    (["--method", "lora", "--method.r", "1000000000"], "method.r must be at most 65536"),
    (["--method", "lora", "--method.at", ""], "method.at must not be empty"),
    (["--method", "lora", "--method.at", "("], "at='(' is not a regular expression"),
    (["--method", "lora", "--method.at", "x"], "at='x' matches no layer"),
    (["--method", "lora", "--method.rows", "[z]"], "rows names ['z']: use some of q, k, v"),
    (["--method", "l2p", "--method.pool", "2"], "top_k=4 prompts of a pool of 2 cannot be chosen"),
    (["--method", "codyra", "--method.rank", "-2"], "method.rank must be at least 1, not -2"),
    (["--backbone", "glyph_vit", "--backbone.seed", "-1"], "backbone.seed must be at least 0"),
    (["--backbone", "timm_model", "--backbone.name", ""], "backbone.name must not be empty"),
], ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else None)
def test_a_value_of_a_run(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(["run", *LEARN, *options], tmp_path, capsys)


@pytest.mark.parametrize(("options", "said"), [
    (["--scenario.test_batch_size", "0"], "scenario.test_batch_size must be at least 1, not 0"),
    (["--scenario.noise_seed", "-1"], "scenario.noise_seed must be at least 0"),
    (["--scenario.severity", "0"], "severity 0: corruptions have severities 1 to 5"),
    (["--scenario.corruptions", "[]"], "corruptions []: use one of"),
    (["--method", "cotta", "--method.restore", "1.5"], "method.restore must be at most 1, not 1.5"),
    (["--method", "vida", "--backbone", "glyph_resnet"], "ViDA adapts the linear layers inside attention and found none"),
    (["--method", "label_shift_adapter", "--method.host", "eata", "--method.host.margin", "-1"],
     "method.host.margin must be at least 0, not -1"),
], ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else None)
def test_a_value_of_a_stream(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(["run", *STREAM, *options], tmp_path, capsys)


def test_values_inside_of_a_wrapper_have_their_whole_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "--scenario", "recurring", "--scenario.of", "correlated", "--scenario.of.of", "digits_c", "--method", "tent"]
    for option, said in (("of.of.test_batch_size", "0"), ("of.delta", "0"), ("visits", "-3")):
        err = refused([*argv, f"--scenario.{option}", said], tmp_path, capsys)
        assert f"scenario.{option} must be " in err and f"not {said}." in err


@pytest.mark.parametrize(("text", "said"), [
    ("a: &a {b: *a}", "an alias to what it stands in"),
    ("scenario: split_digits\nmethod: ncm\nseed: 1\nseed: 2\n", "the key 'seed' stands here twice"),
    ("scenario: split_digits\nmethod: ncm\nlrr: {init_args: {}}\n", "there is no option 'lrr'"),
    ("scenario: split_digits\nmethod: {class_path: finetune, init_args: {lrr: {init_args: {}}}}\n",
     "Finetune has no option 'lrr'; did you mean lr?"),
    ("scenario: split_digits\nmethod: {class_path: finetune, init_args: {lr: {init_args: {}}}}\n", "method.lr must be float"),
    ("scenario: split_digits\nmethod: {class_path: finetune, init_args: {lr: .inf}}\n", "method.lr must be a finite number"),
    ("scenario: split_digits\nmethod: ncm\nseed: null\n", "seed must be int, not null"),
    ("scenario: split_digits\nmethod: ncm\nseed: true\n", "seed must be int, not True"),
    ("scenario: split_digits\nmethod: ncm\nseed: 1.0\n", "seed must be int, not 1.0"),
    ("scenario: split_digits\nmethod: ncm\ncompute: [1]\n", "compute must be a mapping of options, not [1]"),
    ("scenario: split_digits\nmethod: ncm\ncompute: {thraeds: 1}\n", "did you mean compute.threads"),
    ("scenario: split_digits\nmethod: ncm\nsource: {lr: -1}\n", "source.lr must be at least 0, not -1"),
    ("scenario: [split_digits]\nmethod: ncm\n", "scenario must be a name, or a mapping"),
    ("scenario: split_digits\nmethod: {class_path: 3}\n", "method must be a name, or a mapping"),
    ("scenario: split_digits\nmethod: {class_path: 'ncm', init_args: [1]}\n", "init_args of ncm must be a mapping"),
    ("scenario: {class_path: recurring, init_args: {of: 3}}\nmethod: tent\n", "scenario.of must be a name, or a mapping"),
    ("scenario: split_digits\nmethod: {class_path: avalanche_strategy, init_args: {args: {x: .nan}}}\n",
     "method.args[x] must be a finite number"),
    ('scenario: {class_path: split_cub200, init_args: {root: "a\\0b"}}\nmethod: ncm\n', "scenario.root holds a character that"),
    ('scenario: {class_path: split_cub200, init_args: {root: "\\ud800"}}\nmethod: ncm\n', "holds a character that"),
], ids=lambda v: v[:60].replace("\n", " ") if "\n" in v else None)
def test_a_value_in_a_file(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert said in refused(["run", "--config", str(tmp_path / "c.yaml")], tmp_path, capsys)


@pytest.mark.parametrize(("precision", "instead"), [("16-true", "bf16-true"), ("16-mixed", "bf16-mixed")])
def test_precisions_a_cpu_has_not(precision: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(["run", *LEARN, "--precision", precision], tmp_path, capsys)
    assert f"a CPU does not compute in {precision}; use --precision {instead}, or a GPU" in err
    from cl_bench.engine.runner import run

    plan = plan_from(parse(LEARN))
    plan.compute = Compute(device="cpu", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a CPU does not compute in"):
        run(plan, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("method", ["er", "eata", "lame", "slca", "avalanche_strategy"])
def test_methods_compute_in_the_precision_that_is_asked_for(method: str, precision: str, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in single precision meet weights of another, a source's weights meet a new head, and half precision lacks
    filters and distances on a CPU."""
    few_digits(monkeypatch)
    argv = STREAM if method in ("eata", "lame") else LEARN
    small = {"eata": ["--method.fisher_samples", "8"], "slca": ["--method.align_epochs", "1", "--method.epochs", "1"]}
    argv = [*argv, "--method", method, *small.get(method, []), "--source.epochs", "1", "--precision", precision,
            "--checkpoint", "false"]
    assert main(["run", *argv, "--runs", str(tmp_path / "runs"), "--tracking", "none"]) == 0
    assert load(only(tmp_path / "runs")).record["config"]["compute"]["precision"] == precision


@pytest.mark.parametrize("threads", [1, 1024])
def test_threads_up_to_the_limit_compute(threads: int) -> None:
    code = ("import torch, sys; from cl_bench.engine.compute import Compute\n"
            "torch.set_num_threads(Compute(threads=int(sys.argv[1])).threads)\n"
            "assert (torch.ones(600, 600) @ torch.ones(600, 600)).sum() == 600 ** 3; print('well')")
    ran = subprocess.run([sys.executable, "-c", code, str(threads)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and ran.stdout == "well\n", ran.stderr[-500:]


def test_the_engines_own_records_refuse_too() -> None:
    for wrong in ({"threads": 100_000}, {"threads": -1}, {"workers": 10**6}, {"device": ""}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Compute(**wrong)  # type: ignore[arg-type]


def test_training_that_diverges_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", *LEARN, "--method", "slca", "--method.backbone_lr", "1e12", "--method.align_epochs", "1", "--runs",
            str(tmp_path / "runs"), "--tracking", "none"]
    assert main(argv) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err == "cl-bench: training has diverged: weights are beyond all bounds; use a smaller learning rate."
    assert load(only(tmp_path / "runs")).status == "failed"


# ------------------------------------------------------------------ classes from elsewhere
def test_a_class_typed_into_a_notebook_runs(tmp_path: Path) -> None:
    """It is of the module ``__main__``, which has no file to import again."""
    code = f'''
from pathlib import Path
from cl_bench import Method, Size
from cl_bench.command.config import parse, plan_from
from cl_bench.engine.runner import run
from cl_bench.records.results import load

class Mine(Method):
    "Typed into a notebook."
    def __init__(self, backbone, *, rank: Size = 3):
        super().__init__(backbone, epochs=1)
        self.rank = rank

for name in ("__main__:Mine", "__main__.Mine", Mine):
    config = parse(["--scenario.per_class", "2", "--device", "cpu"], {{"scenario": "split_digits", "method": name}})
    assert config["method"] == {{"class_path": "__main__.Mine", "init_args": {{"rank": 3}}}}, config["method"]
assert parse([], config) == config
done = load(run(plan_from(config), Path({str(tmp_path)!r})))
assert done.done and done.method == "Mine", done.method
print("well")
'''
    ran = subprocess.run([sys.executable], input=code, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.endswith("well\n"), ran.stderr[-2000:]


FAR = '''
import enum, pathlib
from cl_bench import Backbone, Method, Scenario
from cl_bench.registry import find

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

class Base(Method):
    """A base."""
    def __init__(self, backbone: Backbone, *, rank: int = 3, **rest):
        super().__init__(backbone, **rest)
        self.rank = rank

class Far(Base):
    """With types that are none of ours, and options of its bases."""
    def __init__(self, backbone: Backbone, *, where: pathlib.Path = pathlib.Path("a"), colour: Colour = Colour.RED,
                 pairs: list[tuple[int, float]] = (), inner: Scenario | None = None, **rest):
        super().__init__(backbone, **rest)
        self.where, self.colour, self.pairs, self.inner = where, colour, pairs, inner
'''


def test_types_of_others_and_options_of_bases(tmp_path: Path) -> None:
    (tmp_path / "far_config.py").write_text(FAR)
    name = f"{tmp_path}/far_config.py:Far"
    argv = ["--scenario", "split_digits", "--method", name, "--method.where", "/x", "--method.colour", "BLUE", "--method.pairs",
            "[[1, 0.5]]", "--method.rank", "4", "--method.lr", "0.5", "--method.inner", "digits_c", "--method.inner.severity",
            "2"]
    assert list(takes(class_of(name), GROUPS["methods"])) == [
        "where", "colour", "pairs", "inner", "rank", "lr", "epochs", "batch_size"]
    config = parse(argv)
    args = config["method"]["init_args"]
    assert args["where"] == "/x" and args["colour"] == "BLUE" and args["pairs"] == [(1, 0.5)] and args["rank"] == 4
    assert args["inner"]["init_args"]["severity"] == 2 and parse([], config) == config
    plan = plan_from(config)
    made = plan.build(plan.backbone)
    assert made.where == Path("/x") and made.colour.name == "BLUE" and made.lr == 0.5 and made.inner.severity == 2
    assert type(made.inner) is find(GROUPS["scenarios"], "digits_c")
    for option, value, said in (("colour", "GREEN", "method.colour must be Colour"), ("rank", "x", "method.rank must be int"),
                                ("pairs", "[[1]]", "method.pairs must be a list"), ("lr", "-1", "method.lr must be at least 0"),
                                ("inner.severity", "9", "severity 9"), ("wehre", "x", "did you mean where")):
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            parsed = plan_from(parse([*argv, f"--method.{option}", value]))
            parsed.build(parsed.backbone)


@pytest.mark.parametrize(("hint", "word", "value"), [
    (str, "3", "3"), (str, "null", "null"), (str, "[a-z]+\\.x", "[a-z]+\\.x"), (str, "[", "["), (str, "true", "true"),
    (str | None, "null", None), (str | None, "true", "true"), (int | str, "3", 3), (int | str, "x", "x"), (float, "3", 3.0),
    (float | None, "null", None), (int | list[int] | None, "[1, 2]", [1, 2]), (str | list[str], "[fog, snow]", ["fog", "snow"]),
    (str | list[str], "fog,snow", "fog,snow"), (tuple[str, ...], "[q]", ("q",)), (bool, "true", True), (bool, "False", False),
    (Any, "3", 3), (Any, "x", "x"), (dict[str, Any], "{a: {b: 1}}", {"a": {"b": 1}}), (Literal["a", 1], "1", 1),
    (Literal["a", 1], "a", "a"), (Path, "/x", "/x"),
])
def test_what_a_word_of_the_command_line_means(hint: Any, word: str, value: object) -> None:
    found = Reader(read_part).read("x", hint, Word(word))
    assert found == value and type(found) is type(value)


LEAVES = '''
import os, signal, sys
from cl_bench import Method

class Leaves(Method):
    """Ends the process in its second experience."""
    def __init__(self, backbone, *, how: str = "exit"):
        super().__init__(backbone, epochs=1)
        self.how = how

    def begin(self, exp):
        super().begin(exp)
        if len(self.seen) > 2:
            self.leave("exit", "term")

    def training_step(self, batch, batch_idx):
        if len(self.seen) > 2:
            self.leave("fit exit", "fit term")
        return super().training_step(batch, batch_idx)

    def leave(self, exit, term):
        if self.how == exit:
            sys.exit(0)
        if self.how == term:
            os.kill(os.getpid(), signal.SIGTERM)
'''


def only(runs: Path) -> Path:
    (folder,) = [f for f in runs.iterdir() if (f / "run.json").is_file()]
    return folder


@pytest.mark.parametrize("how", ["exit", "fit exit"])
def test_a_method_that_calls_sys_exit_has_failed(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "leaves_config.py").write_text(LEAVES)
    argv = ["run", *LEARN[:4], "--method", f"{tmp_path}/leaves_config.py:Leaves", "--method.how", how, "--device", "cpu",
            "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    assert main(argv) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("cl-bench: ") and "called sys.exit(0)" in err and "stopped by" not in err
    assert load(only(tmp_path / "runs")).status == "failed"


@pytest.mark.parametrize("how", [pytest.param("term", marks=pytest.mark.soak), "fit term"])
def test_sigterm_tells_the_truth(how: str, tmp_path: Path) -> None:
    (tmp_path / "leaves_config.py").write_text(LEAVES)
    argv = ["run", *LEARN[:4], "--method", f"{tmp_path}/leaves_config.py:Leaves", "--method.how", how, "--device", "cpu",
            "--runs", str(tmp_path / "runs"), "--tracking", "none"]
    ran = subprocess.run([sys.executable, "-m", "cl_bench.cli", *argv], capture_output=True, text=True)
    folder = only(tmp_path / "runs")
    assert ran.returncode == 128 + signal.SIGTERM, ran.stderr
    said = ran.stderr.splitlines()[-1]
    assert said == f"cl-bench: stopped by SIGTERM; `cl-bench run --resume {folder}` goes on from its last checkpoint."
    assert load(folder).status == "stopped" and load(folder).record["error"] == "stopped by SIGTERM"


def test_a_backbone_that_needs_more_cannot_count_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "adapters", "--backbone", "cifar_resnet"]) == 2
    assert "cifar_resnet needs folder" in capsys.readouterr().err
    assert torch.get_num_threads() >= 1


def test_losses_of_learning_that_are_not_finite_are_in_the_record_and_said(tmp_path: Path) -> None:
    argv = ["run", *LEARN, "--method", "finetune", "--method.lr", "1e12", "--method.epochs", "2", "--runs",
            str(tmp_path / "runs"), "--tracking", "none"]
    assert main(argv) == 0
    record = load(only(tmp_path / "runs")).record
    assert record["cost"]["nonfinite_losses"] > 0
    assert any("training losses of" in sentence and "were not finite" in sentence for sentence in record["warnings"])
