"""One run in several processes, which all walk the same timeline: a batch is shared among them, one of them writes.

``begin`` and ``end`` of a method see all data in each process and come to the same state; in between, gradients are averaged.
So prototypes, Fisher matrices and Gram sums are what one process makes of the same data, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import ranks
from ..errors import UserError
from ..method import Method
from ..records.writer import RunWriter
from ..scenario import Scenario
from .compute import Compute, resolve_device
from .seeding import derive

__all__ = ["Apart", "Processes", "Shared", "check_processes", "joined", "named_differences", "own_masks", "same_in_all",
           "writer_of"]

PATIENCE = timedelta(minutes=30)  # for the slowest of the processes


def check_processes(compute: Compute, method: type[Method], scenario: Scenario, label: str) -> None:
    """Refuse what several processes would do wrong.

    Raises:
        UserError: in a sentence.
    """
    if compute.devices == 1:
        if compute.strategy == "fsdp":
            raise UserError("--strategy fsdp splits a network among several processes; give --devices 2 or more with it.")
        return
    if compute.strategy == "fsdp" and compute.optimizers == "apex":
        raise UserError("apex's optimizers need whole weights; run --strategy fsdp with --optimizers torch or fused.")
    if method.adapts or len(scenario.stream()):
        what = f"method {label} adapts" if method.adapts else f"scenario {type(scenario).__name__} has a test stream"
        raise UserError(f"{what}, and a stream is answered in one process; run it with --devices 1.")
    if not vars(method).get("shares_batches", False):
        raise UserError(f"method {label} does not say that a batch of it may be shared among processes (shares_batches); run "
                        "it with --devices 1.")
    device = resolve_device(compute.device)
    if device.type == "cuda" and device.index is None and torch.cuda.device_count() < compute.devices:
        raise UserError(f"this machine has {torch.cuda.device_count()} CUDA devices, not {compute.devices}; choose fewer "
                        "--devices.")


@contextmanager
def joined(number: int, count: int, store: str, cuda: bool) -> Iterator[None]:
    """Be process ``number`` of ``count``, which meet at the file ``store``."""
    if cuda:
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if cuda else "gloo", init_method=f"file://{store}", rank=number, world_size=count,
                            timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Processes(LightningEnvironment):
    """Tells Lightning of processes that are there already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return ranks.size()

    def set_world_size(self, size: int) -> None:
        """Nothing: it is what it is."""

    def global_rank(self) -> int:
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is what it is."""

    def local_rank(self) -> int:
        return ranks.rank()

    def node_rank(self) -> int:
        return 0


class Shared(DDPStrategy):
    """DDP whose average of gradients is that of the whole batch, where shares differ in size by a row."""

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        mine, all_ = self.lightning_module.__dict__["_rows"]
        super().backward(closure_loss * (mine * ranks.size() / all_), *args, **kwargs)

    def teardown(self) -> None:
        """As Lightning's, without the way to the host."""
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()
        self.model = self.lightning_module


class Apart(RunWriter):
    """What a process that does not write has for a writer: it reads what was there, and writes nothing."""

    def __init__(self, folder: str | Path) -> None:
        from ..records.writer import _record

        self.folder = Path(folder)
        self.previous = _record(self.folder)

    def write(self, run: Mapping[str, Any]) -> None: ...

    def event(self, **values: Any) -> None: ...

    def events_offset(self) -> int:
        return 0

    def cut_events(self, offset: int) -> None: ...

    def arrays(self, arrays: Mapping[str, Any]) -> None: ...

    def done(self) -> None: ...

    def close(self) -> None: ...


def writer_of(folder: Path) -> RunWriter:
    """The folder's writer in the first process; in any other one that writes nothing."""
    if ranks.size() == 1:
        return RunWriter(folder)
    found: RunWriter | None = None if ranks.rank() else RunWriter(folder)  # a refusal of the first ends them all
    place = ranks.gathered(str(folder))[0]
    return found if found is not None else Apart(place)


def named_differences(method: nn.Module) -> list[str]:
    """What several processes compute otherwise than one, in sentences for the record's warnings."""
    found = []
    if any(isinstance(m, _BatchNorm) and m.training for m in method.modules()):
        found.append("BatchNorm took its statistics from each process's share of a batch; running statistics are averaged over "
                     "the processes after every fit.")
    if any(_drops(m) for m in method.modules()):
        found.append("Dropout draws other masks than one process would: each process its own, for its share of a batch.")
    return found


def _drops(module: nn.Module) -> bool:
    p = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    return "Drop" in type(module).__name__ and isinstance(p, float) and p > 0


def own_masks(method: nn.Module, seed: int) -> None:
    """Let dropout draw differently in each process."""
    if any(_drops(m) for m in method.modules()):
        torch.manual_seed(derive(seed, "process", ranks.rank()))


def same_in_all(method: Method) -> None:
    """Average running statistics, and see that everything else is the same in every process after learning.

    Raises:
        UserError: naming what a process holds that another does not.
    """
    for module in method.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            for buffer in (module.running_mean, module.running_var):
                parts = ranks.gathered(buffer.detach().cpu())
                buffer.copy_(torch.stack(parts).mean(0))
    mine = {name: hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            for name, value in method.state_dict().items() if isinstance(value, Tensor)}
    mine["random numbers"] = repr(sorted((k, g.sum().item()) for k, g in method.rng.get_state()["generators"].items()))
    for other in ranks.gathered(mine):
        for name in sorted({*mine, *other}):
            if mine.get(name) != other.get(name):
                raise UserError(f"{type(method).__name__} holds another {name} in each process after learning, so a batch of "
                                "it cannot be shared; run it with --devices 1.")
