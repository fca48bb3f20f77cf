"""STS beside TPT on the same images: passes, time and memory of one image, and what they answer.

    python benchmarks/steering_cost.py               # writes results/vision_language/steering_cost.md; a minute on one core

Both adapt to one image from the same views among the same classes, in a process of their own each, in turns (A B A B ...), so
that a busy machine slows both. Time is the median over images; memory is what the process grew by while it adapted, over what
it held after a first image. The paper of STS says up to 8 times faster and 12 times less memory on CLIP's large towers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "vision_language" / "steering_cost.md"
SETTINGS = {"sts": {"views": 64, "area": 0.5, "flip": False}, "tpt": {"views": 64, "area": 0.5, "flip": False}}


def peak() -> int:
    """The process's largest resident size so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(name: str, count: int, classes: int) -> dict[str, float]:
    """Adapts to ``count`` images of the capitals and small letters of held-out fonts, among ``classes`` names."""
    import torch

    from cl_bench import LabelSpace, StreamFacts
    from cl_bench.registry import find
    from cl_bench.testing import _engine as engine

    torch.set_num_threads(1)
    tests = find("cl_bench.scenarios", "vlm_glyphs")(answers="all").test_sets()
    space = LabelSpace(tests[0].space.ids, tests[0].space.names, tests[0].space.templates) | tests[1].space | tests[2].space
    space = LabelSpace(space.ids[:classes], space.names[:classes], tests[0].space.templates)
    method = engine.built(find("cl_bench.methods", name), find("cl_bench.backbones", "glyph_clip")(), SETTINGS[name])
    method.deploy(None, StreamFacts(1, space))
    method.eval()
    rows = torch.randperm(len(tests[0].data), generator=torch.Generator().manual_seed(0))[: count + 1]  # type: ignore[arg-type]
    images = tests[0].data.x[rows].float() / 255  # type: ignore[attr-defined]
    labels = [space.ids.index(int(i)) for i in tests[0].data.y[rows]]  # type: ignore[attr-defined]
    method.mark()
    method.predict(images[:1], space)
    before, seconds, right = peak(), [], 0
    for x, y in zip(images[1:], labels[1:], strict=True):
        method.reset()
        start = time.process_time()
        answer = method.predict(x[None], space)
        seconds.append(time.process_time() - start)
        right += int(answer.argmax()) == y
    prompts = len(space)
    through = {"sts": (0, 0), "tpt": (2 * prompts, prompts)}[name]  # with the context as it comes, and as it was tuned
    return {"ms": 1000 * statistics.median(seconds), "grew": peak() - before, "accuracy": 100 * right / count,
            "views": SETTINGS[name]["views"], "forward": through[0], "backward": through[1]}  # fmt: skip


def child(name: str, count: int, classes: int) -> dict[str, float]:
    """The same in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", name, "--images", str(count), "--classes", str(classes)],
                          capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--classes", type=int, default=62)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=sorted(SETTINGS))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one, given.images, given.classes)))
        return
    found = {name: [] for name in SETTINGS}  # type: dict[str, list[dict[str, float]]]
    for _ in range(given.rounds):
        for name in SETTINGS:
            found[name].append(child(name, given.images, given.classes))
    ms = {n: statistics.median(r["ms"] for r in rows) for n, rows in found.items()}
    grew = {n: statistics.median(r["grew"] for r in rows) / 2**20 for n, rows in found.items()}
    ratios = [a["ms"] / b["ms"] for a, b in zip(found["tpt"], found["sts"], strict=True)]
    rows = [f"| {n} | {r[0]['views']:.0f} | {r[0]['forward']:.0f} | {r[0]['backward']:.0f} | {ms[n]:.1f} | {grew[n]:.1f} | "
            f"{r[0]['accuracy']:.0f} |" for n, r in found.items()]  # fmt: skip
    each = ", ".join(f"{r:.1f}" for r in ratios)
    lines = [
        "# STS beside TPT", "", "    python benchmarks/steering_cost.py", "",
        f"Embedded CLIP, {given.images} images with {SETTINGS['sts']['views']} views each, {given.classes} classes, "
        f"{given.rounds} rounds in turns, one thread of a CPU ({platform.machine()}); processor time.", "",
        "| method | images through the image tower | texts forward | texts backward | ms per image | MiB grown | accuracy, % |",
        "|---|--:|--:|--:|--:|--:|--:|", *rows,
        "", f"TPT takes {statistics.median(ratios):.1f} times as long as STS (rounds: {each}). The paper says 8 times the "
        "time and 12 times the memory on CLIP's large towers, where a text costs thousands of times more than here; STS sends "
        "no text through a tower once the classes are known.", "",
    ]  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
