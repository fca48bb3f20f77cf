"""Fitting and measuring one method on Lightning. The only module besides the contract that knows Lightning.

Test labels stay here: what a Trainer, and so a method, sees of a test set are images and row numbers.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .data.tensor import TensorData, as_float, labels_of
from .errors import UserError
from .method import Method
from .optimizers import fuse
from .rng import Rng
from .seeding import derive, seeded
from .stream_metrics import CalibrationBins, top_class_share
from .types import Batch, Experience, LabelSpace, TestSet, Transform

__all__ = ["Compute", "Feed", "Fitted", "Scored", "Sink", "answer_all", "fit", "measure", "resolve_device"]

LOSS_POINTS = 200  # per experience: enough for a curve, few enough for a thousand runs


@dataclass(frozen=True)
class Compute:
    """Where and how a run computes.

    Attributes:
        device: ``cpu``, ``cuda``, or ``auto``: the GPU where there is one.
        precision: Lightning's precision name; ``32-true`` is bit-reproducible on a CPU.
        workers: processes that decode images of data sets that are not held in memory; never changes a number.
        threads: CPU threads; fixed, because sums depend on it in the last bit. 0 leaves torch's own choice.
        optimizers: ``torch``: as methods make them; ``fused``: torch's fused kernels under Adam, AdamW and SGD; ``apex``:
            NVIDIA apex's FusedAdam in place of Adam and AdamW, on a GPU. For learning; a source is always trained with
            ``torch``, and other kernels give other last bits.
    """

    device: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = "32-true"
    workers: int = 0
    threads: int = 1
    optimizers: Literal["torch", "fused", "apex"] = "torch"

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"compute.{name} must be 0 or more, not {getattr(self, name)}.")


def resolve_device(name: str) -> torch.device:
    """``auto`` to what there is.

    Raises:
        UserError: for a device this machine has not, or an unknown word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise UserError(f"{name!r} is not a device; use cpu, cuda or auto.") from fault
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use; run with --device cpu.")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use cpu, cuda or auto.")
    return device


class _Images(Dataset[tuple[Any, int]]):
    """The images of a test set that is read item by item, each with its row number instead of its label."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._data[index][0], index


class Feed:
    """Batches for a Trainer: an iterable with a length over data that lies on the device where it can.

    With ``labelled=False`` it yields images and row numbers, and holds no labels of data that are held in memory.
    """

    def __init__(self, data: Dataset, size: int, device: torch.device, *, workers: int = 0, seed: int | None = None,
                 augment: Transform | None = None, labelled: bool = True) -> None:
        if not labelled:
            data = data.unlabelled() if isinstance(data, TensorData) else _Images(data)
        self.data, self.size, self.device, self.workers = data, size, device, workers
        self.augment, self.labelled = augment, labelled
        self.order = None if seed is None else torch.Generator().manual_seed(derive(seed, "order"))
        self.noise = None if seed is None else torch.Generator(device).manual_seed(derive(seed, "augment"))
        self.held = data.to(device) if isinstance(data, TensorData) and _fits(data, device) else None

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        n = len(self.data)  # type: ignore[arg-type]
        order = torch.arange(n) if self.order is None else torch.randperm(n, generator=self.order)
        for rows, x, y in self._read(order):
            x = as_float(x)
            if not self.labelled:
                yield x, rows
            else:
                yield Batch(x if self.augment is None else self.augment(x, self.noise), y)  # type: ignore[arg-type]

    def _read(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if self.held is not None:
            for rows in order.to(self.device).split(self.size):
                yield rows, self.held.x[rows], self.held.y[rows]
            return
        chunks = [c.tolist() for c in order.split(self.size)]
        pin = self.device.type == "cuda"
        for rows, (x, y) in zip(order.split(self.size), DataLoader(  # type: ignore[call-arg]
                self.data, batch_sampler=chunks, num_workers=self.workers, pin_memory=pin), strict=True):
            yield rows.to(self.device), x.to(self.device, non_blocking=pin), y.to(self.device, non_blocking=pin)


def _fits(data: TensorData, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return data.x.numel() * data.x.element_size() < free // 4


def _trainer(compute: Compute, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    device = resolve_device(compute.device)
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1 if device.index is None else [device.index]
        if device.type == "cuda" else 1, max_epochs=epochs, precision=compute.precision,  # type: ignore[arg-type]
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, inference_mode=False, callbacks=list(callbacks), use_distributed_sampler=False,
    )


@lru_cache(maxsize=1)
def _tester(compute: Compute) -> Trainer:
    """One Trainer for all measuring: unlike ``fit``, ``test`` may be called again, and building one takes 30 ms, which a
    stream of hundreds of short segments would pay each time."""
    return _trainer(compute, 1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning turns the user's Ctrl-C into an exit with code 1; here it stays an interrupt."""
    try:
        yield
    except SystemExit as left:
        raise KeyboardInterrupt from left


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners and loader advice say nothing about a fresh Trainer per experience; keep them out."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [lg.level for lg in loggers]
    for lg in loggers:
        lg.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", module="lightning_fabric")
            warnings.filterwarnings("ignore", message=".*(torch.jit|LeafSpec|treespec|pin_memory).*")
            yield
    finally:
        for lg, level in zip(loggers, levels, strict=True):
            lg.setLevel(level)


