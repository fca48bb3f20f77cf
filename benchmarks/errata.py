"""Where papers, released code and toolbox copies differ, and what it does to the number here.

    python benchmarks/errata.py                      # measures what is missing, writes docs/errata.md
    python benchmarks/errata.py --methods gpm mos    # these methods alone
    python benchmarks/errata.py --table              # only writes the page

What differs is what the methods declare (``differs``); where a setting chooses, both choices run on Split-Digits with five
seeds. Each measured run is a line of ``results/errata.jsonl``, kept as long as the method's own source is unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import cl_bench
from cl_bench import Backbone, LabelSpace, Method, Scenario
from cl_bench.adaptation import TestTimeMethod
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.seeding import derive, seeded
from cl_bench.registry import entries, find

HERE = Path(__file__).resolve().parents[1]
LINES, PAGE = HERE / "results" / "errata.jsonl", HERE / "docs" / "errata.md"
SEEDS, PER_CLASS = (0, 1, 2, 3, 4), 20
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast", "pixelate")
TRANSFORMERS = ("vida",)  # adapt the layers of attention
CPU = Compute("cpu")
HEAD = f"""# Errata: papers, their code, and copies of it

Made by `python benchmarks/errata.py` from what the methods declare themselves (`differs` in their files), so that it stays
true. Every difference names the code that makes it: repository, commit, file and line. Where a setting of the method chooses,
both choices ran on Split-Digits (five experiences of two digits, {PER_CLASS} training images per digit) with the embedded
backbone, the method's defaults unless more is said, and {len(SEEDS)} seeds; the effect is the second choice minus the first
in points of average accuracy after the last experience, with a 95 % interval over paired seeds. Methods that need the task's
identity are scored among each test set's own classes, the others among all classes seen. For test-time methods it is the
accuracy over {", ".join(CORRUPTIONS)} of Digits-C, one after another, after the embedded
network's classifier was trained on clean digits.
"""


def declared() -> Iterator[tuple[str, type[Method], Any]]:
    """(name, class, difference) of all that is declared, in the order of names."""
    for name in sorted(entries("cl_bench.methods")):
        cls = find("cl_bench.methods", name)
        for difference in vars(cls).get("differs", ()):
            yield name, cls, difference


def sides(difference: Any) -> list[dict[str, Any]]:
    """The settings that are measured against each other, whole."""
    return [{**difference.both, **settings} for settings in difference.here]


def digest(cls: type[Method]) -> str:
    """Of the file that the method is written in."""
    return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:12]


def backbone() -> Backbone:
    """The embedded ViT without the letters' classifier."""
    made: Backbone = find("cl_bench.backbones", "glyph_vit")()
    made.head, made.classes = None, ()
    return made


def streamed(name: str, settings: dict[str, Any], seed: int) -> float:
    """Accuracy in percent over the corruptions of Digits-C, one after another without a reset."""
    network = "glyph_vit" if name in TRANSFORMERS else "glyph_resnet"
    with tempfile.TemporaryDirectory() as where, redirect_stdout(io.StringIO()):
        made = cl_bench.run("digits_c", name, seeds=[seed], method_args=settings, backbone=network, runs=where,
                            scenario_args={"corruptions": ",".join(CORRUPTIONS)}, checkpoint=False)
    return 100 - float(made.metrics["mean_error"])


def accuracy(name: str, cls: type[Method], settings: dict[str, Any], seed: int) -> float:
    """Average accuracy in percent after five experiences, or over a stream for methods that adapt."""
    if issubclass(cls, TestTimeMethod):
        return streamed(name, settings, seed)
    order = np.random.default_rng(seed).permutation(10).tolist()
    scenario: Scenario = find("cl_bench.scenarios", "split_digits")(per_class=PER_CLASS, order=order)
    with seeded(derive(seed, "build")):
        method = cls(backbone(), **settings)
    method.plan(len(scenario.experiences()))
    seen = LabelSpace()
    for exp in scenario.experiences():
        fit(method, exp, CPU, derive(seed, "learn", exp.name))
        seen = seen | exp.space
    tests = scenario.test_sets()
    spaces = [t.space if "task_id" in cls.needs else seen for t in tests]
    scored = measure(method, tests, spaces, CPU, 256, 0)
    return float(np.mean([100 * s.correct / s.total for s in scored]))


def read() -> dict[tuple[str, str, str, int], float]:
    """Measured numbers by (method, source digest, settings, seed)."""
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    return {(e["method"], e["source"], json.dumps(e["settings"], sort_keys=True), e["seed"]): e["accuracy"] for e in lines}


def fill(wanted: set[str]) -> None:
    """Run what has not been measured at the present source."""
    held = read()
    for name, cls, difference in declared():
        for settings in sides(difference) if not wanted or name in wanted else ():
            for seed in SEEDS:
                key = (name, digest(cls), json.dumps(settings, sort_keys=True), seed)
                if key in held:
                    continue
                held[key] = accuracy(name, cls, settings, seed)
                with LINES.open("a") as file:
                    file.write(json.dumps({"method": name, "source": digest(cls), "settings": settings, "seed": seed,
                                           "accuracy": round(held[key], 4)}) + "\n")
                print(name, settings, seed, f"{held[key]:.2f}", flush=True)


def prune() -> None:
    """Leave out the lines of methods that were written since."""
    now = {name: digest(cls) for name, cls, _ in declared()}
    lines = LINES.read_text().splitlines(keepends=True) if LINES.exists() else []
    LINES.write_text("".join(line for line in lines if now.get(json.loads(line)["method"]) == json.loads(line)["source"]))


def told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in settings.items())


def effect(name: str, cls: type[Method], difference: Any, held: dict[Any, float]) -> str:
    """What the choice does here, in words and numbers."""
    if not difference.here:
        return "no choice here"
    keys = [(name, digest(cls), json.dumps(settings, sort_keys=True)) for settings in sides(difference)]
    one, two = ([held.get((*key, seed)) for seed in SEEDS] for key in keys)
    both = f"`{told(difference.here[0])}` (default) against `{told(difference.here[1])}`"
    both += f", with `{told(difference.both)}`" if difference.both else ""
    if None in one or None in two:
        return f"{both}: not measured at the present source"
    gaps = np.array(two, dtype=float) - np.array(one, dtype=float)
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
    low, high = gaps.mean() - half, gaps.mean() + half
    return f"{both}: {np.mean(one):.1f} and {np.mean(two):.1f} %, {gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def page() -> str:
    """The page."""
    held, lines, last = read(), [HEAD], ""
    for name, cls, difference in declared():
        if name != last:
            lines += ["", f"## {name}", "", f"{cls.paper}.", ""]  # type: ignore[attr-defined]
        last = name
        repository, place = difference.where.split(" ", 1)
        owner, commit = repository.split("@")
        lines.append(f"- {difference.what} Code: [{owner}](https://github.com/{owner}) at `{commit}`, `{place}`. Published "
                     f"table: {difference.table}. Here: {effect(name, cls, difference, held)}.")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[], help="these methods alone")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    known = {name for name, _, _ in declared()}
    if unknown := set(given.methods) - known:
        print(f"{', '.join(sorted(unknown))}: no method declares differences under that name; there are "
              f"{', '.join(sorted(known))}.", file=sys.stderr)
        return 2
    if not given.table:
        fill(set(given.methods))
        prune()
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
