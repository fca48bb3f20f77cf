"""Learning one experience: begin, Lightning's fit on a fresh Trainer, end; and going on inside of it after a stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from .. import ranks
from ..data.tensor import view_for_method
from ..errors import UserError
from ..method import Method
from ..rng import Rng
from ..types import Experience
from .compute import Compute, resolve_device
from .feed import FeedPosition, TrainingFeed, opaque
from .layout import relaid
from .meter import Meter
from .optimizers import fuse
from .processes import named_differences, own_masks, same_in_all
from .seeding import derive, generators, seeded, set_generators
from .sharded import split_trunk
from .trainer import interruptible, make_trainer, quiet

__all__ = ["FitPosition", "Fitted", "fit", "shown"]

LOSS_POINTS = 200  # per experience: enough for a curve, few enough for a thousand runs


@dataclass
class FitPosition:
    """Where a fit stands between two batches. The method itself is kept beside it.

    Attributes:
        feed: the batches still to come.
        generators: states of the global generators.
        loops, epoch, step: Lightning's loops.
        optimizers, schedulers, precision: their own state dictionaries.
        losses: of the steps taken, (steps,).
        epochs, trainable: of the whole fit.
        began: the generators, the method's among them, as they were before it was asked for its training data, which it is
            asked for again.
    """

    feed: FeedPosition
    generators: dict[str, Any]
    loops: dict[str, Any]
    epoch: int
    step: int
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    precision: dict[str, Any]
    losses: Tensor
    epochs: int
    trainable: int
    began: dict[str, Any]


@dataclass
class Fitted:
    """What a fit left behind: (step, loss) points, how many losses were not finite, optimizer steps, how many parameters were
    trainable, and in what several processes differ from one."""

    losses: list[tuple[int, float]]
    nonfinite: int
    steps: int
    trainable: int
    differences: list[str]


class _Losses(Callback):
    """Keeps every step's loss on the device; read once, after the fit. ``before``: those of an interrupted fit. Of a batch that
    is shared, each process keeps its part of the mean."""

    def __init__(self, before: Tensor | None) -> None:
        self.before = torch.zeros(0) if before is None else before.cpu()
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            rows = module.__dict__.get("_rows")
            self.values.append(loss.detach() if rows is None else loss.detach() * (rows[0] / rows[1]))

    def whole(self) -> Tensor:
        return torch.cat([self.before, torch.stack([v.float() for v in self.values]).cpu()]) if self.values else self.before


class _Fuse(Callback):
    """Puts fused kernels under the optimizers that the method has just made."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        trainer.optimizers = [fuse(optimizer, self.kind) for optimizer in trainer.optimizers]


class _Held(CheckpointIO):
    """Hands Lightning a position that is held in memory where it expects a file."""

    def __init__(self, at: FitPosition, method: Method) -> None:
        self.at, self.method = at, method

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        at = self.at
        return {"epoch": at.epoch, "global_step": at.step, "pytorch-lightning_version": pytorch_lightning.__version__,
                "state_dict": self.method.state_dict(), "loops": at.loops, "callbacks": {},
                "optimizer_states": at.optimizers, "lr_schedulers": at.schedulers, **at.precision}

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a run keeps checkpoints of its own")

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError("a run keeps checkpoints of its own")


def shown(exp: Experience, encoded: Callable[..., Any] | None = None) -> Experience:
    """An experience as a method may hold it: its data as views that lead nowhere else; ``encoded`` tells their features
    (:meth:`cl_bench.backbones.Backbone.encoded`)."""
    augment, view = exp.augment, view_for_method(exp.data)
    if encoded is not None:
        view.encoded = encoded  # type: ignore[attr-defined]
    return replace(exp, data=view, augment=None if augment is None else lambda x, g: augment(x, g))


