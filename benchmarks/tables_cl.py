"""Tables of suites from their records.

    cl-bench suite cl_digits --runs runs/cl_digits
    python benchmarks/tables_cl.py split_digits cl_digits=runs/cl_digits

writes ``results/continual/<name>.md``, what the suites' files say of themselves above what ``cl-bench compare`` makes of the
records, and ``<name>.jsonl``, one line per run with the counts that every number follows from. Several ``suite=folder``
pairs go into one page; of a suite without a folder the page's section and its lines stay as they are, for records that are
on another machine or gone. Suites called ``tta_...`` have theirs in ``results/tta``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from cl_bench.compare.comparison import Group, compare
from cl_bench.compare.sheets import to_markdown
from cl_bench.records.results import Run, RunList, load_all

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "finetune"  # sequential fine-tuning, in all its variants: what every method is measured against


def about(suite: str) -> str:
    """The comment at the head of a suite's file, as Markdown."""
    lines = (ROOT / "configs" / "suite" / f"{suite}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line[1:].strip() for line in lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))]]
    return "\n".join(head)


def command(suite: str) -> str:
    """What runs the suite, as its file says."""
    if found := re.search(r"benchmarks/(\w+)_once\.py", about(suite)):
        return f"python benchmarks/{found[1]}_once.py --cache runs/.{found[1]} {suite} --runs runs/{suite}"
    return f"cl-bench suite {suite} --runs runs/{suite}"


def made_on(runs: RunList) -> str:
    """Versions, commits and the runs' time."""
    envs = [r.record["environment"] for r in runs]
    names = ("torch", "timm", "peft", "avalanche-lib", "pytorch-lightning", "cl-bench")
    versions = [f"{n} {', '.join(sorted({str(e['packages'].get(n)) for e in envs}))}" for n in names]
    python = ", ".join(sorted({e["python"] for e in envs}))
    commits = sorted({f"commit {commit[:10]}" if (commit := (e.get("git") or {}).get("commit")) else
                      f"no checkout, code {e.get('code_digest')}" for e in envs})
    minutes = sum(r.record["cost"]["seconds"]["total"] for r in runs) / 60
    threads = ", ".join(sorted({str(e["threads"]) for e in envs}))
    where = sorted({"a shared machine, CPU" if e["device"] == "cpu" else str(e.get("card") or e["device"]) for e in envs})
    precisions = sorted({(r.record["config"].get("compute") or {}).get("precision", "32-true") for r in runs} - {"32-true"})
    return (f"{len(runs)} runs, {minutes:.0f} minutes of runs in all, on {' and '.join(where)}, "
            f"{''.join(f'{p}, ' for p in precisions)}{threads} thread each; "
            f"Python {python}, {', '.join(versions)}; {', '.join(commits)}.")


def network(run: Run) -> str:
    """What the run's network is called."""
    return str((run.record["backbone"].get("args") or {}).get("name") or run.backbone)


def growth(run: Run) -> tuple[float, int]:
    """KiB of state that the last experience left above the first, and stored images."""
    steps = run.record["cost"]["growth"]
    return (steps[-1]["state_bytes"] - steps[0]["state_bytes"]) / 1024, int(steps[-1]["stored_samples"])


def baselines(group: Group) -> dict[str, dict[Any, float]]:
    """Average accuracies of sequential fine-tuning, by its variants and by seed and order."""
    return {r.method: r.values["average_accuracy"] for r in group.rows for run in [*r.runs.values()][:1]
            if run.record["method"]["name"] == BASELINE}


def above(group: Group) -> str:
    """Average accuracy above each fine-tuning row, paired by seed and order, and what a method keeps from step to step."""
    base = baselines(group)
    head = ["method", *(f"above {name}: mean (least), points" for name in base), "state grown (KiB)", "stored images"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    behind = []
    for row in group.rows:
        mine, cells, best = row.values["average_accuracy"], [], math.inf
        for values in base.values():
            gaps = [mine[k] - values[k] for k in mine.keys() & values.keys()]
            mean = sum(gaps) / len(gaps) if gaps else math.nan
            cells.append(f"{mean:+.2f} ({min(gaps):+.2f})" if gaps else "–")
            best = min(best, mean)
        if best <= 0 and row.method not in base:
            behind.append(row.method)
        kept = [growth(run) for run in row.runs.values()]
        cells += [f"{sum(k for k, _ in kept) / len(kept):.1f}", f"{max(n for _, n in kept)}"] if kept else ["–", "–"]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    told = f"Not above all fine-tuning rows: {', '.join(behind)}." if behind else "Every method is above every fine-tuning row."
    return "\n".join([f"### {group.title}: above sequential fine-tuning", "", *lines, "", told, ""])


def domains(group: Group) -> str:
    """Error in percent by domain of a stream, mean over a method's runs; empty where there is no stream."""
    every = {row.method: [e for run in row.runs.values() for e in run.stream.entries] for row in group.rows}
    names = list(dict.fromkeys(e.domain for entries in every.values() for e in entries))
    lines = ["| method | " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" + "|--:" * len(names) + "|"]
    for method, entries in every.items():
        of = {n: [100 - 100 * e.correct / e.total for e in entries if e.domain == n] for n in names}
        lines.append(f"| {method} | " + " | ".join(f"{sum(v) / len(v):.1f}" if v else "–" for v in of.values()) + " |")
    return "\n".join([f"### {group.title}: error by domain (%)", "", *lines, ""]) if names else ""


def line_of(run: Run) -> dict[str, Any]:
    """What identifies a run and what its numbers follow from."""
    record = run.record
    return {
        "id": run.id, "suite": record["suite"], "scenario": run.scenario, "backbone": run.backbone,
        "weights": record["backbone"]["sha256"], "method": run.method, "args": record["method"]["args"], "seed": run.seed,
        "order": run.order, "fingerprint": run.fingerprint, "commit": (record["environment"].get("git") or {}).get("commit"),
        "packages": record["environment"]["packages"], "matrix": record["matrix"],
        **({"stream": record["stream"]} if record.get("stream") else {}),
        "metrics": {k: v for k, v in record["metrics"].items() if v is not None},
        "seconds": record["cost"]["seconds"]["total"], "growth": record["cost"]["growth"],
    }


END = "The runs, one per line with the counts behind every number"


def standing(file: Path, suite: str) -> tuple[str, list[str]]:
    """The section of a suite on the page ``file``, and its lines in the file beside it.

    Raises:
        SystemExit: where there is none.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(rf"^## {re.escape(suite)}\n.*?(?=^## |^{END})", text, re.MULTILINE | re.DOTALL)
    rows = file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines() if found else []
    lines = [row for row in rows if json.loads(row)["suite"] == suite]
    if found is None or not lines:
        sys.exit(f"{file} has no section of {suite} that could stay; give the folder of its records: {suite}=FOLDER")
    return found[0].rstrip("\n"), lines


def page(name: str, parts: dict[str, Path | None]) -> None:
    """Write ``results/continual/<name>.md`` and ``.jsonl``, or in ``results/tta`` where the suites are of streams. A suite
    without a folder keeps what the page has of it."""
    out = ROOT / "results" / ("tta" if all(suite.startswith("tta_") for suite in parts) else "continual")
    told = " ".join(f"{suite}=runs/{suite}" for suite in parts)
    title = name.replace("_", "-").title()
    for written, meant in (("Cifar", "CIFAR-"), ("Mnist", "MNIST"), ("-Imagenet", " on ImageNet weights"), ("Pacs", "PACS"),
                           ("Imagenet-Sample", "A sample of ImageNet under corruptions")):
        title = title.replace(written, meant)
    text = [f"# {title}", ""]
    text += ["    " + c for c in [*(command(s) for s in parts),
                                  f"python benchmarks/tables_cl.py {name} {told}"]]
    lines: list[str] = []
    for suite, folder in parts.items():
        if folder is None:
            section, rows = standing(out / f"{name}.md", suite)
            text += ["", section, ""]
            lines += rows
            continue
        runs = load_all(folder)
        unfinished = [r.id for r in runs if r.status != "finished"]
        if unfinished or runs.problems:
            sys.exit(f"{folder} holds runs that did not finish or cannot be read: {unfinished or runs.problems}")
        text += ["", f"## {suite}", "", about(suite), "", made_on(runs), ""]
        networks = dict.fromkeys(network(r) for r in runs)
        for name_of in networks:  # one after another: other weights are another protocol
            found = compare(RunList(r for r in runs if network(r) == name_of))
            text += [f"### On {name_of}", ""] if len(networks) > 1 else []
            text += [to_markdown(found), *(above(group) for group in found.groups if baselines(group)),
                     *filter(None, map(domains, found.groups))]
        lines += [json.dumps(line_of(r), sort_keys=True) for r in sorted(runs, key=lambda r: r.id)]
    text.append(f"{END}: `{name}.jsonl`.")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(out / f"{name}.md")


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("name", help="of the page, e.g. split_digits")
    given.add_argument("parts", nargs="+", help="suite=folder of its records, or a suite alone: what the page has of it stays")
    options = given.parse_args()
    given_parts = (part.partition("=") for part in options.parts)
    page(options.name, {suite: Path(folder) if folder else None for suite, _, folder in given_parts})
