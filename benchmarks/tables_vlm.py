"""Transfer, Average and Last of a suite of vision-language methods from its records; of streams, error and cost.

    cl-bench suite vlm_glyphs --runs runs/vlm_glyphs
    python benchmarks/tables_vlm.py vlm_glyphs runs/vlm_glyphs
    cl-bench suite tta_vlm --runs runs/tta_vlm
    python benchmarks/tables_vlm.py tta_vlm runs/tta_vlm
    cl-bench suite vlm_real --runs runs/vlm_real
    python benchmarks/tables_vlm.py vlm_real runs/vlm_real real_gpu
    cl-bench suite vlm_real_small --runs runs/vlm_real_small
    python benchmarks/tables_vlm.py vlm_real_small runs/vlm_real_small real --keep

writes ``results/vision_language/<suite>.md`` (or what a third word says), what the suite's file says of itself above the means
over its runs, a section for each scenario where it has several, and ``.jsonl``, one line per run with the matrix that
every number follows from. With ``--keep`` the runs that are in that ``.jsonl`` and not in the folder stay on the page; where
runs of a method were made by different versions of its code the page says which.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.zero_shot import zero_shot, zero_shot_change
from cl_bench.records.results import Run, load_all

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {"transfer": "Transfer", "average_all": "Average", "last_accuracy": "Last", "zero_shot_accuracy": "zero-shot",
           "zero_shot_change": "zero-shot change", "forgetting": "forgetting"}  # fmt: skip
HELD_OUT = "held out, change"
JOINT = ", of all"  # ends the name of a test set that image_sets asks for a second time, among all classes
VIEWS = {"task": "each set among its own classes", "all": "among the classes of all sets that are taught",
         "seen": "among the classes seen so far"}  # fmt: skip


def about(suite: str) -> str:
    """The comment at the head of a suite's file."""
    lines = (ROOT / "configs" / "suite" / f"{suite}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line[1:].strip() for line in lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))])


class Seen(NamedTuple):
    """A run as one section shows it: its record, and what was asked there (``run.json``'s ``matrix`` and ``metrics``)."""

    record: Mapping[str, Any]
    matrix: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Busy seconds of all phases."""
        return float(sum(self.record["cost"]["busy_seconds"].values()))

    @property
    def code(self) -> str:
        """The start of the digest of the method's code; "" in a line that is older than this field."""
        return str(self.record["method"].get("source_digest") or "")[:12]


def ran(run: Seen) -> dict[str, Any]:
    """What a line says of how its run was made, beside its numbers."""
    told = run.record.get("environment", {})
    return {"code": run.code, "seconds": round(run.seconds, 1), "device": str(told.get("device", "cpu")).partition(":")[0],
            "card": told.get("card"), "precision": run.record["fingerprint"]["fields"].get("compute.precision", "32-true")}


def kept(line: Mapping[str, Any]) -> Seen:
    """The run that a line of a page's ``.jsonl`` tells of, with what the page shows."""
    stream = line.get("busy_seconds", 0.0)
    record: dict[str, Any] = {
        "seed": line["seed"], "method": {"label": line["method"], "source_digest": line.get("code")}, "stream": [],
        "environment": {"device": line.get("device", "cpu"), "card": line.get("card")},
        "fingerprint": {"fields": {"compute.precision": line.get("precision", "32-true")}},
        "cost": {"busy_seconds": {"adapt": stream, "all else": line["seconds"] - stream}},
    }
    if "matrix" in line:
        return Seen(record, line["matrix"], {k: line[k] for k in COLUMNS if line[k] is not None})
    record["stream"] = [{"name": name, "correct": c, "total": t} for name, (c, t) in line["counts"].items()]
    record["cost"] |= {k: line[k] for k in ("forward_images", "steps")}
    record["metrics"] = {k: line[k] for k in ("mean_error", "ece")}
    return Seen(record, {}, record["metrics"])


def views(run: Run) -> dict[str, Seen]:
    """A run by the spaces that it answers in: one, or with ``joint`` each set's own and that of all sets."""
    fields = run.record["fingerprint"]["fields"]
    if not fields.get("scenario.joint"):
        return {fields.get("answers", ""): Seen(run.record, run.record.get("matrix") or {}, run.record["metrics"])}
    whole = AccuracyMatrix.from_json(run.record["matrix"])
    found = {}
    for view in ("task", "all"):
        shown = [k for k, name in enumerate(whole.columns)
                 if whole.learned[k] is None or name.endswith(JOINT) == (view == "all")]  # type: ignore[index]
        m = AccuracyMatrix(whole.rows, tuple(whole.columns[k].removesuffix(JOINT) for k in shown), whole.correct[:, shown],
                           whole.total[:, shown], [whole.learned[k] for k in shown], whole.before)  # type: ignore[arg-type, index]
        numbers = {"transfer": m.transfer(), "average_all": m.average_all(), "last_accuracy": m.last(),
                   "zero_shot_accuracy": zero_shot(m), "zero_shot_change": zero_shot_change(m),
                   "forgetting": m.forgetting("best")}  # fmt: skip
        found[view] = Seen(run.record, m.to_json(), {k: v for k, v in numbers.items() if math.isfinite(v)})
    return found


def held_out(run: Seen) -> float | None:
    """Points by which accuracy on the test sets that nothing teaches differs between the last row and the first, their mean."""
    m = run.matrix
    never = [k for k, taught in enumerate(m["learned"]) if taught is None]
    if not never or not m.get("before"):
        return None
    first, last = ([100 * m["correct"][r][k] / m["total"][r][k] for k in never] for r in (0, -1))
    return sum(b - a for a, b in zip(first, last, strict=True)) / len(never)


def told(run: Seen, name: str) -> float | None:
    """A column's number for one run."""
    return held_out(run) if name == HELD_OUT else run.metrics.get(name)


def columns(found: dict[str, list[Seen]]) -> dict[str, str]:
    """The columns that some run has a number for."""
    every = [r for runs in found.values() for r in runs]
    return {k: v for k, v in {**COLUMNS, HELD_OUT: HELD_OUT}.items() if any(told(r, k) is not None for r in every)}


def row(label: str, runs: list[Seen], shown: dict[str, str]) -> str:
    """One method: means over its runs, what its zero-shot accuracy changed by in each, and what the quickest took."""
    cells = []
    for name in shown:
        values = [v for r in runs if (v := told(r, name)) is not None]
        cells.append(f"{sum(values) / len(values):.1f}" if values else "–")
    each = ", ".join(f"{changes(runs)[seed]:+.1f}" for seed in sorted(changes(runs))) or "–"
    took = min(r.seconds for r in runs)  # what else a machine does lengthens a run, and shortens none
    return f"| {label} | {len(runs)} | " + " | ".join(cells) + f" | {each} | {took:.0f} |"


def changes(runs: list[Seen]) -> dict[int, float]:
    """Points that accuracy on domains not learned yet moved by, by seed."""
    return {r.record["seed"]: v for r in runs if (v := r.metrics.get("zero_shot_change")) is not None}


def computed(runs: list[Seen]) -> tuple[str, str]:
    """What the seconds of these runs are, and a sentence on the device and the precision, where they are not a CPU's own."""
    devices = {str(r.record.get("environment", {}).get("device", "cpu")).partition(":")[0] for r in runs}
    kinds = {r.record["environment"].get("card") or "GPU" for r in runs if "cuda" in devices}
    precisions = {r.record["fingerprint"]["fields"].get("compute.precision", "32-true") for r in runs}
    if devices == {"cpu"}:
        return "processor seconds", "" if precisions == {"32-true"} else f"Computed in {', '.join(sorted(precisions))}."
    return ("seconds by the clock, the GPU being shared,",
            f"Computed on {', '.join(sorted(kinds))} in {', '.join(sorted(precisions))}.")


def versions(found: dict[str, list[Seen]]) -> list[str]:
    """Sentences on the methods whose runs were made by more than one version of their code."""
    out = list[str]()
    for label, runs in found.items():
        by_code: dict[str, list[int]] = defaultdict(list)
        for r in sorted(runs, key=lambda r: r.record["seed"]):
            by_code[r.code or "one that the line does not name"].append(r.record["seed"])
        if len(by_code) > 1:
            each = "; ".join(f"{code}: {', '.join(map(str, seeds))}" for code, seeds in by_code.items())
            out.append(f"Versions of the code of {label.partition('(')[0]} by seed: {each}.")
    return out


def retention(found: dict[str, list[Seen]]) -> list[str]:
    """Sentences that set CoDyRA beside sequential LoRA and full fine-tuning, order by order."""
    dense = "no pruning"  # CoDyRA with a threshold of 0
    by_name = {dense if "kappa_max=0.0)" in label else label.partition("(")[0]: changes(runs) for label, runs in found.items()}
    own, out = by_name.get("codyra_clip", {}), list[str]()
    for other in ("clip_lora", "clip_finetune"):
        shared = sorted(set(own) & set(by_name.get(other, {})))
        apart = [own[s] - by_name[other][s] for s in shared]
        if apart:
            above = sum(a > 0 for a in apart)
            out.append(f"CoDyRA keeps {sum(apart) / len(apart):+.2f} points of zero-shot accuracy against {other}, mean over "
                       f"{len(apart)} orders ({', '.join(f'{a:+.2f}' for a in apart)}): more in {above} of {len(apart)}.")
    if own:
        mean = sum(own.values()) / len(own)
        out.append(f"Against the model as it came its own change is {mean:+.2f} points: it "
                   f"{'keeps' if mean >= -0.1 else 'loses some of its'} zero-shot accuracy.")
    if apart := [own[s] - by_name[dense][s] for s in sorted(set(own) & set(by_name.get(dense, {})))]:
        out.append(f"Closing gates is worth {sum(apart) / len(apart):+.2f} points of it, mean over {len(apart)} orders "
                   f"({', '.join(f'{a:+.2f}' for a in apart)}): so much less is lost than by the same training without.")
    return out


def stream_page(found: dict[str, list[Seen]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Error by domain, calibration, passes and processor time of each method, and the lines of the record beside it."""
    domains = [e["name"] for e in next(iter(found.values()))[0].record["stream"]]
    ranked = sorted(found.items(), key=lambda pair: pair[1][0].record["metrics"]["mean_error"])
    rows, lines = [], list[dict[str, Any]]()
    for label, runs in ranked:
        r = runs[0].record
        each = {e["name"]: 100 * (1 - e["correct"] / e["total"]) for e in r["stream"]}
        cost = {"steps": 0, **r["cost"]}
        told = [r["metrics"]["mean_error"], *(each[d] for d in domains), r["metrics"]["ece"]]
        passes, busy = cost["forward_images"] / 1000, cost["busy_seconds"]["adapt"]
        rows.append(f"| {label} | " + " | ".join(f"{v:.1f}" for v in told) + f" | {passes:.1f} | {busy:.1f} |")
        lines.append({"method": label, "seed": r["seed"], "mean_error": told[0], "by_domain": each, "ece": told[-1],
                      "forward_images": cost["forward_images"], "steps": cost["steps"], "busy_seconds": busy,
                      "counts": {e["name"]: [e["correct"], e["total"]] for e in r["stream"]}, **ran(runs[0])})  # fmt: skip
    count = sum(e["total"] for e in next(iter(found.values()))[0].record["stream"])
    clock, where = computed([r for runs in found.values() for r in runs])
    head = " | ".join(["mean", *domains, "ECE", "images through the tower, k",
                       "processor time, s" if clock.startswith("processor") else "time by the clock, GPU shared, s"])
    page = [f"Error in percent over one stream of {count} images (seed {ranked[0][1][0].record['seed']}). {where}".strip(), "",
            f"| method | {head} |", "|---|" + "--:|" * (len(domains) + 4), *rows, ""]  # fmt: skip
    return page, lines


def learning_page(found: dict[str, list[Seen]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Means of each method, best Last first, what CoDyRA keeps, and the lines of the record beside it."""
    ranked = sorted(found.items(), key=lambda pair: -sum(r.metrics["last_accuracy"] for r in pair[1]) / len(pair[1]))
    seeds = sorted({r.record["seed"] for runs in found.values() for r in runs})
    shown = columns(found)
    head = " | ".join(shown.values())
    clock, where = computed([r for runs in found.values() for r in runs])
    page = [f"Percent; means over the runs made (seeds {', '.join(map(str, seeds))}), each with its own order of the domains.",
            f"Beside them the zero-shot change in each of these orders, and {clock} of its quickest run. {where}".strip(), "",
            f"| method | n | {head} | by order | s |", "|---|--:|" + "--:|" * (len(shown) + 2),
            *(row(*pair, shown) for pair in ranked), "", *retention(found), *versions(found), ""]  # fmt: skip
    lines = [{"method": label, "seed": r.record["seed"], "matrix": r.matrix,
              **{k: r.metrics.get(k) for k in COLUMNS}, **ran(r)}
             for label, runs in sorted(found.items()) for r in sorted(runs, key=lambda r: r.record["seed"])]  # fmt: skip
    return page, lines


def sections(folder: Path) -> dict[str, dict[str, list[Seen]]]:
    """Finished runs by what was asked and by method: the scenario's name, and how it is answered."""
    found: dict[str, dict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for run in load_all(folder):
        if run.status == "finished":
            name = run.scenario.partition("(")[0]  # its options are in the suite's file
            for view, seen in views(run).items():
                found[", ".join([name, *([VIEWS[view]] if view else [])])][run.record["method"]["label"]].append(seen)
    return found


def with_kept(parts: dict[str, dict[str, list[Seen]]], old: Path) -> dict[str, dict[str, list[Seen]]]:
    """`parts`, and what the lines of `old` tell of the same sections, methods and seeds that they have no run of."""
    alone = next(iter(parts)) if len(parts) == 1 else ""  # a page of one section does not name it in its lines
    whole: dict[str, dict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for line in map(json.loads, old.read_text(encoding="utf-8").splitlines()):
        title, label = line.get("section", alone), line["method"]
        if line["seed"] not in {r.record["seed"] for r in parts.get(title, {}).get(label, ())}:
            whole[title][label].append(kept(line))
    for title, found in parts.items():
        for label, runs in found.items():
            whole[title][label] += runs
    return dict(whole)


def write(suite: str, folder: Path, name: str = "", keep: bool = False) -> str:
    """The page of a suite's finished runs, written with its record."""
    parts = sections(folder)
    where = ROOT / "results" / "vision_language"
    if keep:
        parts = with_kept(parts, where / f"{name or suite}.jsonl")
    if not parts:
        raise SystemExit(f"no run in {folder} has finished: run cl-bench suite {suite} --runs {folder}")
    page, lines = list[str](), list[dict[str, Any]]()
    for title, found in parts.items():
        part, told = stream_page(found) if next(iter(found.values()))[0].record["stream"] else learning_page(found)
        page += [*([f"## {title}", ""] if len(parts) > 1 else []), *part]
        lines += [{"section": title, **line} if len(parts) > 1 else line for line in told]
    words = " ".join([suite, f"runs/{suite}", *([name] if name else []), *(["--keep"] if keep else [])])
    top = [f"# {name or suite}", "", f"    cl-bench suite {suite} --runs runs/{suite}",
           f"    python benchmarks/tables_vlm.py {words}", "", about(suite), ""]  # fmt: skip
    where.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*top, *page])
    (where / f"{name or suite}.md").write_text(text, encoding="utf-8")
    (where / f"{name or suite}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return text


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--keep"]
    print(write(given[0], Path(given[1]), given[2] if given[2:] else "", "--keep" in sys.argv))
