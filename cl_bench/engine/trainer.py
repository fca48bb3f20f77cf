"""Lightning's Trainer as this harness uses it: quiet, without a logger of its own, and interrupted as the user asks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.connectors import callback_connector

from .compute import Compute, resolve_device

__all__ = ["interruptible", "make_trainer", "quiet", "tester", "untouched"]


class _Warm(CUDAAccelerator):
    """A GPU whose allocator keeps its memory: emptied before and after every segment, it would ask the driver again."""

    def setup(self, trainer: Trainer) -> None:
        """Nothing: Lightning would empty the cache."""

    def teardown(self) -> None:
        """Nothing: Lightning would empty the cache."""


class _Stays(SingleDeviceStrategy):
    """One device, on which the method stays: Lightning moves network and optimizers to the host after every fit and test,
    which for a ViT-B/16 costs a second."""

    def teardown(self) -> None:
        """As Lightning's, without the way to the host."""
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()


def make_trainer(compute: Compute, epochs: int, callbacks: Sequence[Callback] = (), plugins: Sequence[Any] = (), *,
                 shared: bool = False) -> Trainer:
    """A Trainer that writes nothing and tells nothing; ``plugins`` are Lightning's. ``shared``: for a fit that the processes of
    the run share; without, each is by itself."""
    device = resolve_device(compute.device)
    where: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if shared:
        from .processes import Processes, Shared

        plugins = [*plugins, Processes()]
        where = {"accelerator": _Warm() if device.type == "cuda" else "cpu", "devices": compute.devices,
                 "strategy": Shared(find_unused_parameters=True, broadcast_buffers=False)}
    elif device.type == "cuda":
        card = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        where = {"accelerator": _Warm(), "devices": 1, "strategy": _Stays(card)}
    with _known_extensions():
        return Trainer(
            **where, max_epochs=epochs, precision=compute.precision,  # type: ignore[arg-type]
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, inference_mode=False, callbacks=list(callbacks), use_distributed_sampler=False,
            plugins=list(plugins),
        )


@lru_cache(maxsize=8)
def _factories(group: str) -> tuple[Any, ...]:
    """What installed packages offer Lightning as callbacks for every Trainer."""
    return tuple(entry.load() for entry in entry_points(group=group))


@contextmanager
def _known_extensions() -> Iterator[None]:
    """Lightning asks every installed package for callbacks whenever a Trainer is made, which is most of the time that making
    one takes; a run makes one per experience and asks once."""
    name = "_load_external_callbacks"
    asked = getattr(callback_connector, name, None)

    def known(group: str) -> list[Any]:
        offered = [factory() for factory in _factories(group)]
        return [c for part in offered for c in (part if isinstance(part, list) else [part])]

    if asked is not None:  # another Lightning may have another way
        setattr(callback_connector, name, known)
    try:
        yield
    finally:
        if asked is not None:
            setattr(callback_connector, name, asked)


@lru_cache(maxsize=1)
def tester(compute: Compute) -> Trainer:
    """One Trainer for all measuring: unlike ``fit``, ``test`` may be called again, and building one takes 30 ms, which a
    stream of hundreds of short segments would pay each time."""
    return make_trainer(compute, 1)


@contextmanager
def untouched(trainer: Trainer) -> Iterator[Trainer]:
    """``trainer`` for one test. What a method hangs on it or sets (a callback, an attribute, a limit) goes with the method: a
    Trainer that is not as it was is not used again."""
    callbacks, known = list(trainer.callbacks), _names(trainer)
    yield trainer
    if trainer.callbacks != callbacks or _names(trainer) - known - _LIGHTNINGS:
        tester.cache_clear()


_LIGHTNINGS = {("", "_last_val_time", None), ("profiler", "_lightning_module", None)}  # set by the first test


def _names(trainer: Trainer) -> set[tuple[str, str, Any]]:
    """The attributes of a Trainer and of its parts, and its own settings."""
    parts = {"": trainer, "strategy": trainer.strategy, **vars(trainer)}
    settings = {("", k, v) for k, v in vars(trainer).items() if isinstance(v, (int, float, str)) and k != "_last_val_time"}
    return settings | {(part, name, None) for part, value in parts.items() for name in getattr(value, "__dict__", ())}


@contextmanager
def interruptible() -> Iterator[None]:
    """Lightning turns the user's Ctrl-C into an exit with code 1; here it stays an interrupt. A method's own ``sys.exit`` is
    a failure of the method."""
    try:
        yield
    except SystemExit as left:
        if isinstance(asked := left.__context__, KeyboardInterrupt):
            raise type(asked)(*asked.args) from left
        raise RuntimeError(f"the method called sys.exit({left.code!r})") from left


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's banners and loader advice say nothing about a fresh Trainer per experience; keep them out."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [lg.level for lg in loggers]
    for lg in loggers:
        lg.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", module="lightning_fabric")
            warnings.filterwarnings("ignore", message=".*(torch.jit|LeafSpec|treespec|pin_memory|Grad strides).*")
            yield
    finally:
        for lg, level in zip(loggers, levels, strict=True):
            lg.setLevel(level)