class _Losses(Callback):
    """Keeps every step's loss on the device; read once, after the fit."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.values.append(loss.detach())


class _Fuse(Callback):
    """Puts fused kernels under the optimizers that the method has just made."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        trainer.optimizers = [fuse(optimizer, self.kind) for optimizer in trainer.optimizers]


@dataclass
class Fitted:
    """What a fit left behind: (step, loss) points, how many losses were not finite, optimizer steps, and how many
    parameters were trainable."""

    losses: list[tuple[int, float]]
    nonfinite: int
    steps: int
    trainable: int


def fit(method: Method, exp: Experience, compute: Compute, seed: int, max_epochs: int | None = None) -> Fitted:
    """``begin`` -> Lightning's fit on a fresh Trainer -> ``end``, all random draws from ``seed``."""
    device = resolve_device(compute.device)
    with seeded(seed), _quiet(), _interruptible():
        method.rng = Rng(derive(seed, "method"))
        method.to(device)
        method.train()
        method.begin(exp)
        method.to(device)
        trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
        epochs = method.epochs_for(exp)
        epochs = epochs if max_epochs is None else min(epochs, max_epochs)
        losses, steps = _Losses(), 0
        if epochs > 0:
            feed = Feed(method.training_data(exp), method.batch_size, device, workers=compute.workers, seed=seed,
                        augment=exp.augment)
            trainer = _trainer(compute, epochs, [losses, _Fuse(compute.optimizers)])
            method.train()
            trainer.fit(method, feed)
            steps = int(trainer.global_step)
            method.to(device)  # Lightning leaves a model where its strategy put it
        method.end(exp)
        method.eval()
    values = torch.stack([v.float() for v in losses.values]).cpu().tolist() if losses.values else []
    stride = max(1, math.ceil(len(values) / LOSS_POINTS))
    points = [(k, v) for k, v in enumerate(values) if k % stride == 0 or k == len(values) - 1]
    return Fitted(points, sum(not math.isfinite(v) for v in values), steps, trainable)


