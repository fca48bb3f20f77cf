"""Counts what a run costs: images through the backbone forward and backward, memory, parameters."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ..adapters import Adapter
from ..state import modules

__all__ = ["Meter", "held_memory", "optimised_parameters", "parameter_counts", "peak_memory", "reset_peak_memory"]

_NORMS = ("Norm",)


class Meter:
    """Forward and backward images of a backbone and of every copy of it (teachers, anchors).

    Hooks sit on the first and the last layer that a probe image passes; copies of the module carry the hooks along and
    share the counts. The last layer is never a normalisation, because test-time methods replace those.
    """

    def __init__(self) -> None:
        self.forward_images = 0
        self.backward_images = 0
        self._ends = ("", "")
        self._passing = 0  # images of the pass under way: what comes out may be folded into more rows (prompts)

    def attach(self, backbone: nn.Module, image: Tensor) -> None:
        """Watch ``backbone``; ``image`` is one example (1, 3, H, W), passed once without gradient."""
        order: list[nn.Module] = []
        # What an adapter adds is no end: it sees weights instead of images, or gives way to another adapter later.
        added = {m for part in backbone.modules() if isinstance(part, (Adapter, ParametrizationList)) for m in part.modules()}
        leaves = [m for m in backbone.modules() if m not in added
                  and (is_parametrized(m) or next(m.parameters(recurse=False), None) is not None)]
        handles = [m.register_forward_hook(lambda mod, i, o: order.append(mod)) for m in leaves]
        flags = {m: m.training for m in backbone.modules()}
        backbone.eval()
        try:
            with torch.no_grad():
                backbone.forward_features(image)  # type: ignore[operator]
        finally:
            for handle in handles:
                handle.remove()
            for module, flag in flags.items():
                module.training = flag
        solid = [m for m in order if not any(n in type(m).__name__ for n in _NORMS)]
        if not solid:
            raise ValueError("no layer with parameters was passed by an image")
        names = {m: n for n, m in backbone.named_modules()}
        self._ends = (names[solid[0]], names[solid[-1]])
        self.watch(backbone)

    def watch(self, value: Any) -> None:
        """Put the hooks on every backbone in ``value`` that has none: copies that were rebuilt from a checkpoint, a mark."""
        first, last = self._ends
        for part in list(modules(value)):
            if not hasattr(part, "forward_features") or not hasattr(part, "num_features"):
                continue
            inside = dict(part.named_modules())
            for name, hook in ((first, self._entered), (last, self._left)):
                layer = inside.get(name)
                if layer is not None and hook not in layer._forward_hooks.values():
                    layer.register_forward_hook(hook)

    def _entered(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._passing = len(inputs[0])
        self.forward_images += self._passing

    def _left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(self._counted(self._passing))

    def _counted(self, images: int) -> Callable[[Tensor], None]:
        def count(gradient: Tensor) -> None:
            self.backward_images += images

        return count

    def count(self, images: int) -> None:
        """Images that a method asked for and whose features were remembered: what a method costs does not depend on it."""
        self.forward_images += images

    def outside_of_graphs(self) -> None:
        """Count beside compiled graphs; inside of one, every new count would be a reason to compile again."""
        for name in ("_entered", "_left"):
            setattr(self, name, torch.compiler.disable(getattr(self, name)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # a copied backbone is counted into the same run


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Total and trainable parameters; a tensor shared by two modules counts once."""
    unique = {id(p): p for p in module.parameters()}.values()
    return {"total": sum(p.numel() for p in unique), "trainable": sum(p.numel() for p in unique if p.requires_grad)}


def optimised_parameters(module: nn.Module) -> int:
    """Parameters that the optimizers held as ``module``'s attributes update; a deployed test-time method also holds the
    learned model, whose parameters could be trained but are not."""
    held = [o for o in vars(module).values() if isinstance(o, torch.optim.Optimizer)]
    unique = {id(p): p for o in held for group in o.param_groups for p in group["params"]}.values()
    return sum(p.numel() for p in unique if p.requires_grad)


def reset_peak_memory() -> None:
    """Start counting the peak anew where the platform can."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not permitted: the peak is then the process's since its start


def held_memory() -> int | None:
    """Bytes held now: on the GPU if one is in use, else by this process; None where the platform does not say."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    return resident()


def resident() -> int | None:
    """Bytes of the host's memory that this process holds now; None where the platform does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc on this platform
    return None


def peak_memory() -> int:
    """Peak bytes since :func:`reset_peak_memory`: on the GPU if one is in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc on this platform: fall through to getrusage
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
