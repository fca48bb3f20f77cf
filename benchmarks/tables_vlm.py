"""Transfer, Average and Last of a suite of vision-language methods from its records.

    cl-bench suite vlm_glyphs --runs runs/vlm_glyphs
    python benchmarks/tables_vlm.py vlm_glyphs runs/vlm_glyphs

writes ``results/vision_language/<suite>.md``, what the suite's file says of itself above the means over its runs, and
``<suite>.jsonl``, one line per run with the matrix that every number follows from.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from cl_bench.records.results import Run, load_all

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {"transfer": "Transfer", "average_all": "Average", "last_accuracy": "Last", "zero_shot_accuracy": "zero-shot",
           "zero_shot_change": "zero-shot change", "forgetting": "forgetting"}  # fmt: skip


def about(suite: str) -> str:
    """The comment at the head of a suite's file."""
    lines = (ROOT / "configs" / "suite" / f"{suite}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line[1:].strip() for line in lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))])


def row(label: str, runs: list[Run]) -> str:
    """One method: the mean of each metric over its runs."""
    cells = []
    for name in COLUMNS:
        values = [v for r in runs if (v := r.record["metrics"].get(name)) is not None]
        cells.append(f"{sum(values) / len(values):.1f}" if values else "–")
    return f"| {label} | {len(runs)} | " + " | ".join(cells) + " |"


def main() -> None:
    """Write the page."""
    suite, folder = sys.argv[1], Path(sys.argv[2])
    found: dict[str, list[Run]] = defaultdict(list)
    for run in load_all(folder):
        if run.record["status"] == "finished":
            found[run.record["method"]["label"]].append(run)
    ranked = sorted(found.items(), key=lambda pair: -sum(r.record["metrics"]["last_accuracy"] for r in pair[1]) / len(pair[1]))
    seeds = sorted({r.record["seed"] for runs in found.values() for r in runs})
    head = " | ".join(COLUMNS.values())
    page = [f"# {suite}", "", f"    cl-bench suite {suite} --runs runs/{suite}",
            f"    python benchmarks/tables_vlm.py {suite} runs/{suite}", "", about(suite), "",
            f"Percent; means over the runs made (seeds {', '.join(map(str, seeds))}), each with its own order of the domains.",
            "",
            f"| method | n | {head} |", "|---|--:|" + "--:|" * len(COLUMNS), *(row(*pair) for pair in ranked), ""]  # fmt: skip
    where = ROOT / "results" / "vision_language"
    where.mkdir(parents=True, exist_ok=True)
    (where / f"{suite}.md").write_text("\n".join(page), encoding="utf-8")
    with (where / f"{suite}.jsonl").open("w", encoding="utf-8") as file:
        for label, runs in sorted(found.items()):
            for r in runs:
                told = {k: r.record["metrics"].get(k) for k in COLUMNS}
                file.write(json.dumps({"method": label, "seed": r.record["seed"], "matrix": r.record["matrix"], **told}) + "\n")
    print((where / f"{suite}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
