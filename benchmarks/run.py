"""Makes results/speed again: parts, each with a time limit of its own, both sides of a comparison in one part.

    python -m benchmarks.run [--minutes 19] [--parts start learning ...] [--page]

Each part is a program of its own (`benchmarks/speed_*.py`, `benchmarks/gpu/operators.py`) that writes one JSON into
results/speed. A part that fails or runs out of time is named, its older JSON stays with its own date, and the next one goes on.
The page (results/speed/README.md) and the plot (docs/images/speed.png) are made from the JSONs alone; ``--page`` makes only
them. Data are read from ``../shared`` or ``$CL_BENCH_SHARED``; the parts that need them are left out where they are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "speed"
sys.path.insert(0, str(HERE / "gpu"))


@dataclass(frozen=True)
class Part:
    """One program.

    Attributes:
        name: of its JSON.
        seconds: its limit.
        words: what is run.
        shared: whether it needs the optional data.
    """

    name: str
    seconds: int
    words: tuple[str, ...]
    shared: bool = False


PARTS = (
    Part("learning", 330, ("benchmarks/speed_learning.py", "--per-class", "100", "--seconds", "300"), True),
    Part("profile", 120, ("benchmarks/speed_profile.py", "--steps", "30", "--turns", "3")),
    Part("frozen", 100, ("benchmarks/speed_frozen.py", "--pixels", "128"), True),
    Part("start", 100, ("benchmarks/speed_start.py", "--turns", "2")),
    Part("growth", 170, ("benchmarks/speed_growth.py",)),
    Part("candidates", 40, ("benchmarks/speed_candidates.py",)),
    Part("steps", 150, ("benchmarks/speed_steps.py",)),
    Part("operators", 160, ("benchmarks/gpu/operators.py", "--device", "cpu", "--full")),
)
TITLES = {
    "learning": "Learning and all evaluations, beside a bare loop and Avalanche",
    "profile": "Where a step's time goes",
    "frozen": "A frozen trunk", "start": "Starting", "growth": "Long runs",
    "candidates": "What a native operator could gain at most", "steps": "What it would gain in a whole step",
    "operators": "Native operators on a CPU",
}


def run(parts: list[Part], minutes: float, out: Path) -> list[str]:
    """Every part within what is left of the whole; sentences on those that did not finish."""
    began, problems = time.monotonic(), []
    shared = Path(os.environ.get("CL_BENCH_SHARED", HERE.parents[1] / "shared")) / "data"
    for part in parts:
        left = 60 * minutes - (time.monotonic() - began)
        if part.shared and not shared.is_dir():
            problems.append(f"{part.name}: left out, there are no data in {shared}")
        elif left < 20:
            problems.append(f"{part.name}: left out, no time was left")
        else:
            limit = min(part.seconds, left)
            print(f"-- {part.name}, at most {limit:.0f} s", flush=True)
            surroundings = {**os.environ, "CL_BENCH_GPU_SECONDS": str(int(limit) - 5), "MLFLOW_DISABLE_TELEMETRY": "true"}
            words = [sys.executable, *part.words, "--out", str(out)]
            try:
                status = subprocess.run(words, cwd=HERE.parent, env=surroundings, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                status = 124
            if status:
                how = "stopped at its limit" if status == 124 else f"failed with status {status}"
                problems.append(f"{part.name}: {how}")
            else:
                stamped(out / f"{part.name}.json")
        print(*problems[-1:], sep="\n", flush=True)
    return problems


def stamped(file: Path) -> None:
    """The day on which a part was measured, in its JSON."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["machine"]["date"] = str(date.today())
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def page(out: Path) -> str:
    """The page of all JSONs that are there."""
    from table import section

    lines = ["# Speed", "", "    python -m benchmarks.run", "",
             "Made from the JSONs beside it. Ratios above 1 say that ours, or what came after, is faster. Times are processor",
             "seconds where a table does not say otherwise; both sides of a ratio were measured in turns, in one sitting.", ""]
    for name, title in TITLES.items():
        if (file := out / f"{name}.json").is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            content = {"skipped": [], **content, "machine": {"rehearsal": False, **content["machine"]}}
            for row in content["rows"]:
                row.pop("turns", None)
            lines += [f"## {title}", "", *section(content)[2:]]
            if settings := content.get("settings"):
                lines += [", ".join(f"{k} {v}" for k, v in settings.items()), ""]
            lines += [*content.get("notes", []), ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def plot(out: Path, file: Path) -> None:
    """How many times faster each side learns and evaluates than Avalanche, every turn of it a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows: list[dict[str, Any]] = json.loads((out / "learning.json").read_text(encoding="utf-8"))["rows"]
    base = next(r["seconds"] for r in rows if r["side"] == "avalanche")
    rows = sorted(rows, key=lambda r: -r["seconds"])
    figure, axes = pyplot.subplots(figsize=(7, 2.6), dpi=150, layout="constrained")
    names = [r["side"] for r in rows]
    colours = ["#2a6f97" if n.startswith("ours") else "#a0a7ad" for n in names]
    axes.barh(names, [base / r["seconds"] for r in rows], color=colours, height=0.6)
    for k, row in enumerate(rows):
        axes.plot([base / t for t in row["turns"]], [k] * len(row["turns"]), ".", color="#1b1f23", markersize=4)
        axes.text(0.02, k, f"{base / row['seconds']:.2f} x", va="center", color="white", fontsize=9)
    axes.set_xlabel("times as fast as Avalanche (ResNet-20, Split-CIFAR-10, on a CPU)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    """Parts, page, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=19)
    parser.add_argument("--parts", nargs="+", choices=[p.name for p in PARTS], default=[p.name for p in PARTS])
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    o = parser.parse_args()
    problems = [] if o.page else run([p for p in PARTS if p.name in o.parts], o.minutes, o.out)
    (o.out / "README.md").write_text(page(o.out), encoding="utf-8")
    if (o.out / "learning.json").is_file():
        plot(o.out, HERE.parent / "docs" / "images" / "speed.png" if o.out == OUT else o.out / "speed.png")
    print("\n".join(problems) or "all parts finished")


if __name__ == "__main__":
    main()
