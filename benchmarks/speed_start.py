"""What starting costs: processor seconds of whole commands beside those of importing torch and Lightning alone.

    python benchmarks/speed_start.py [--turns 3]

Writes results/speed/start.json.

The run is `ncm` on Split-Digits, which computes for a fraction of a second, on one thread; with tracking it waits for the
process that sends to MLflow, whose processor time is counted too. All in one sitting, in turns, medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SURROUNDINGS = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "NO_COLOR": "1"}


def spent(words: list[str]) -> tuple[float, float]:
    """(processor, wall) seconds of a command and of all that it waited for."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=SURROUNDINGS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    """Take turns; write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    cli = [sys.executable, "-m", "cl_bench.cli"]
    with tempfile.TemporaryDirectory() as folder:
        run = [*cli, "run", "--scenario", "split_digits", "--method", "ncm", "--device", "cpu", "--runs"]
        commands = {
            "import torch, pytorch_lightning": [sys.executable, "-c", "import torch, pytorch_lightning"],
            "run, tracking none": [*run, f"{folder}/a", "--tracking", "none"], "run, tracked": [*run, f"{folder}/b"],
            "--help": [*cli, "--help"], "list methods": [*cli, "list", "methods"], "compare": [*cli, "compare", f"{folder}/a"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        # Before several turns one that fills the machine's caches and makes the store's tables.
        for turn in range(-1 if o.turns > 1 else 0, o.turns):
            for name, words in commands.items():
                took = spent(words)
                if turn >= 0:
                    found[name].append(took)
                    print(f"{name}: {took[0]:.2f} s processor, {took[1]:.2f} s wall", flush=True)
    median = {name: [statistics.median(t[k] for t in turns) for k in (0, 1)] for name, turns in found.items()}
    least = median["import torch, pytorch_lightning"][0]
    rows = [{"command": name, "processor s": p, "wall s": w, "x importing": p / least,
             "beyond importing, s": p - least} for name, (p, w) in median.items()]
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from common import keep_figures

    torch.set_num_threads(1)
    limit = 1.3 * least + 1.5
    keep_figures(o.out, "start", __doc__, rows, notes=[
        f"A tracked run is to stay under 1.3 x importing + 1.5 s = {limit:.2f} s: it takes {median['run, tracked'][0]:.2f} s."])


if __name__ == "__main__":
    main()
