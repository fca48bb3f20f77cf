"""The local launcher: who sees which GPU, how many threads there are, how many runs go on at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import pytest

from cl_bench.command.launchers import _places, local
from cl_bench.errors import UserError


def told(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """In place of a run: what its process was given."""
    seen = [os.environ.get(name, "-") or "none" for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
    if config.get("kill"):
        os.kill(os.getpid(), 9)
    file = Path("/proc/self/oom_score_adj")  # where there is none, nothing can be asked
    score = file.read_text().strip() if file.exists() else "500"
    return " ".join([*seen, score, str(os.getpid())]), None


@pytest.mark.parametrize(("gpus", "per_run", "places"), [
    ("01", 0.5, ["0", "1", "0", "1"]), ("0", 0.3, ["0", "0", "0"]), ("01", 1, ["0", "1"]), ("0123", 2, ["0,1", "2,3"]),
    ("012", 2, ["0,1"]), ("01", 0, ["0", "1"]), ("", 0, [])])
def test_gpus_are_shared_out(gpus: str, per_run: float, places: list[str]) -> None:
    assert _places(list(gpus), per_run) == places


@pytest.mark.parametrize(("gpus", "per_run", "said"), [
    ("", 0.5, "has 0 GPUs"), ("01", 4, "has 2 GPUs"), ("01", 1.5, "whole number")])
def test_shares_that_do_not_fit(gpus: str, per_run: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _places(list(gpus), per_run)


def test_workers_see_their_gpu_and_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("cl_bench.command.launchers.cores", lambda: 8)
    found = [words for _, words, error in local([{}] * 2, told, workers=2) if error is None]
    assert sorted(words.split()[:3] for words in found) == [["3", "4", "500"], ["5", "4", "500"]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5" and "OMP_NUM_THREADS" not in os.environ, "as they were"
    killed = list(local([{"kill": True}, {}], told, workers=2))
    assert sorted(error is None for _, _, error in killed) == [False, True], "and one that is killed costs no other"


def test_workers_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the time when the process began from which they are forked: a notebook sets and unsets things."""
    for now in ("7", None, "2"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr("cl_bench.command.launchers._gpus", list)
        if now is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", now)
        found = [words.split()[0] for _, words, _ in local([{}], told, workers=2)]
        assert found == [now or "-"]


def test_runs_of_many_threads_wait_for_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six cores: of runs that compute with four threads only one goes on at a time, so one process does all of them."""
    monkeypatch.setattr("cl_bench.command.launchers.cores", lambda: 6)
    monkeypatch.setattr("cl_bench.command.launchers._gpus", list)
    four = [{"compute": {"threads": 4}}] * 3
    found = list(local(four, told))
    assert [error for *_, error in found] == [None] * 3
    assert len({words.split()[3] for _, words, _ in found}) == 1


SERVER = """
import os, signal, sys, time
from multiprocessing import forkserver, get_context
from cl_bench.command.launchers import prepare

prepare(2)
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)  # a terminal sends it to every process
get_context("forkserver").Process(target=print, args=("a worker",)).start()
"""


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="this system forks no workers")
def test_an_interrupt_and_a_module_that_fails_leave_the_server_of_workers_alone(tmp_path: Path) -> None:
    """Both hit it while it imports: a module that raises what is no ImportError, and Ctrl-C in its first moments."""
    odd = tmp_path / "cl_bench" / "engine"
    odd.mkdir(parents=True)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n"
        f"    import cl_bench.engine\n    cl_bench.engine.__path__[:] = [{str(odd)!r}]\n")
    (odd / "runner.py").write_text("import time\ntime.sleep(0.3)\nraise OSError('a library is damaged')\n")
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert (done.stdout, done.stderr, done.returncode) == ("a worker\n", "", 0)
