"""What a long run costs: time per experience and memory at 5, 20 and 100 experiences, and over a stream of 1,000 domains.

    python benchmarks/speed_growth.py [--lengths 5 20 100] [--domains 1000]

Writes results/speed/growth.json.

Experiences are domain-incremental: 64 embedded digits each, brightened more and more, with a test set of 20. All T test sets
can be answered from the first on, so a row of the matrix is of T cells, and a step should take what learning takes and T times
what a cell takes. A domain of the stream is 20 images, answered by TENT in one batch. `finetune` and TENT on the embedded
ResNet, one thread, checkpoints as they are by default, processor time. Memory is the process's (VmRSS), taken by a listener
after every experience or domain; each length is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMAGES, TESTS = 64, 20


def scenario(length: int, streams: bool) -> Any:
    """``length`` domains of digits, learned one after the other or streamed."""
    import torch

    from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet
    from cl_bench.data.digits import digits

    space = LabelSpace(tuple(range(10)), tuple(map(str, range(10))))

    class Brighter(Scenario):
        gives = frozenset({"source", "boundaries"}) if streams else frozenset({"boundaries"})
        answers = "all"
        test_batch_size = TESTS

        @cached_property
        def parts(self) -> dict[str, TensorData]:
            return {part: digits(part) for part in ("train", "test")}

        @property
        def space(self) -> LabelSpace:
            return space

        @property
        def source(self) -> Experience | None:
            return Experience("source", space, self.parts["train"].subset(torch.arange(200))) if streams else None

        def domain(self, part: str, k: int, count: int) -> TensorData:
            data = self.parts[part].subset((torch.arange(count) + 7 * k) % len(self.parts[part]))
            return TensorData((data.x.int() + 60 * k // length).clamp(max=255).to(torch.uint8), data.y)

        @cached_property
        def made(self) -> tuple[list[Experience], list[TestSet], list[TestSet]]:
            if streams:
                clean = TestSet("clean", space, self.parts["test"].subset(torch.arange(100)))
                return [], [clean], [TestSet(f"d{k}", space, self.domain("test", k, TESTS), domain=f"d{k}")
                                     for k in range(length)]
            return ([Experience(f"e{k}", space, self.domain("train", k, IMAGES)) for k in range(length)],
                    [TestSet(f"e{k}", space, self.domain("test", k, TESTS), of=f"e{k}") for k in range(length)], [])

        def experiences(self) -> list[Experience]:
            return self.made[0]

        def test_sets(self) -> list[TestSet]:
            return self.made[1]

        def stream(self) -> list[TestSet]:
            return self.made[2]

    return Brighter()


def resident() -> float:
    """MiB that this process holds."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def one(length: int, streams: bool) -> dict[str, Any]:
    """One run; when each step ended, and what the process held then."""
    import torch

    from cl_bench.engine.compute import Compute
    from cl_bench.engine.protocol import Plan
    from cl_bench.engine.runner import run
    from cl_bench.engine.source_training import SourceRecipe
    from cl_bench.registry import find

    torch.set_num_threads(1)
    name = "tent" if streams else "finetune"
    cls = find("cl_bench.methods", name)
    part = {"name": name, "class_path": f"{cls.__module__}.{cls.__qualname__}", "args": {}, "label": name}
    plan = Plan(scenario(length, streams), find("cl_bench.backbones", "glyph_resnet")(), cls,
                lambda b: cls(b) if streams else cls(b, epochs=1, batch_size=32),
                {"scenario": {"name": "brighter", "label": "brighter"}, "method": part, "backbone": {"name": "glyph_resnet"}},
                compute=Compute(device="cpu"), recipe=SourceRecipe(epochs=1))
    marks: list[tuple[float, float]] = []

    def listen(kind: str, facts: Any) -> None:
        if kind == ("domain" if streams else "experience"):
            marks.append((time.process_time(), resident()))

    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        record = json.loads((run(plan, Path(folder), listen=listen) / "run.json").read_text())
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
    ends = [began, *(t for t, _ in marks)]
    steps = [b - a for a, b in itertools.pairwise(ends)]
    spent, tenth = record["cost"]["busy_seconds"], max(1, length // 10)
    cells = sum(c is not None for row in record["matrix"]["correct"] for c in row)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {"run": "stream of domains" if streams else "experiences", "T": length, "s in all": steps and ends[-1] - began,
            "ms a step, of the first tenth": 1000 * mean(steps[1:tenth + 1]),
            "of the last tenth": 1000 * mean(steps[-tenth:]), "learning or adapting, ms a step":
            1000 * (spent["adapt"] if streams else spent["learn"]) / length,
            "evaluating, ms a cell": None if streams else 1000 * spent["evaluate"] / cells,
            "MiB after the first tenth": marks[tenth - 1][1], "MiB at the end": marks[-1][1], "record MiB": size}


def main() -> None:
    """Every length, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[5, 20, 100])
    parser.add_argument("--domains", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--one", nargs=2, metavar=("LENGTH", "STREAMS"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    if o.one:
        print(json.dumps(one(int(o.one[0]), o.one[1] == "1")))
        return
    rows = []
    for length, streams in [*((n, 0) for n in o.lengths), *((n, 1) for n in o.domains)]:
        words = [sys.executable, __file__, "--one", str(length), str(streams)]
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE)
        rows.append(json.loads(said.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    sys.path.insert(0, str(HERE / "gpu"))
    import torch
    from common import keep_figures

    torch.set_num_threads(1)
    keep_figures(o.out, "growth", __doc__, rows, load=False)


if __name__ == "__main__":
    main()
