"""Our test-time methods and the public implementations of them, timed in turns on the same batches in one process.

    git clone https://github.com/mariodoebler/test-time-adaptation ../tta-reference     # checked at 8b2ed632
    python benchmarks/speed_tta_reference.py --reference ../tta-reference/classification

Reads ``../shared`` (or ``$CL_BENCH_SHARED``) and writes ``results/parity/tta_speed.md``. ResNet-20, batches of 200 of the
stream of ``parity_tta.py``, float32, channels-last, one thread. The reference's code is imported from its checkout, with
its ``cfgs/cifar10_c`` settings, and only its imports of other networks, of loaders and of ``einops`` are stood in for.
Repairs at run time: RoTTA passes an argument that its loss does not take; CMF asks for a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace as Node
from typing import Any

import torch
from parity_tta import OUT, keep_memory, network, stream
from torch import Tensor, nn

from cl_bench.data.tensor import batches
from cl_bench.registry import find
from cl_bench.rng import Rng
from cl_bench.types import StreamFacts

NAMES = {"source": "source.Source", "bn": "norm.BNTest", "bn_alpha": "norm.BNAlpha", "tent": "tent.Tent", "rpl": "rpl.RPL",
         "eta": "eata.EATA", "sar": "sar.SAR", "deyo": "deyo.DeYO", "lame": "lame.LAME", "rotta": "rotta.RoTTA",
         "santa": "santa.SANTA", "roid": "roid.ROID", "cmf": "cmf.CMF", "rmt": "rmt.RMT", "cotta": "cotta.CoTTA"}
#: Settings of the reference's conf.py and cfgs/cifar10_c that its methods read. No Fisher samples: its EATA is then ETA.
SETTINGS: dict[str, dict[str, Any]] = {
    "CORRUPTION": {"DATASET": "cifar10_c"}, "BN": {"ALPHA": 0.1}, "RPL": {"Q": 0.8}, "SAR": {"RESET_CONSTANT_EM": 0.2},
    "MODEL": {"ARCH": "resnet20", "ADAPTATION": "", "CKPT_PATH": "", "EPISODIC": False, "RESET_AFTER_NUM_UPDATES": 0},
    "OPTIM": {"METHOD": "Adam", "LR": 1e-3, "BETA": 0.9, "WD": 0.0, "MOMENTUM": 0.9, "DAMPENING": 0.0, "NESTEROV": True,
              "STEPS": 1},
    "TEST": {"BATCH_SIZE": 200, "WINDOW_LENGTH": 1, "N_AUGMENTATIONS": 32, "DEBUG": False},
    "SOURCE": {"NUM_SAMPLES": 0, "NUM_WORKERS": 0, "PERCENTAGE": 1.0}, "M_TEACHER": {"MOMENTUM": 0.999},
    "EATA": {"D_MARGIN": 0.4, "FISHER_ALPHA": 1.0, "MARGIN_E0": 0.4}, "COTTA": {"AP": 0.92, "RST": 0.01},
    "DEYO": {"AUG_TYPE": "patch", "PATCH_LEN": 4, "MARGIN": 0.5, "PLPD": 0.2, "REWEIGHT_ENT": True, "REWEIGHT_PLPD": True,
             "OCCLUSION_SIZE": 112, "ROW_START": 56, "COLUMN_START": 56},
    "LAME": {"AFFINITY": "rbf", "KNN": 5, "SIGMA": 1.0, "FORCE_SYMMETRY": False},
    "ROTTA": {"MEMORY_SIZE": 64, "UPDATE_FREQUENCY": 64, "NU": 0.001, "ALPHA": 0.05, "LAMBDA_T": 1.0, "LAMBDA_U": 1.0},
    "CONTRAST": {"MODE": "all", "TEMPERATURE": 0.1, "PROJECTION_DIM": 128}, "SANTA": {"LAMBDA_CE_TRG": 1.0, "LAMBDA_CONT": 1.0},
    "RMT": {"LAMBDA_CE_SRC": 1.0, "LAMBDA_CE_TRG": 1.0, "LAMBDA_CONT": 1.0, "NUM_SAMPLES_WARM_UP": 0},
    "ROID": {"MOMENTUM_SRC": 0.99, "MOMENTUM_PROBS": 0.9, "TEMPERATURE": 1 / 3, "USE_WEIGHTING": True,
             "USE_PRIOR_CORRECTION": True, "USE_CONSISTENCY": True},
    "CMF": {"ALPHA": 0.99, "GAMMA": 0.99, "Q": 0.005, "TYPE": "lp"},
}


class Features(nn.Module):
    """The feature half of one of our backbones, sharing its parameters."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_features(x)  # type: ignore[operator]