def fit(method: Method, exp: Experience, compute: Compute, seed: int, max_epochs: int | None = None, *,
        at: FitPosition | None = None, between: Callable[[Callable[[], FitPosition]], None] | None = None,
        meter: Meter | None = None, encoded: Callable[..., Any] | None = None) -> Fitted:
    """``begin`` -> Lightning's fit on a fresh Trainer -> ``end``, all random draws from ``seed``.

    Args:
        at: where an interrupted fit stood; ``method`` then is what it was there, and ``begin`` is not called again.
        between: called between two batches with a function that tells where the fit stands.
        meter: what counts the run's images; what an interrupted fit does again to get where it stood is not counted again.
        encoded: tells features of the experience's images by a trunk that nothing trains.

    Raises:
        UserError: for a batch of one image on a network with BatchNorm, and for training that has diverged so far that a
            decomposition fails.
    """
    device = resolve_device(compute.device)
    with seeded(seed), quiet(), interruptible(), _diverging(method):
        handed = shown(exp, encoded)
        if at is None:
            method.rng = Rng(derive(seed, "method"))
            method.to(device)
            method.train()
            method.begin(handed)
            method.to(device)
            trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
            epochs = method.epochs_for(handed)
            epochs = epochs if max_epochs is None else min(epochs, max_epochs)
        else:
            method.to(device)
            trainable, epochs = at.trainable, at.epochs
        losses, steps, differences = _Losses(None if at is None else at.losses), 0, list[str]()
        if epochs > 0:
            steps, differences = _train(method, handed, compute, seed, epochs, trainable, losses, at, between, meter)
            method.to(device)  # Lightning leaves a model where its strategy put it
        if (shared := ranks.size() > 1) and epochs > 0:
            same_in_all(method)
            set_generators(ranks.gathered(generators())[0])
        method.end(handed)
        method.eval()
    values = ranks.summed(losses.whole().tolist()) if shared else losses.whole().tolist()
    stride = max(1, math.ceil(len(values) / LOSS_POINTS))
    points = [(k, v) for k, v in enumerate(values) if k % stride == 0 or k == len(values) - 1]
    return Fitted(points, sum(not math.isfinite(v) for v in values), steps, trainable, differences)


def _train(method: Method, exp: Experience, compute: Compute, seed: int, epochs: int, trainable: int, losses: _Losses,
           at: FitPosition | None, between: Callable[[Callable[[], FitPosition]], None] | None,
           meter: Meter | None) -> tuple[int, list[str]]:
    """Lightning's fit; returns the optimizer steps taken, and in what several processes differ from one."""
    shared = ranks.size() > 1
    trainer = make_trainer(compute, epochs, [losses, _Fuse(compute.optimizers)], [] if at is None else [_Held(at, method)],
                           shared=shared)
    rng = method.rng.get_state()
    began = {"rng": rng, "generators": generators()} if at is None else at.began
    counted = (0, 0) if meter is None else (meter.forward_images, meter.backward_images)

    def position() -> FitPosition:
        return FitPosition(
            feed.position(), generators(), {"fit_loop": trainer.fit_loop.state_dict()}, trainer.current_epoch,
            trainer.global_step, [o.state_dict() for o in trainer.optimizers],
            [c.scheduler.state_dict() for c in trainer.strategy.lr_scheduler_configs],
            _precision(trainer), losses.whole(), epochs, trainable, began)

    def resumed() -> None:
        assert at is not None
        if compute.layout == "channels_last":
            relaid(trainer.optimizers)
        set_generators(at.generators)
        method.rng.set_state(rng)  # in place of what preparing the optimizers drew
        if meter is not None:
            meter.forward_images, meter.backward_images = counted

    if at is not None:
        method.rng.set_state(began["rng"])
        set_generators(began["generators"])
    data = method.training_data(exp)
    if at is not None:
        method.rng.set_state(rng)
    feed = TrainingFeed(
        data, method.batch_size, resolve_device(compute.device), seed=seed, workers=compute.workers,
        augment=exp.augment, joins=any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in method.modules()),
        at=None if at is None else at.feed, resumed=None if at is None else resumed,
        between=None if between is None else lambda: between(position), part=(ranks.rank(), ranks.size()),
        told=(lambda mine, every: method.__dict__.update(_rows=[mine, every])) if shared else None)
    if at is None:
        method.train()
    differences = named_differences(method) if shared else []
    if shared:
        own_masks(method, seed)
    split = split_trunk(method, resolve_device(compute.device)) if shared and compute.strategy == "fsdp" else nullcontext()
    with _begun(method, at is not None), split:
        trainer.fit(method, opaque(feed.__iter__, len(feed)), ckpt_path=None if at is None else "held in memory")
    if shared:
        for left in ("_rows", "forward"):  # ours; and Lightning's way into DDP
            method.__dict__.pop(left, None)
    return int(trainer.global_step), differences


def _precision(trainer: Trainer) -> dict[str, Any]:
    state = trainer.precision_plugin.state_dict()
    return {type(trainer.precision_plugin).__qualname__: state} if state else {}


@contextmanager
def _diverging(method: Method) -> Iterator[None]:
    """Weights beyond all bounds make a factorisation fail with words about matrices: say what happened."""
    try:
        yield
    except torch.linalg.LinAlgError as fault:
        if all(bool((p.abs() < 1e6).all()) for p in method.parameters()):  # False for NaN, too
            raise
        raise UserError("training has diverged: weights are beyond all bounds; use a smaller learning rate.") from fault


@contextmanager
def _begun(method: Method, resumed: bool) -> Iterator[None]:
    """What a method does at the start of a fit is part of the state that it is resumed with: not done again."""
    hooks = [h for h in ("setup", "on_fit_start", "on_train_start")
             if resumed and getattr(type(method), h) is not getattr(LightningModule, h)]
    for hook in hooks:
        method.__dict__[hook] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for hook in hooks:
            method.__dict__.pop(hook, None)
