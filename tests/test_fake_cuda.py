"""On a GPU that is not there: methods learn, adapt and answer, corruptions, feeds and heads work; who waits for it is known.

What would fail on a GPU alone fails here: tensors of two devices in one operation, a generator of the host that draws for the
GPU, a wait for the GPU that nobody has listed. The rest of the methods is ``make soak``'s; all of them learn and answer on a
real GPU in tests/test_gpu_methods.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cl_vit_toys import backbone as small_vit
from fake_cuda import CUDA, Card, Generator, TwoDevices, card, engine
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from toys import coded

from cl_bench import Backbone, CosineHead, Experience, LinearHead, PrototypeHead, TensorData
from cl_bench.corruptions import EXTRA, STANDARD, corrupt
from cl_bench.data.tensor import sent
from cl_bench.engine.compute import Compute
from cl_bench.engine.feed import Pool, TrainingFeed
from cl_bench.engine.fit import fit
from cl_bench.engine.measure import measure
from cl_bench.engine.meter import Meter
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.errors import UserError
from cl_bench.heads import FixedHead
from cl_bench.method import Method
from cl_bench.registry import GROUPS, entries, find
from cl_bench.rng import Rng
from cl_bench.testing import ToyScenario
from cl_bench.types import LabelSpace, StreamFacts

COMPUTE = Compute(device="cuda")
SPACE = LabelSpace((0, 1, 2, 3), ("digit zero", "digit one", "digit two", "digit three"))
METHODS = entries(GROUPS["methods"])
SETTINGS: dict[str, dict[str, Any]] = {"rmt": {"warmup": 8}, "memo": {"views": 2}, "cotta": {"augmentations": 2},
                                       "cotta_calibrated": {"augmentations": 2}}
# One of each family; the others are make soak's.
QUICK = ("bn_alpha", "cotta", "deyo", "eata", "er", "finetune", "lora", "ncm", "roid", "rotta", "source", "tent")
# A length that they read from the GPU is 0 here, and the attention mask that it shapes fits nothing: on a real GPU alone.
ELSEWHERE = ("coprompt", "maple")

# Who may wait for the GPU, and why that costs nothing or cannot be spared. A place is file:function; a file is all of it.
ONCE = "once an experience or an evaluation, not once a step"
CHECK = "a step is taken only where loss and gradient are finite: one read for both"
PLAN = "what is computed next depends on values: how many samples are kept, which are chosen"
WAITS = {
    "cl_bench/data/labels.py:_array": "once a data set: its labels are checked where they enter",
    "cl_bench/engine/fit.py:_train": f"Lightning asks for the number of batches; {ONCE}",
    "cl_bench/engine/fit.py:whole": f"the losses of a fit, {ONCE}",
    "cl_bench/engine/measure.py:answer_all": f"Lightning asks for the number of batches; {ONCE}",
    "cl_bench/label_free/sums.py:of": f"the sums of a domain, {ONCE}",
    "cl_bench/adaptation/base.py:gradient": CHECK,
    "cl_bench/corruptions/digital.py:jpeg_compression": "JPEG is written and read by a library of the host",
    "cl_bench/corruptions/tools.py:streak": "the offsets of a batch say which slices are added; once a batch of images",
    "cl_bench/backbones/vision_language.py:encode_tokens": "once for each set of class names",
    "cl_bench/adaptation/source_statistics.py:confidence_threshold": "once, when it is deployed",
    "cl_bench/adapters/codyra.py:open_ranks": f"how many ranks are open, for the record; {ONCE}",
    "cl_bench/memory.py:_write": f"which rows a memory keeps: {PLAN}",
    "methods/continual/_dualgpm.py": f"how many directions are protected: {PLAN}; {ONCE}",
    "methods/continual/_experts.py": f"whether an experience is new to a layer: {PLAN}; {ONCE}",
    "methods/continual/_gaussians.py": f"classes of an experience; {ONCE}",
    "methods/continual/_subspace.py": f"how many directions are protected: {PLAN}; {ONCE}",
    "methods/continual/_surgery.py:look_up": f"which adapters a batch asks: {PLAN}",
    "methods/continual/_trust.py:agree": f"which regime a layer is in: {PLAN}; {ONCE}",
    "methods/continual/coda_prompt.py:orthonormal": f"Gram-Schmidt of the new prompts; {ONCE}",
    "methods/continual/cuber.py": f"which regime a layer is in: {PLAN}; {ONCE}",
    "methods/continual/derpp.py:dark": "distillation of the units that a stored row knows: a mask, once a step",
    "methods/continual/ease.py": f"classes of an experience; {ONCE}",
    "methods/continual/ranpac.py": f"the ridge is chosen; {ONCE}",
    "methods/test_time/_adapted_head.py:imbalance": "whether the source's labels tell its prior from a uniform one",
    "methods/test_time/cotta.py:adapt": f"views are computed where the anchor is unsure: {PLAN}",
    "methods/test_time/deyo.py:adapt": f"the second forward pass is of the samples that stay: {PLAN}",
    "methods/test_time/label_shift_adapter.py": f"rows that pass a threshold: {PLAN}",
    "methods/test_time/lame.py:assign": f"iterations end where the energy rises no more: {PLAN}",
    "methods/test_time/note.py:remember": f"which rows a memory keeps: {PLAN}",
    "methods/test_time/roid.py:adapt": f"the second forward pass is of the samples that stay: {PLAN}",
    "methods/test_time/rotta.py:adapt": f"which rows a memory keeps: {PLAN}",
    "methods/test_time/shot.py:adapt": "how many samples were sure, for the record",
    "methods/test_time/t3a.py": f"which supports a class keeps: {PLAN}",
    "methods/test_time/vida.py:adapt": "how far the adapters blend follows from how far the views differ",
    "methods/vision_language/zero.py": f"the head's scale as a number; which views are sure, and their votes: {PLAN}",
    "methods/vision_language/_experts.py": f"which experts a batch's sequences choose: {PLAN}",
    "methods/vision_language/moe_adapters.py": f"which router answers for which image: {PLAN}",
    "methods/vision_language/_fusion.py:herded": f"which images a memory keeps: {PLAN}; {ONCE}",
    "methods/vision_language/ecalp.py:join": f"which images join the graph: {PLAN}",
    "methods/vision_language/engine.py": "phrases of a batch's classes are drawn by class number",
    "methods/vision_language/proof.py": f"prototypes of the classes of an experience; {ONCE}",
    "methods/vision_language/tfup.py:score": "the head's scale as a number",
    "methods/vision_language/sts.py": f"the head's scale as a number, and how many directions are kept: {PLAN}",
    "methods/vision_language/tda.py:score": f"which images a cache keeps: {PLAN}",
    "methods/vision_language/tps.py": "the head's scale as a number, and the loss of each step for the record",
    "methods/vision_language/_cache.py:certainty": f"which views and images a cache keeps: {PLAN}",
    "methods/vision_language/_prompt.py": "where the words of a prompt end; once, when it is built",
    "methods/vision_language/boostadapter.py:score": f"which views a cache keeps: {PLAN}",
    "methods/vision_language/dmn.py:answers": f"which images a memory keeps: {PLAN}",
    "methods/vision_language/mta.py": f"iterations end where the mean has come to rest: {PLAN}",
    "methods/vision_language/rapf.py": f"statistics of the classes of an experience; {ONCE}",
}


def check_waits(mode: Card) -> None:
    """Nobody waits for the GPU but those that are listed."""
    strangers = sorted(f"{place} ({what})" for place, what in mode.waits
                       if place not in WAITS and place.partition(":")[0] not in WAITS)
    assert not strangers, f"the host waits for the GPU at {', '.join(strangers)}: read nothing there, or list it with a reason"


@functools.cache
def trunk(name: str) -> Backbone:
    """A network of the host, made once."""
    made: Backbone = small_vit() if name == "small_vit" else find("cl_bench.backbones", name)()
    return made


def on_the_card(name: str, base: Backbone) -> Method:
    cls, base = METHODS[name].load(), copy.deepcopy(base)
    if ".test_time." in METHODS[name].target:
        base.head = FixedHead(nn.Linear(base.num_features, 4), SPACE, base.num_features)
    made: Method = cls(base.to("cuda"), **SETTINGS.get(name, {})).to("cuda")
    return made


def answers(name: str, method: Method) -> None:
    """Two experiences and a row of the matrix; or one segment of a stream."""
    cls = type(method)
    if not (cls.adapts or ".test_time." in METHODS[name].target):
        scenario = ToyScenario(answers="task" if "task_id" in cls.needs else "seen", train=4, test=4)
        for k, exp in enumerate(scenario.experiences()):
            fit(method, exp, COMPUTE, k, max_epochs=1)
        tests = scenario.test_sets()
        measure(method, tests, [scenario.space_for(t, SPACE) for t in tests], COMPUTE, 8, 0)
        return
    scenario = ToyScenario(learns=False, answers="all", train=4, test=4)
    method.eval()
    method.rng = Rng(3)
    with torch.enable_grad():
        method.deploy(scenario.source if "source" in cls.needs else None, StreamFacts(scenario.test_batch_size, SPACE))
    method.to("cuda")
    stream_step(method, scenario.stream()[0], SPACE, scenario, COMPUTE, Meter(), StreamState(), 0)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.soak) for n in sorted(METHODS)])
def test_a_method_learns_adapts_and_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "avalanche_strategy":
        pytest.importorskip("avalanche", exc_type=ImportError)
    if name in ELSEWHERE:
        pytest.skip("the size of what it computes is a value on the GPU")
    where = METHODS[name].target
    kinds = {".vision_language.": ("glyph_clip", "glyph_vit"), ".test_time.": ("glyph_resnet", "glyph_vit")}
    choice = next((trunks for kind, trunks in kinds.items() if kind in where), ("small_vit", "glyph_vit", "glyph_resnet"))
    for base in map(trunk, choice):
        try:
            with engine(monkeypatch) as mode:
                answers(name, on_the_card(name, base))
            check_waits(mode)
            return
        except UserError as refused:  # a method that needs another kind of network says so
            problem = refused
        finally:
            monkeypatch.undo()
    raise problem


def test_a_step_of_learning_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps wait as often as one: what waits is of the fit."""
    counts = []
    for images in (8, 24):
        with engine(monkeypatch) as mode:
            method = METHODS["finetune"].load()(copy.deepcopy(trunk("small_vit")).to("cuda"), epochs=1, batch_size=8)
            fit(method, Experience("e", SPACE, coded_like_digits(images)), COMPUTE, 0)
        monkeypatch.undo()
        counts.append(mode.count)
    assert counts[0] == counts[1] > 0