class Sink:
    """Takes answers from ``Method.test_step``. It knows label spaces and sizes; labels it never had."""

    @property
    def missing(self) -> bool:
        """Whether the batch at hand came too fast for the method and is answered without adapting."""
        return False

    def __init__(self, spaces: Sequence[LabelSpace], sizes: Sequence[int]) -> None:
        self.spaces = list(spaces)
        self.sizes = list(sizes)
        self.parts: list[list[tuple[Tensor, ...]]] = [[] for _ in spaces]

    def space(self, index: int) -> LabelSpace:
        return self.spaces[index]

    def __call__(self, index: int, rows: Tensor, logits: Tensor) -> None:
        if logits.shape != (len(rows), len(self.spaces[index])):
            raise ValueError(f"predict returned {tuple(logits.shape)} for {len(rows)} images and "
                             f"{len(self.spaces[index])} classes: it must return (images, classes)")
        logits = logits.detach().float()
        best, column = logits.softmax(1).max(1)
        bad = logits.isnan().any(1) | (logits == torch.inf).any(1) | best.isnan()
        self.parts[index].append((rows, torch.where(bad, 0.0, best), torch.where(bad, -1, column), bad))

    def collect(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rows, confidence, column or -1, non-finite) of everything answered, in order of arrival."""
        if not self.parts[index]:
            empty = np.zeros(0)
            return empty.astype(np.int64), empty, empty.astype(np.int64), empty.astype(bool)
        columns = [torch.cat(c).cpu().numpy() for c in zip(*self.parts[index], strict=True)]
        return columns[0], columns[1], columns[2], columns[3]

    def __deepcopy__(self, memo: dict[int, Any]) -> Sink:
        return self


@dataclass
class Scored:
    """Predictions of one test set against its labels: counts that add up."""

    total: int
    correct: int
    nonfinite: int
    share: float
    bins: CalibrationBins
    predictions: np.ndarray  # global label ids in row order, -1 where the answer was not finite
    right: np.ndarray

    @classmethod
    def of(cls, sink: Sink, index: int, test: TestSet) -> Scored:
        rows, confidence, column, bad = sink.collect(index)
        space, truth = sink.spaces[index], labels_of(test.data).numpy()
        if len(rows) != len(truth) or len(np.unique(rows)) != len(truth):
            raise RuntimeError(f"{test.name}: {len(rows)} answers for {len(truth)} images")
        predicted = np.where(column >= 0, np.asarray(space.ids)[np.maximum(column, 0)], -1)
        right = predicted == truth[rows]
        back = np.argsort(rows, kind="stable")
        histogram = np.bincount(column[column >= 0], minlength=len(space))
        return cls(len(rows), int(right.sum()), int(bad.sum()), top_class_share(histogram),
                   CalibrationBins.of(confidence[~bad], right[~bad]), predicted[back], right[back])


def measure(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
            seed: int) -> list[Scored]:
    """Score ``method`` on each test set. A method that adapts is measured on a copy, so that measuring does not teach.
    """
    if not tests:
        return []
    device = resolve_device(compute.device)
    if method.adapts:
        return [_run(copy.deepcopy(method), [t], [s], compute, size, device, derive(seed, t.name))[0]
                for t, s in zip(tests, spaces, strict=True)]
    return _run(method, tests, spaces, compute, size, device, seed)


def _run(method: Method, tests: Sequence[TestSet], spaces: Sequence[LabelSpace], compute: Compute, size: int,
         device: torch.device, seed: int) -> list[Scored]:
    sink = Sink(spaces, [len(t.data) for t in tests])  # type: ignore[arg-type]
    feeds = [Feed(t.data, t.batch_size or size, device, workers=compute.workers, labelled=False) for t in tests]
    answer_all(method, sink, feeds, compute, seed)
    return [Scored.of(sink, k, t) for k, t in enumerate(tests)]


def answer_all(method: Method, sink: Sink, feeds: Any, compute: Compute, seed: int) -> None:
    method.to(resolve_device(compute.device))
    method.__dict__["_answers"] = sink
    try:
        with seeded(seed), _quiet(), _interruptible():
            _tester(compute).test(method, feeds, verbose=False)
    except BaseException:
        _tester.cache_clear()  # an interrupted Trainer is not used again
        raise
    finally:
        method.__dict__.pop("_answers", None)
        method.__dict__["_trainer"] = None