def rearrange(x: Tensor, pattern: str, ps1: int, ps2: int) -> Tensor:
    """The two patterns of ``einops.rearrange`` that DeYO uses: an image to its patches, and back."""
    if pattern.startswith("b c"):
        return x.unflatten(3, (ps2, -1)).unflatten(2, (ps1, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return x.unflatten(1, (ps1, ps2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def stand_in(where: Path, loader: list[tuple[Tensor, Tensor]]) -> None:
    """Make the reference's method files importable one by one, without its networks, loaders and their packages."""
    sys.path.insert(0, str(where))
    methods = types.ModuleType("methods")
    methods.__path__ = [str(where / "methods")]
    made: dict[str, dict[str, Any]] = {
        "models": {}, "models.model": {"split_up_model": lambda m, arch, data: (Features(m), m.head),
                                       "ResNetDomainNet126": type("ResNetDomainNet126", (nn.Module,), {})},
        "datasets": {}, "datasets.data_loading": {"get_source_loader": lambda **_: (None, Loader(loader))},
        "einops": {"rearrange": rearrange},
    }
    sys.modules["methods"] = methods
    for name, content in made.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]


class Loader(list):
    """Source batches; RMT asks for their size."""

    batch_size = 200


def theirs(name: str, backbone: nn.Module, folder: str) -> Callable[[Tensor], Tensor]:
    """One of the reference's methods on a network."""
    import importlib

    module, _, cls = NAMES[name].partition(".")
    method = getattr(importlib.import_module(f"methods.{module}"), cls)
    if name == "rotta":
        once = method.loss_calculation
        method.loss_calculation = lambda self, *_: once(self)
    backbone.img_size, backbone.model_preprocess = (32, 32), None  # type: ignore[assignment]
    cfg = Node(**{k: Node(**v) for k, v in SETTINGS.items()}, MIXED_PRECISION=False, CKPT_DIR=folder, DATA_DIR=folder)
    return method(cfg, backbone, 10)


def main() -> None:
    """Time every method in turns with its counterpart and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--reference", type=Path, required=True, help="its folder `classification`")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--batches", type=int, default=6)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    scenario = stream()
    source = [(x, y) for x, y in batches(scenario.source.data, 200)]
    for name in args.methods:
        find("cl_bench.methods", name)  # before any package is stood in for
    stand_in(args.reference, source)
    arriving = (x.contiguous(memory_format=torch.channels_last) for t in scenario.stream() for x, _ in batches(t.data, 200))
    images = list(islice(arriving, args.batches + 1))
    rows = []
    for name in args.methods:
        settings = {"warmup": 0} if name == "rmt" else {}  # timed without: it precedes the stream
        ours = find("cl_bench.methods", name)(network(20).eval(), **settings).eval()
        ours.rng = Rng(1)
        ours.deploy(scenario.source if "source" in ours.needs else None, StreamFacts(200, scenario.space))
        with tempfile.TemporaryDirectory() as folder:
            reference = theirs(name, network(20).eval(), folder)
            spent: tuple[list[float], list[float]] = ([], [])
            agree = 0
            for x in images:
                with torch.set_grad_enabled(ours.adapts):
                    a = timed(lambda x=x, m=ours: m.predict(x, scenario.space), spent[0])  # type: ignore[misc]
                with torch.no_grad():
                    b = timed(lambda x=x, m=reference: m(x), spent[1])  # type: ignore[misc]
                agree += int((a.argmax(1) == b.argmax(1)).sum())
        mine, other = (5 * statistics.median(s[1:]) for s in spent)  # the first batch warms up; five batches are 1,000
        rows.append(f"| {name} | {mine:.2f} | {other:.2f} | {other / mine:.2f} | {100 * agree / (200 * len(images)):.1f} % |")
        print(rows[-1], flush=True)
    write(rows, args.batches)


def timed(step: Callable[[], Tensor], spent: list[float]) -> Tensor:
    """The answer, its CPU seconds appended to ``spent``."""
    started = time.process_time()
    out = step()
    spent.append(time.process_time() - started)
    return out


def write(rows: list[str], count: int) -> None:
    """The page."""
    (OUT / "tta_speed.md").write_text("\n".join([
        "# Test-time methods: CPU seconds per 1,000 images, ours beside the public implementation", "",
        "Made by `python benchmarks/speed_tta_reference.py --reference <checkout>/classification`. Both in one process, in",
        f"turns on the same batches of 200 (medians of {count} after one that warms up), ResNet-20, float32, channels-last,",
        "one thread. Reference: mariodoebler/test-time-adaptation at 8b2ed632; `eta` is its EATA without Fisher samples. The",
        "last column is how many of the answers agree: stochastic methods draw differently. rmt is timed without its warm-up.",
        "",
        "| method | ours | reference | reference / ours | same answers |", "|---|---|---|---|---|", *rows, ""]))


if __name__ == "__main__":
    main()
