"""Our test-time methods against the public implementations, on the same images, weights and protocol.

    python benchmarks/parity_tta.py                                  # measure what is missing, write the table
    python benchmarks/parity_tta.py --methods tent eata --models resnet56 --seeds 1 2 3
    python benchmarks/parity_tta.py --methods cotta --again          # measure again
    python benchmarks/parity_tta.py --table                          # only write the table

Reads ``../shared`` (or ``$CL_BENCH_SHARED``). Every measured row is appended to ``results/parity/tta_cifar10c_1k.jsonl``;
the table ``results/parity/tta_cifar10c_1k.md`` is made from that file. Protocol, as in the reference's README: online,
no reset, severity 5, batches of 200 in file order, channels-last float32 on one CPU thread, denormals flushed to zero.

Cost is CPU time of ``predict``. One plain forward pass of the same network in evaluation mode is timed on every fifth
batch of the same run, so that a busy machine slows both; a pass in units of it is what the bound speaks of. Beside it
stand the images that really went forward and backward through the network, which no machine can change.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cl_bench.data.tensor import batches
from cl_bench.engine.meter import Meter
from cl_bench.engine.seeding import derive
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.scenario import Scenario
from cl_bench.types import StreamFacts

HERE = Path(__file__).resolve().parents[1]
OUT = HERE / "results" / "parity"
#: Passes over a batch of the official procedures: forward, and backward as images that a gradient flows through (not
#: calls of ``backward()``). "kept" is the share of images that a filter keeps, taken from the counted forward passes. A
#: backward pass counts as two forward passes.
#:
#: - roid, cmf: one loss runs back through the batch and through the kept, augmented part (both sides of the consistency
#:   term carry gradient), so backward is 1 + kept.
#: - santa: student on the batch and on its augmentation, both with gradient, and the anchor without.
#: - rmt: the same with a teacher in place of the anchor, and a labelled source batch with gradient.
#: - rotta, note: one update on 64 remembered images per 64 images of the stream (rotta: student and teacher).
#: - shot: ttab's online form answers by the adapting pass itself.
PASSES: dict[str, tuple[float | str, float | str]] = {
    "source": (1, 0), "bn": (1, 0), "bn_alpha": (2, 0), "bn_ema": (2, 0), "tent": (1, 1), "rpl": (1, 1), "eta": (1, 1),
    "eata": (1, 1), "rdumb": (1, 1), "sar": (2, 2), "deyo": ("1 + kept", 1), "cotta": (34, 1), "psmt": (2, 1),
    "rotta": (3, 1), "rmt": (4, 3), "santa": (3, 2), "roid": ("1 + kept", "1 + kept"), "cmf": ("1 + kept", "1 + kept"),
    "lame": (1, 0), "t3a": (1, 0), "shot": (1, 1), "note": (2, 1), "memo": (33, 32), "vida": (12, 1),
    "label_shift_adapter": (1, 1),
}
EXACT = ("source", "bn", "bn_alpha", "tent", "rpl", "sar", "lame", "eata")
#: Draw no random number on this stream: further seeds would repeat the first.
DETERMINISTIC = ("source", "bn", "bn_alpha", "bn_ema", "tent", "rpl", "eta", "rdumb", "sar", "lame", "t3a", "shot")
UNSUITED = {"vida": "adapts the linear layers inside attention; these networks have none; compared in tta_steps.md",
            "memo": "not measured: 97 passes per image, half an hour of a core (`--methods memo`); compared in tta_steps.md"}
IMAGES = 15_000  # of the stream
NOTES = HERE / "results" / "parity" / "tta_cifar10c_1k.notes.json"


def shared() -> Path:
    """The folder of data, weights and reference."""
    return Path(os.environ.get("CL_BENCH_SHARED", HERE.parent / "shared"))


def stream() -> Scenario:
    """The 75 batches, and the source data of methods that need some."""
    where = shared() / "data"
    made: Scenario = find("cl_bench.scenarios", "cifar10c")(
        root=str(where / "cifar10c_1k"), clean_root=str(where / "cifar10_5k"))
    return made


def network(depth: int) -> Any:
    """A fresh ResNet, channels-last."""
    made = find("cl_bench.backbones", "cifar_resnet")(depth=depth, folder=str(shared() / f"weights/resnet{depth}"))
    return made.to(memory_format=torch.channels_last)


def keep_memory() -> None:
    """Start this process again with the settings of ``ALLOCATOR``, which glibc reads when a process starts."""
    if any(os.environ.get(k) != v for k, v in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def measure(name: str, depth: int, seed: int) -> dict[str, Any]:
    """One method over the 75 batches: error in percent per corruption, CPU seconds, counted passes."""
    scenario, backbone = stream(), network(depth)
    plain, meter = copy.deepcopy(backbone), Meter()
    meter.attach(backbone, torch.zeros(1, 3, 32, 32))
    method = find("cl_bench.methods", name)(backbone).eval()
    method.rng = Rng(derive(seed, "deploy", 0))  # what ``cl-bench suite tta_cifar10c_1k`` draws from with this seed
    started = time.process_time()
    method.deploy(scenario.source if "source" in method.needs else None,
                  StreamFacts(scenario.test_batch_size, scenario.space))
    deploying = time.process_time() - started
    meter.forward_images = meter.backward_images = 0
    errors: dict[str, float] = {}
    spent: list[float] = []
    unit: list[float] = []
    seen = 0
    for test in scenario.stream():
        wrong = 0
        for x, y in batches(test.data, scenario.test_batch_size):
            x = x.contiguous(memory_format=torch.channels_last)
            if seen % 1000 == 0:
                unit.append(_seconds(lambda x=x: plain(x)))  # type: ignore[misc]
            started = time.process_time()
            with torch.set_grad_enabled(method.adapts):
                answer = method.predict(x, scenario.space)
            spent.append(time.process_time() - started)
            wrong += int((answer.argmax(1) != y).sum())
            seen += len(x)
        errors[test.name] = 100.0 * wrong / len(test.data)  # type: ignore[arg-type]
        print(f"  {name} resnet{depth} seed {seed} {test.name}: {errors[test.name]:.1f}", flush=True)
    counters = getattr(method, "counters", dict)()
    return {
        "method": name, "model": f"resnet{depth}", "seed": seed, "errors": errors,
        "mean": statistics.fmean(errors.values()), "seconds_per_1000": 1000 * sum(spent) / seen,
        "median_batch": statistics.median(spent), "median_plain": statistics.median(unit), "deploy_seconds": deploying,
        "forward": meter.forward_images / seen, "backward": meter.backward_images / seen,
        "counters": counters, "torch": torch.__version__, "processor": platform.processor() or platform.machine(),
    }


@torch.no_grad()
def _seconds(step: Any) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def rows() -> dict[tuple[str, str, int], dict[str, Any]]:
    """What has been measured; a later line replaces an earlier one of the same method, model and seed."""
    file = OUT / "tta_cifar10c_1k.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {(r["method"], r["model"], r["seed"]): r for r in found}


def reference() -> dict[tuple[str, str], list[dict[str, float]]]:
    """The public implementations' rows by method and model."""
    out: dict[tuple[str, str], list[dict[str, float]]] = {}
    with (shared() / "reference/tta_cifar10c_1k.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row.pop("method"), row.pop("model"))
            out.setdefault(key, []).append({k: float(v) for k, v in row.items() if k != "seed"})
    return out


def implied(name: str, forward: float, kept: float) -> tuple[str, float]:
    """The published passes in words and their cost in forward passes; ``kept``: share of images that the filter kept."""
    words, passes = [], []
    for published, seen in zip(PASSES[name], (forward, 1 + kept), strict=True):
        words.append(f"({published})" if isinstance(published, str) else f"{published}")
        passes.append(seen if isinstance(published, str) else published)
    if isinstance(PASSES[name][1], str):  # what the filter keeps goes through forward and backward alike
        passes[0] = 1 + kept
    return f"{words[0]} + {words[1]} back", passes[0] + 2 * passes[1]


def line(name: str, model: str, mine: list[dict[str, Any]], theirs: list[dict[str, float]], notes: dict[str, str]) -> str:
    """One row of the table."""
    target = f"{statistics.fmean(r['mean'] for r in theirs):.2f} ({len(theirs)})" if theirs else "-"
    speed = f"{statistics.fmean(r['seconds_per_1000_images_1_thread'] for r in theirs):.2f}" if theirs else "-"
    if not mine:
        return f"| {name} | {model} | - | {target} | - | - | {speed} | - | - | - | - | {UNSUITED.get(name, 'not measured')} |"
    mean = statistics.fmean(r["mean"] for r in mine)
    spread = f" ± {statistics.stdev(r['mean'] for r in mine):.2f}" if len(mine) > 1 else ""
    verdicts, difference = [], "-"
    if theirs:
        far, bound = mean - statistics.fmean(r["mean"] for r in theirs), 0.5 if name in EXACT else 1.0
        difference = f"{far:+.2f}"
        verdicts.append("error in bounds" if abs(far) <= bound else f"**error beyond {bound:g}**")
    cost = statistics.median(r["median_batch"] / r["median_plain"] for r in mine)
    forward, backward = (statistics.fmean(r[k] for r in mine) for k in ("forward", "backward"))
    kept = statistics.fmean(r["counters"].get("selected", 0) / IMAGES for r in mine)
    words, units = implied(name, forward, kept)
    verdicts.append("cost in bounds" if cost <= 1.15 * units else "**cost beyond**")
    note = notes.get(f"{name}/{model}", notes.get(name, ""))
    mark = f" [{note}]" if note and any("beyond" in v for v in verdicts) else ""
    seconds = statistics.fmean(r["seconds_per_1000"] for r in mine)
    passed, verdict = f"{forward:.2f} + {backward:.2f} back", ", ".join(verdicts) + mark
    return (f"| {name} | {model} | {mean:.2f}{spread} ({len(mine)}) | {target} | {difference} | {seconds:.2f} | {speed} "
            f"| {cost:.2f} | {passed} | {words} | {1.15 * units:.2f} | {verdict} |")


def table() -> str:
    """The whole page."""
    measured, theirs = rows(), reference()
    notes: dict[str, str] = json.loads(NOTES.read_text()) if NOTES.is_file() else {}
    body = []
    for name in PASSES:
        for model in ("resnet20", "resnet56"):
            mine = [r for (m, n, _), r in sorted(measured.items()) if (m, n) == (name, model)]
            if mine or (name, model) in theirs or model == "resnet20":
                body.append(line(name, model, mine, theirs.get((name, model), []), notes))
    used = [f"- [{text}] {notes['_' + text]}" for text in notes.get("_order", "").split()]
    count = {what: sum(what in row for row in body) for what in ("error in", "error beyond", "cost in", "cost beyond")}
    return "\n".join([
        "# Test-time methods on CIFAR-10-C (1,000 images x 15 corruptions) against the public implementations", "",
        "Made by `python benchmarks/parity_tta.py`. Error in percent, mean of the 15 corruptions; continual (no reset),",
        "severity 5, batches of 200 in file order, one CPU thread, float32, defaults of each method. In brackets: how many",
        "seeds. Reference: mariodoebler/test-time-adaptation (psmt: JiaxuTian/PSMT) on the same images and weights.",
        "RDumb, T3A, SHOT, NOTE, MEMO, ViDA and RoTTA stand beside their authors' own code, batch by batch, in",
        "[tta_steps.md](tta_steps.md); of the label shift adapter there is none.",
        "Bounds of the error: 0.5 points for " + ", ".join(EXACT) + "; 1.0 for the others.", "",
        f"Errors in bounds: {count['error in']} rows, beyond: {count['error beyond']}. "
        f"Costs in bounds: {count['cost in']} rows, beyond: {count['cost beyond']}.", "",
        "- **s / 1,000**: CPU seconds of ours per 1,000 images; other work shared the machine.",
        "- **reference s**: what the reference's CSV says (one thread of a shared machine): rough ratios only;",
        "  [tta_speed.md](tta_speed.md) times both in turns in one process.",
        "- **cost**: CPU time of one of our batches in units of one plain forward pass of the same network in evaluation mode,",
        "  both timed in the same run (medians). This is what the bound speaks of: no machine changes it much.",
        "- **passed**: images that went forward and backward through the network, divided by those of the stream.",
        "- **published**: the passes of the official procedure; **bound**: 1.15 times their cost, a backward pass counting",
        "  two forward passes.", "",
        "| method | model | error | reference | difference | s / 1,000 | reference s | cost | passed | published | bound | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|", *body, "", *used, ""])


#: glibc hands freed memory back to the system and then pays page faults for it again, up to a quarter of a forward pass
#: and more for one method than for another; told to keep it, both figures of a cost are free of that.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(1 << 28)}


def main() -> None:
    """Measure what is missing, row by row, then write the table."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--methods", nargs="+", default=[m for m in PASSES if m not in UNSUITED])
    parser.add_argument("--models", nargs="+", default=["resnet20"], choices=["resnet20", "resnet56"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    OUT.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        for name in args.methods:
            for seed in args.seeds[:1] if name in DETERMINISTIC else args.seeds:
                if args.table or ((name, model, seed) in rows() and not args.again):
                    continue
                row = measure(name, int(model.removeprefix("resnet")), seed)
                with (OUT / "tta_cifar10c_1k.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                (OUT / "tta_cifar10c_1k.md").write_text(table())
                print(f"{name} {model} seed {seed}: {row['mean']:.2f}, {row['seconds_per_1000']:.2f} s / 1,000", flush=True)
    (OUT / "tta_cifar10c_1k.md").write_text(table())


if __name__ == "__main__":
    main()
