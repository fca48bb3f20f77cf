"""Ray and Slurm run the same records as this process; who is killed half way goes on with what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_bench.command import launch
from cl_bench.command.cli import main
from cl_bench.command.launch import launcher_of
from cl_bench.command.parcel import pack, unpack
from cl_bench.command.slurm_launcher import minutes
from cl_bench.command.sweep import Outcome, read_suite, run_suite
from cl_bench.command.task import Task
from cl_bench.errors import UserError
from cl_bench.records.results import load, load_all

HERE = Path(__file__).resolve().parent
GRID = """
name: grid
compute: {device: cpu}
grid: {method.batch_size: [8, 32], seed: 0..1}
runs:
  - scenario: {class_path: split_digits, init_args: {per_class: 4, increment: 5}}
    methods: [{class_path: finetune, init_args: {epochs: 1}}]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("grid") / "grid.yaml"
    made.write_text(GRID)
    return made


@pytest.fixture(scope="module")
def alone(file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return facts(run_suite(read_suite(file), tmp_path_factory.mktemp("alone"), jobs=1))


def facts(outcome: Outcome) -> list[Any]:
    """All that two runs of one config must share, bit for bit."""
    assert not outcome.failures, outcome.failures
    runs = [load(folder) for folder in outcome.folders]
    return [(r.method, r.seed, r.record["matrix"], r.record["metrics"], r.record["fingerprint"], r.record["config"],
             r.record["cost"]["optimizer_steps"], {k: v.tobytes() for k, v in r.arrays().items()}) for r in runs]


def launched(name: str, *words: str) -> Any:
    import functools

    found, options, rest = launcher_of(name, words)
    assert not rest
    return functools.partial(found, **options)


# -- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'cl-bench[ray]'")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_records(cluster: Any, file: Path, alone: list[Any], tmp_path: Path) -> None:
    """On a shared path, and brought back as archives; a run that dies costs no other."""
    assert facts(run_suite(read_suite(file), tmp_path / "shared", launcher=launched("ray"), elsewhere=True)) == alone
    back = run_suite(read_suite(file), tmp_path / "back", launcher=launched("ray", "--bring-back", "true"), elsewhere=True)
    assert facts(back) == alone and len(load_all(tmp_path / "back")) == 4
    assert [f.parent for f in back.folders] == [tmp_path / "back"] * 4


DIES = '''
import os
from pathlib import Path
from cl_bench import Method

class Dies(Method):
    """Is killed in its second experience where a file says so."""

    def __init__(self, backbone, *, k: int = 0):
        super().__init__(backbone, epochs=1)
        self.k = k

    def begin(self, exp):
        super().begin(exp)
        if len(self.seen) > 5 and Path(__file__).with_name(f"kill{self.k}").exists():
            os.kill(os.getpid(), 9)
'''


def test_a_run_that_dies_under_ray_goes_on_later_and_costs_no_other(cluster: Any, file: Path, alone: list[Any], tmp_path: Path
                                                                    ) -> None:
    odd = tmp_path / "odd_ray.py"
    odd.write_text(DIES)
    made = tmp_path / "s.yaml"
    made.write_text(GRID.replace("{class_path: finetune, init_args: {epochs: 1}}", f"'{odd}:Dies'")
                    .replace("method.batch_size: [8, 32], seed: 0..1", "method.k: 0..1"))
    (tmp_path / "kill0").touch()
    outcome = run_suite(read_suite(made), tmp_path / "runs", launcher=launched("ray"), elsewhere=True)
    assert len(outcome.folders) == 1 and "Dies(k=0) seed 0: it was lost by Ray" in outcome.failures[0]
    (tmp_path / "kill0").unlink()
    said: list[str] = []
    again = run_suite(read_suite(made), tmp_path / "runs", launcher=launched("ray", "--bring-back", "true"), elsewhere=True,
                      progress=lambda kind, facts: said.append(kind))
    assert not again.failures and sorted(said) == ["finish", "resume", "skip"] and len(load_all(tmp_path / "runs")) == 2
    assert [e["kind"] for e in load(again.folders[0]).events()].count("resume") == 1, "its archive went there and came back"


# -- submitit ---------------------------------------------------------------------------------------------------------


def test_submitits_local_jobs_give_the_same_records(file: Path, alone: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'cl-bench[slurm]'")
    launcher = launched("slurm", "--cluster", "local", "--runs-per-job", "2")
    assert facts(run_suite(read_suite(file), tmp_path, launcher=launcher, elsewhere=True)) == alone


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'cl-bench[slurm]'")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))) or os.geteuid():
        pytest.skip("a Slurm of one node needs root and the packages slurm-wlm and munge")
    home = tmp_path_factory.mktemp("slurm")
    port = str(17000 + os.getpid() % 500 * 2)
    # What it says goes to a file: daemons that keep a pipe open would be waited for.
    with (home / "said").open("w") as said:
        started = subprocess.run(["timeout", "60", HERE / "one_node_slurm.sh", "start", home, port], stdout=said, stderr=said)
    if started.returncode:
        subprocess.run([HERE / "one_node_slurm.sh", "stop", home], capture_output=True, timeout=60)
        why = (home / "said").read_text().strip()[-200:] or f"it ended with {started.returncode}"
        pytest.skip(f"no Slurm of one node could be started here: {why}")
    os.environ["SLURM_CONF"] = str(home / "slurm.conf")
    yield
    del os.environ["SLURM_CONF"]
    subprocess.run([HERE / "one_node_slurm.sh", "stop", home], capture_output=True, timeout=60)


@pytest.mark.soak
def test_slurm_goes_on_after_its_launcher_was_killed(slurm: None, file: Path, alone: list[Any], tmp_path: Path) -> None:
    """The launcher is killed while jobs run: they go on, and the same command waits for them and starts nothing twice."""
    runs = tmp_path / "runs"
    code = f"import sys; from cl_bench.command.cli import main; sys.exit(main({argv(file, runs)!r}))"
    killed = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(runs.glob(".slurm/begun/*")) and time.monotonic() < until:
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outcome = run_suite(read_suite(file), runs, launcher=launched("slurm", "--runs-per-job", "2"), elsewhere=True)
    assert facts(outcome) == alone and len(load_all(runs)) == 4


def argv(file: Path, runs: Path) -> list[str]:
    return ["suite", str(file), "--runs", str(runs), "--tracking", "none", "--launcher", "slurm", "--time", "30",
            "--runs-per-job", "2"]


STOPS = '''
import os, signal, time
from pathlib import Path
from cl_bench import Method

class Away(Method):
    """Is sent away once in its second experience, as a scheduler does it, and ends when it is called again."""

    def __init__(self, backbone):
        super().__init__(backbone, epochs=1)

    def begin(self, exp):
        super().begin(exp)
        mark = Path(__file__).with_name("sent")
        if len(self.seen) > 5 and not mark.exists():
            mark.write_text(os.environ["SLURM_JOB_ID"])
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(60)
'''


@pytest.mark.soak
def test_a_job_that_is_pre_empted_goes_on_from_its_checkpoint(slurm: None, tmp_path: Path) -> None:
    (tmp_path / "away.py").write_text(STOPS)
    (tmp_path / "s.yaml").write_text(GRID.replace("grid: {method.batch_size: [8, 32], seed: 0..1}", "").replace(
        "{class_path: finetune, init_args: {epochs: 1}}", f"'{tmp_path / 'away.py'}:Away'"))
    outcome = run_suite(read_suite(tmp_path / "s.yaml"), tmp_path / "runs", launcher=launched("slurm", "--time", "60"),
                        elsewhere=True)
    assert not outcome.failures and (tmp_path / "sent").is_file()
    (run,) = load_all(tmp_path / "runs")
    assert [e["kind"] for e in run.events()].count("resume") == 1


# -- without them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_missing_extra_is_one_sentence(name: str, module: str, extra: str, file: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["suite", str(file), "--runs", str(tmp_path / "r"), "--tracking", "none", "--launcher", name]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == (f"cl-bench: --launcher {name} needs the package {module}, which is not installed: "
                                    f"pip install 'cl-bench[{extra}]'.")


@pytest.mark.parametrize(("words", "said"), [
    (["--launcher", "slurm", "--time", "soon", "--cluster", "local"], "must be minutes"),
    (["--launcher", "slurm", "--runs-per-job", "0"], "runs-per-job must be at least 1"),
    (["--launcher", "slurm", "--cluster", "cloud"], "must be one of 'slurm', 'local'"),
    (["--launcher", "slurm", "--launcher.tme", "1"], "launcher slurm has no option 'tme'; it takes time, gres"),
    (["--launcher", "local", "--gpus-per-run", "1"], "does not fit: this machine has 0 GPUs")])
def test_options_of_launchers_are_read_by_their_signatures(words: list[str], said: str, file: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["suite", str(file), "--runs", str(tmp_path / "r"), "--tracking", "none", *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_times_as_slurm_writes_them() -> None:
    assert [minutes(t) for t in ("60", "90:30", "4:00:00", "1-12", "1-12:30", "2-0:00:30")] == [60, 91, 240, 2160, 2190, 2881]


def test_an_archive_holds_one_run_and_cannot_leave_its_folder(alone: list[Any], file: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    folder = tmp_path / "a" / "run-1"
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("run.json", "DONE", "LOCK", "checkpoint/state.json"):
        (folder / name).write_text(name)
    kept = unpack(pack(folder), tmp_path / "b")
    files = sorted(str(f.relative_to(kept)) for f in kept.rglob("*") if f.is_file())
    assert files == ["DONE", "checkpoint/state.json", "run.json"]
    for names in (["../x"], ["/x/y"], ["a/x", "b/x"], ["a/../../x"], ["x"]):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name in names:
                archive.writestr(name, "")
        with pytest.raises((ValueError, UserError)):
            unpack(made.getvalue(), tmp_path / "c")
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())


def test_what_a_module_is_missing_is_not_hidden() -> None:
    assert launch.needs_package("json", "x", "y").dumps(1) == "1" and Task("r", "", {}).begun({}) is None
