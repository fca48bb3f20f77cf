"""Where and how a run computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from ..errors import UserError
from ..ranges import Range, Text, bounded
from .optimizers import check_optimizers

__all__ = ["Compute", "check_precision", "device_for", "resolve_device"]

Processes = Annotated[int, Range(0, 256)]
Devices = Annotated[int, Range(1, 1024)]
Threads = Annotated[int, Range(0, 1024)]  # more end the process, where its stacks no longer fit


@bounded
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
        devices: processes that share the batches of learning, each with a GPU of its own where ``device`` is one; for
            methods that say they can (``Method.shares_batches``). ``batch_size`` stays that of all of them together.
        strategy: how they share: ``ddp``, each with the whole method, gradients averaged; ``fsdp``, while learning each with a
            part of the trunk, its gradients and optimizer states, for a network that one device has no room to train.
        layout: ``images_last``: images, and so all feature maps, have their channels beside each other, which convolutions
            compute faster on most machines; other kernels give other last bits. ``channels_last``: the weights of
            convolutions as well, faster still, but code that calls ``view`` on them fails. ``contiguous``: as torch makes
            them. ``auto``: ``images_last`` where most weights of the trunk are those of convolutions and it says that it can
            (``Backbone.any_layout``).
        compile: whether the trunk that learns is compiled by ``torch.compile``, in the first steps; copies of it are not
            (teachers, and what a test-time method deploys). It gives other last bits.
    """

    device: Text = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = "32-true"
    workers: Processes = 0
    threads: Threads = 1
    optimizers: Literal["torch", "fused", "apex"] = "torch"
    devices: Devices = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    layout: Literal["auto", "contiguous", "images_last", "channels_last"] = "auto"
    compile: bool = False

    def arithmetic(self) -> dict[str, Any]:
        """The settings beside the device that decide how numbers are computed, those that are not as torch has them."""
        return {name: value for name, plain in _PLAIN.items() if (value := getattr(self, name)) != plain}


_PLAIN = {"precision": "32-true", "optimizers": "torch", "layout": "contiguous", "compile": False}


def device_for(compute: Compute) -> torch.device:
    """The device that a run uses on this machine.

    Raises:
        UserError: where this machine has not what ``compute`` asks for: its device, precision or optimizers.
    """
    device = resolve_device(compute.device)
    check_precision(compute.precision, device)
    check_optimizers(compute.optimizers, device)
    return device


def resolve_device(name: str) -> torch.device:
    """``auto`` to what there is.

    Raises:
        UserError: for a device this machine has not, or an unknown word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as fault:
        raise UserError(f"{name!r} is not a device; use cpu, cuda or auto.") from fault
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use; run with --device cpu.")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"device {name!r} is not supported; use cpu, cuda or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what would be computed in another precision than it is called.

    Raises:
        UserError: for half precision on a CPU, where autocast has bfloat16 alone and silently takes that.
    """
    if device.type == "cpu" and precision.startswith("16-"):
        raise UserError(f"a CPU does not compute in {precision}; use --precision bf16-{precision[3:]}, or a GPU.")
