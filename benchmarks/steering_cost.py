"""STS beside TPT on the same images: passes, time and memory of one image, and what they answer.

    python benchmarks/steering_cost.py               # writes results/vision_language/steering_cost.md; a minute on one core

Both adapt to one image from the same views among the same classes, in a process of their own each, in turns (A B A B ...), so
that a busy machine slows both. Time is the median over images of processor time, and of time on the clock; memory is the most
bytes of tensors that are alive at once while one image is adapted to, beyond those that were before, as torch's profiler
reports each allocation: views and their way through the image tower, which both share, and what each does after it, which is
told apart. Passes are counted at the towers. The paper of STS says up to 8 times faster and 12 times less memory on CLIP's
large towers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "vision_language" / "steering_cost.md"
SETTINGS = {"sts": {"views": 64, "area": 0.5, "flip": False}, "tpt": {"views": 64, "area": 0.5, "flip": False}}


def peak(act: Callable[[], Any]) -> int:
    """The most bytes of tensors alive at once while ``act`` runs, beyond those that were before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    alive = most = 0
    with tempfile.TemporaryDirectory() as folder:
        seen.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        most = max(most, alive)
    return most


def counted(method: Any) -> dict[str, int]:
    """How many images and texts go through the towers from now on, texts with a gradient apart."""
    import torch

    clip, found = method.model.backbone, {"images": 0, "texts": 0, "backward": 0}
    image, text = clip.forward_features, clip.encode_tokens

    def images(x: Any) -> Any:
        found["images"] += len(x)
        return image(x)

    def texts(tokens: Any, *rest: Any, **named: Any) -> Any:
        found["texts"] += len(tokens)
        out = text(tokens, *rest, **named)
        found["backward"] += len(tokens) if torch.is_grad_enabled() and out.requires_grad else 0
        return out

    clip.__dict__.update(forward_features=images, encode_tokens=texts)
    return found


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
    method.predict(images[:1], space)  # class texts are known from here on; both start anew with every image by themselves
    busy, clock, right = [], [], 0
    for x, y in zip(images[1:], labels[1:], strict=True):
        start, at = time.process_time(), time.perf_counter()
        answer = method.predict(x[None], space)
        busy.append(time.process_time() - start)
        clock.append(time.perf_counter() - at)
        right += int(answer.argmax()) == y
    most = peak(lambda: method.predict(images[:1], space))
    views = method.embed(images[0])
    alone = peak(lambda: method.score(views, method.text))
    passes = counted(method)
    method.predict(images[:1], space)
    return {"ms": 1000 * statistics.median(busy), "clock": 1000 * statistics.median(clock), "peak": most, "alone": alone,
            "accuracy": 100 * right / count, **passes}  # fmt: skip


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
    middle = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}
    ratios = [a["ms"] / b["ms"] for a, b in zip(found["tpt"], found["sts"], strict=True)]
    rows = [f"| {n} | {m['images']:.0f} | {m['texts']:.0f} | {m['backward']:.0f} | {m['ms']:.1f} | {m['clock']:.1f} | "
            f"{m['peak'] / 2**20:.2f} | {m['alone'] / 2**20:.2f} | {m['accuracy']:.0f} |"
            for n, m in middle.items()]  # fmt: skip
    each = ", ".join(f"{r:.1f}" for r in ratios)
    more = {k: middle["tpt"][k] / middle["sts"][k] for k in ("peak", "alone")}
    lines = [
        "# STS beside TPT", "", "    python benchmarks/steering_cost.py", "",
        f"Embedded CLIP, {given.images} images with {SETTINGS['sts']['views']} views each, {given.classes} classes, "
        f"{given.rounds} rounds in turns, one thread of a CPU ({platform.machine()}).", "",
        "| method | images through the image tower | texts through the text tower | of them backward | processor ms per image "
        "| ms on the clock | MiB of tensors at once | of them after the image tower | accuracy, % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|", *rows, "",
        f"TPT takes {statistics.median(ratios):.1f} times the processor time of STS (rounds: {each}) and {more['peak']:.1f} "
        f"times its memory; after the image tower, which both need alike, {more['alone']:.0f} times. The paper says up to 8 "
        "times the time and 12 times the memory on CLIP's large towers, where a text costs thousands of times more than here; "
        "STS sends no text through a tower once the classes are known. The memory is that of one image; what of it the tower's "
        f"pass over the {SETTINGS['sts']['views']} views takes is the same for both.", "",
    ]  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
