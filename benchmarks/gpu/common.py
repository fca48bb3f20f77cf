"""What the parts share: their options, the machine that they ran on, time taken properly, one JSON per part."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STARTED = time.monotonic()


class Part:
    """One part of the figures: rows and what was left out, on disk after every row."""

    def __init__(self, name: str, about: str) -> None:
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--cache", type=Path, default=None, help="pytest's cache folder")
        parser.add_argument("--full", action="store_true", help="full sizes on a CPU too (of a part that is worth it there)")
        parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="of operators and networks: these alone")
        self.options = parser.parse_args()
        self.name = name
        self.device = torch.device(self.options.device)
        self.full = self.options.full or self.device.type == "cuda"  # else: cut sizes, to rehearse
        self.limit = float(os.environ.get("CL_BENCH_GPU_SECONDS", "600"))
        self.content: dict[str, Any] = {"part": name, "about": " ".join(about.split()),
                                        "machine": machine(self.device, self.full), "rows": [], "skipped": []}
        self.write()

    def left(self) -> float:
        """Seconds of this part's limit that are left."""
        return self.limit - (time.monotonic() - STARTED)

    def row(self, **cells: Any) -> None:
        """Add a row, print it, bring the file up to date."""
        self.content["rows"].append(cells)
        print("   ", ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in cells.items()), flush=True)
        self.write()

    def skip(self, what: str, why: str) -> None:
        """Say what was left out."""
        self.content["skipped"].append(f"{what}: {why}")
        print(f"    skipped {what}: {why}", flush=True)
        self.write()

    def attempt(self, what: str, do: Callable[[], Any], needs: float = 5.0) -> Any:
        """``do()`` unless less than ``needs`` seconds are left; an error is written down and the part goes on."""
        if self.left() < needs:
            self.skip(what, f"{self.left():.0f} s were left")
            return None
        try:
            return do()
        except Exception as fault:
            self.skip(what, f"{type(fault).__name__}: {' '.join(str(fault).split())[:400]}")
            return None

    def write(self) -> None:
        self.options.out.mkdir(parents=True, exist_ok=True)
        file = self.options.out / f"{self.name}.json"
        file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def machine(device: torch.device, full: bool = False) -> dict[str, Any]:
    """What was computed on."""
    facts: dict[str, Any] = {
        "device": device.type, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(),
        "processor": platform.machine(), "rehearsal": not full, "commit": commit(),
    }
    if device.type == "cpu":
        facts |= {"processor": processor(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        facts |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver()}
    return facts


def commit() -> str:
    """The commit that the checkout stands at, where git tells it."""
    from cl_bench.records.results import git_state

    state = git_state(Path(__file__).parent)
    return f"{state['commit'][:7]}{'-dirty' if state['dirty'] else ''}" if state["commit"] else "not known"


def keep_figures(out: Path, part: str, doc: str | None, rows: list[dict[str, Any]], load: bool = True, **more: Any) -> None:
    """``out/part.json`` of a part that was measured on a CPU: what it is (the fourth paragraph of its script's docstring, with
    the machine's load beside the machine where it says something) and its rows."""
    here = machine(torch.device("cpu"), True) | ({"load": round(os.getloadavg()[0], 1)} if load else {})
    text = {"part": part, "about": " ".join((doc or "").split("\n\n")[3].split()), "machine": here, **more, "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{part}.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name as the kernel says it, with its instructions as torch uses them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def driver() -> str:
    """The driver's version as nvidia-smi says it."""
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                              text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else "unknown"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(do: Callable[[], Any], device: torch.device, repeats: int = 20, warm: int = 3) -> float:
    """Median time of a call. On a GPU: between events, each call queued behind the one before."""
    for _ in range(warm):
        do()
    wait(device)
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            do()
            mark.record()
        wait(device)
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        do()
        spent.append(1000 * (time.perf_counter() - start))
    return statistics.median(spent)


def queued(do: Callable[[], Any], repeats: int = 20, replays: int = 5) -> float:
    """Median milliseconds that the GPU alone needs for a call: of a CUDA graph of ``repeats`` calls, which costs the host
    nothing between them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            do()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            do()
    return milliseconds(graph.replay, torch.device("cuda"), replays, 1) / repeats


def issued(do: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Median milliseconds until a call is handed to the GPU, which starts each with nothing else to do."""
    spent = []
    for turn in range(-3, repeats):
        wait(device)
        start = time.perf_counter()
        do()
        if turn >= 0:
            spent.append(1000 * (time.perf_counter() - start))
    wait(device)
    return statistics.median(spent)


def in_turns(sides: dict[str, Callable[[], Any]], device: torch.device, turns: int) -> dict[str, float]:
    """Median seconds of each side, measured in turns after one call each to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, turns):
        for name, do in sides.items():
            wait(device)
            start = time.perf_counter()
            do()
            wait(device)
            if turn >= 0:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def peak_mib(device: torch.device, do: Callable[[], Any]) -> float | None:
    """Most memory that tensors took on the GPU while ``do`` ran, in MiB; None on a CPU."""
    if device.type != "cuda":
        do()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    do()
    wait(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