# Who copies something to the GPU with every step of learning or batch of a stream, and why.
COPIES = {
    "methods/continual/agem.py:memory_loss": "which rows of the memory are drawn",
    "methods/continual/slca.py:on_train_batch_end": "rows of classes that are not here are put back, by number",
}
COPYING = ("adapter", "agem", "bn_alpha", "codyra", "codyra_clip", "clip_lora", "cotta", "derpp", "deyo", "eata", "ewc", "l2p",
           "ncm", "rmt", "rotta", "slca", "source")  # of make soak


@pytest.mark.parametrize("name", ["er", "finetune", "lora", "roid", "tent",
                                  *(pytest.param(n, marks=pytest.mark.soak) for n in COPYING)])
def test_a_step_copies_nothing_to_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches copy as often as one: a copy waits for all that the GPU was asked before, and the next step comes late."""
    where = METHODS[name].target
    kinds = {".vision_language.": ("glyph_clip",), ".test_time.": ("glyph_resnet", "glyph_vit")}
    choice = next((trunks for kind, trunks in kinds.items() if kind in where), ("small_vit", "glyph_vit", "glyph_resnet"))
    for base in map(trunk, choice):
        counts = []
        try:
            for batches in (1, 3):
                with engine(monkeypatch) as mode:
                    batchwise(name, on_the_card(name, base), batches, mode)
                monkeypatch.undo()
                counts.append(dict(mode.copies))
            break
        except UserError as refused:  # a method that needs another kind of network says so
            problem = refused
        finally:
            monkeypatch.undo()
    else:
        raise problem
    more = {place: (counts[0].get(place, 0), n) for place, n in counts[1].items() if n > counts[0].get(place, 0)}
    strangers = {place: n for place, n in more.items() if place not in COPIES}
    assert not strangers, f"copied with every batch: {strangers}; keep it there, send it (cl_bench.data.tensor.sent) or list it"


def batchwise(name: str, method: Method, batches: int, mode: Card) -> None:
    """A second experience, or a segment of a stream, of so many batches; what was copied before is forgotten."""
    cls = type(method)
    if not (cls.adapts or ".test_time." in METHODS[name].target):
        method.batch_size = 8
        for k in range(2):
            mode.copies.clear()
            fit(method, Experience(f"e{k}", SPACE, coded_like_digits(8 * batches)), COMPUTE, k, max_epochs=1)
        return
    scenario = ToyScenario(learns=False, answers="all", train=4, test=4 * batches)
    method.eval()
    method.rng = Rng(3)
    with torch.enable_grad():
        method.deploy(scenario.source if "source" in cls.needs else None, StreamFacts(scenario.test_batch_size, SPACE))
    method.to("cuda")
    mode.copies.clear()
    stream_step(method, scenario.stream()[0], SPACE, scenario, COMPUTE, Meter(), StreamState(), 0)


def test_a_copy_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as mode:
        x, rows = torch.rand(4, device="cuda"), torch.arange(2)
        for copied in (lambda: rows.to("cuda"), lambda: x[rows], lambda: torch.tensor([1, 2], device="cuda"),
                       lambda: x[:2].copy_(torch.rand(2))):
            before = sum(mode.copies.values())
            copied()
            assert sum(mode.copies.values()) > before
        before = sum(mode.copies.values())
        sent(rows, CUDA)
        assert sum(mode.copies.values()) == before


def coded_like_digits(n: int) -> TensorData:
    return TensorData(torch.zeros(n, 3, 28, 28, dtype=torch.uint8), torch.arange(n) % 4)


@pytest.mark.parametrize("name", [*STANDARD, *EXTRA])
def test_a_corruption(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as mode:
        out = corrupt(torch.rand(2, 3, 32, 32, device="cuda"), name, 5, generator=Generator("cuda"))
    assert isinstance(out, FakeTensor) and out.device == CUDA and out.shape == (2, 3, 32, 32)
    check_waits(mode)


def test_feeds_and_pools_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5, x.flip(3), x)

    with engine(monkeypatch) as mode:
        batches = list(TrainingFeed(coded(10), 4, CUDA, seed=0, augment=flipped))
        assert [(b.x.device, b.y.device, len(b.x)) for b in batches] == [(CUDA, CUDA, n) for n in (4, 4, 2)]
        for data in ([coded(10)], [coded(6), coded(4)]):
            order = torch.randperm(10)
            assert all(x.device == CUDA for _, x in Pool(data, 4, CUDA).batches(order))
    check_waits(mode)


@pytest.mark.parametrize("make", [LinearHead, CosineHead, PrototypeHead], ids=lambda c: c.__name__)
def test_a_head(make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as mode:
        head = make(8).to("cuda")
        for ids in ((0, 1), (0, 1, 2, 3)):
            head.grow(LabelSpace(ids))
        features, y = torch.rand(5, 8, device="cuda"), torch.arange(4).to("cuda")
        assert head(features).shape == (5, 4) and head(features).device == CUDA
        assert head.columns(y).device == CUDA and head.over(features, LabelSpace((3, 1))).shape == (5, 2)
        if isinstance(head, PrototypeHead):
            head.add(features[:4], y)
    check_waits(mode)


# ---------------------------------------------------------------- what the GPU that is not there refuses


def test_tensors_of_two_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch), pytest.raises(TwoDevices, match="of the GPU and of the host"):
        torch.rand(3, device="cuda") + torch.rand(3)


def test_a_single_value_of_the_host_and_an_index_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as mode:
        x = torch.rand(3, device="cuda")
        assert (x * torch.tensor(2.0)).device == CUDA and x[torch.tensor([0, 2])].shape == (2,)
    assert not mode.waits


def test_a_generator_of_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch), pytest.raises(TwoDevices, match="with a generator of the host"):
        torch.rand(3, device="cuda", generator=Generator("cpu"))


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.cpu(),
                                  lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: torch.equal(x, x)],
                         ids=["item", "bool", "a mask", "cpu", "tolist", "nonzero", "equal"])
def test_a_wait_is_seen(read: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with card(monkeypatch) as mode:
        read(torch.rand(3, device="cuda"))
    assert mode.waits
