"""Shared fixtures: one thread, no telemetry, and the folder of optional data where there is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: threads that wait for a core spin

# Tests that are started in the background inherit that Ctrl-C is ignored, and so would the processes that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast examples are drawn says something of the machine, and nothing of the code. The same examples everywhere, so that
# a change is not refused for what it did not touch; `--soak` draws new ones each time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("new examples", settings.get_profile("any machine"), derandomize=False)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also the tests that only make soak runs")
    parser.addoption("--fuzz-cases", type=int, default=200, help="how many spoilt command lines test_fuzz.py tries")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what they are drawn from")
    parser.addoption("--fuzz-case", type=int, default=None, help="only the one of this number")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--soak"):
        settings.load_profile("new examples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [] if config.getoption("--soak") else [item for item in items if item.get_closest_marker("soak")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two test processes share two cores; sums depend on the thread count in the last bit."""
    import torch

    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional real data; tests that want it skip without it."""
    path = Path(os.environ.get("CL_BENCH_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"optional data not found in {path} (set CL_BENCH_SHARED)")
    return path
