"""Every method learns, adapts and answers on a GPU: what runs on a CPU must not have left anything behind there.

Without a GPU these tests are skipped; ``CL_BENCH_GPU_TESTS=cpu`` runs the same ones on the CPU.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.seeding import seeded
from cl_bench.engine.source_training import SourceRecipe, ready_backbone
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.errors import UserError
from cl_bench.method import Method
from cl_bench.registry import GROUPS, entries, find
from cl_bench.rng import Rng
from cl_bench.testing import ToyScenario
from cl_bench.testing.toy import class_names
from cl_bench.testing.trial import streams
from cl_bench.types import LabelSpace, StreamFacts

WHERE = os.environ.get("CL_BENCH_GPU_TESTS", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHERE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
METHODS = entries(GROUPS["methods"])
TEST_TIME = [n for n, e in METHODS.items() if streams(e.load())]
LEARNS = [n for n in METHODS if n not in TEST_TIME]
# Published defaults that are made for thousands of steps or images: here one pass over some dozens is asked for.
QUICK: dict[str, dict[str, Any]] = {"rmt": {"warmup": 64}, "memo": {"views": 2}, "cotta": {"augmentations": 2},
                                    "cotta_calibrated": {"augmentations": 2}}
SPACE = LabelSpace((0, 1, 2, 3), class_names((0, 1, 2, 3)))


def built(name: str, scenario: ToyScenario, compute: Compute, cache: Path) -> Method:
    """The method on the first embedded backbone that it accepts, its classifier trained for one epoch where it adapts; those
    that read the classes' names are given CLIP."""
    cls = METHODS[name].load()
    makers = ("glyph_vit", "glyph_resnet") if scenario.learns else ("glyph_resnet", "glyph_vit")
    if ".vision_language." in METHODS[name].target:
        pytest.importorskip("open_clip")
        makers = ("glyph_clip", *makers)
    for maker in makers:
        base = ready_backbone(find("cl_bench.backbones", maker)(), scenario, SourceRecipe(epochs=1), compute, 0, fits=False,
                              cache=cache)
        try:
            with seeded(7):
                method: Method = cls(base, **QUICK.get(name, {}))
                trial = copy.deepcopy(method).to(WHERE)
                if scenario.learns:
                    trial.begin(scenario.experiences()[0])
                else:
                    trial.deploy(scenario.source if "source" in cls.needs else None)
            return method.to(WHERE)
        except UserError as fault:
            refusal = fault
    raise refusal


def on_the_device(method: Method) -> None:
    """Parameters and buffers, of copies that a method keeps in plain attributes too."""
    for module in [method, *(v for v in vars(method).values() if isinstance(v, torch.nn.Module))]:
        wrong = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.device.type != WHERE]
        assert not wrong, wrong


@pytest.mark.parametrize("name", LEARNS)
def test_a_method_learns_and_answers(name: str, tmp_path: Path) -> None:
    if name == "avalanche_strategy":
        pytest.importorskip("avalanche", exc_type=ImportError)
    cls, compute = METHODS[name].load(), Compute(device=WHERE)
    scenario = ToyScenario(answers="task" if "task_id" in cls.needs else "seen", train=8, test=6)
    method = built(name, scenario, compute, tmp_path)
    for k, exp in enumerate(scenario.experiences()):
        fitted = fit(method, exp, compute, k, max_epochs=1)
        assert fitted.nonfinite == 0
    on_the_device(method)
    tests = scenario.test_sets()
    scored = measure(method, tests, [scenario.space_for(t, SPACE) for t in tests], compute, 8, 0)
    assert [s.total for s in scored] == [12, 12] and not any(s.nonfinite for s in scored)


@pytest.mark.skipif(WHERE == "cpu", reason="a host does not wait for itself")
@pytest.mark.parametrize("name", ["finetune", "linear_probe", "lora", "lwf"])
def test_a_step_of_learning_waits_for_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step of a fit to the start of its last, the host hands over one after another."""
    scenario, compute, cls = ToyScenario(train=20, test=6), Compute(device=WHERE), METHODS[name].load()
    method = built(name, scenario, compute, tmp_path)
    method.batch_size = 8
    began = cls.on_train_batch_start

    def watched(self: Method, batch: Any, batch_idx: int) -> Any:
        torch.cuda.set_sync_debug_mode("error" if 1 <= batch_idx < 4 else "default")
        return began(self, batch, batch_idx)

    monkeypatch.setattr(cls, "on_train_batch_start", watched)
    try:
        for k, exp in enumerate(scenario.experiences()):
            fit(method, exp, compute, k, max_epochs=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", TEST_TIME)
def test_a_method_adapts_and_answers(name: str, tmp_path: Path) -> None:
    cls, compute = METHODS[name].load(), Compute(device=WHERE)
    scenario = ToyScenario(learns=False, answers="all", train=8, test=8)
    method = built(name, scenario, compute, tmp_path)
    with seeded(3), torch.enable_grad():
        method.eval()
        method.rng = Rng(3)
        method.deploy(scenario.source if "source" in cls.needs else None, StreamFacts(scenario.test_batch_size, SPACE))
        method.to(WHERE)  # as a run does: what was built on the host follows
    on_the_device(method)
    method.mark()
    counts = []
    for _ in range(2):
        entries_, scored = stream_step(method, scenario.stream()[0], SPACE, scenario, compute, Meter(), StreamState(), 0)
        assert scored.total == 32 and scored.nonfinite == 0 and len(entries_) == 1
        on_the_device(method)
        counts.append(method.counters())
        method.reset()
    assert counts[0] == counts[1], "the same stream after a reset"
