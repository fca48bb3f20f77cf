"""ViDA's own class beside ours, with the settings of its CIFAR and of its ImageNet program."""

from __future__ import annotations

import copy
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.adaptation import TestTimeMethod

from .checkouts import Row, importable
from .learners import on_the_cpu
from .tta import CLOSE, apart, arriving, deployed, ours, told

STEPS, SIZE, VIEWS = 4, 10, 10
#: of the programs: cifar/cfgs/cifar10/vida.yaml, imagenet/cfgs/vit/vida.yaml; momentum, threshold and the like of conf.py
CIFAR = {"lr": 1e-4, "adapter_lr": 1e-5}


def backbone() -> Any:
    """The embedded ViT with its classifier, in double precision."""
    from cl_bench.registry import find

    return find("cl_bench.backbones", "glyph_vit")().double()


def rows(tree: Path) -> list[Row]:
    """Both programs; the scales' threshold on either side; the scale that the setter does not reach."""
    torch.set_default_dtype(torch.float64)
    data, found = arriving(STEPS, SIZE), list[Row]()
    for program, threshold in (("cifar", 0.05), ("cifar", 1e-9), ("imagenet", 0.2)):
        with importable(tree / program, ("my_transforms", "cotta_transforms")), on_the_cpu(), same_draws():
            module: Any = importlib.import_module("vida")
            what = "vida, CIFAR's program" if program == "cifar" else "vida, ImageNet's program"
            method, theirs = pair(module, program, threshold)
            far, moved = apart(answer(method), theirs, data)
            scale = next(layer.scale1 for layer in method.model.modules() if hasattr(layer, "scale1"))
            branch = f", low-rank scale {scale:.6f}"
            found.append(Row(what, told(STEPS, SIZE, moved) + branch, far, CLOSE))
            if program == "cifar" and threshold == 0.05:
                method, theirs = pair(module, program, threshold, variant="paper")
                far, _ = apart(answer(method), theirs, data)
                found.append(Row(what, "variant=paper", far, CLOSE, "the released setter never reaches the second scale"))
        for name in ("vida", "inject_vida", "my_transforms", "cotta_transforms"):
            sys.modules.pop(name, None)
    return found


def answer(method: TestTimeMethod) -> Any:
    """Our side."""
    return lambda x: method.predict(x, method.model.space)


def pair(module: Any, program: str, threshold: float, **settings: Any) -> tuple[TestTimeMethod, Any]:
    """Ours and the official class with the same adapters."""
    base = backbone()
    chosen: dict[str, Any] = dict(CIFAR) if program == "cifar" else dict(type_of().presets["imagenet"])
    # ImageNet's published rates are too small to show anything in five steps of a tiny network
    chosen |= {"threshold": threshold, **({} if program == "cifar" else {"lr": 5e-4, "adapter_lr": 2e-4}), **settings}
    method = ours("vida", base, SIZE, base.make_head().space, **chosen)
    model: nn.Module = deployed(backbone())
    model.to(torch.float64)
    cfg = Namespace(TEST=Namespace(vida_rank1=1, vida_rank2=128, ckpt=None))
    model = module.configure_model(model, cfg).double()
    with torch.no_grad():
        named = dict(method.model.named_parameters())
        for name, p in model.named_parameters():
            p.copy_(named[ours_of(name)])
    plain, adapters = module.collect_params(model)
    groups = [{"params": plain, "lr": chosen["lr"]}, {"params": adapters, "lr": chosen["adapter_lr"]}]
    if program == "cifar":
        opt: Any = torch.optim.Adam(groups, lr=1e-5, betas=(0.9, 0.999))
    else:
        opt = torch.optim.SGD(groups, lr=1e-5, momentum=0.9, nesterov=True)
    module.get_tta_transforms = lambda *a, **kw: None
    momenta = {"ema": 0.999, "ema_vida": 0.999 if program == "cifar" else 0.8}
    official = module.ViDA(model, opt, unc_thr=threshold, **momenta)
    views(method, official)
    shaken(method, model)
    return method, official


def shaken(method: TestTimeMethod, model: nn.Module) -> None:
    """Move the students of both sides away from their teachers, alike: as deployed both are the same, the plain
    cross-entropy has no gradient, and all that Adam has to normalise is rounding."""
    named = dict(method.model.named_parameters())
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
            named[ours_of(name)].copy_(p)


def ours_of(name: str) -> str:
    """Our name of an official parameter."""
    for theirs, mine in (("linear_vida", "linear"), ("vida_down2.weight", "vida_down2"), ("vida_up2.weight", "vida_up2"),
                         ("vida_down.weight", "vida_down1"), ("vida_up.weight", "vida_up1")):
        name = name.replace(theirs, mine)
    return name


def type_of() -> Any:
    """Our class."""
    from cl_bench.registry import find

    return find("cl_bench.methods", "vida")


def views(method: TestTimeMethod, official: Any) -> None:
    """The same ten augmentations on both sides: noise of a fixed seed per view."""
    def noisy(x: Tensor, k: int) -> Tensor:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(k), dtype=x.dtype)
        return (x + 0.1 * drawn).clamp(0, 1)

    module, count = sys.modules[type(method).__module__], [0]

    def outputs(model: nn.Module, x: Tensor, views: int, rng: Any) -> Tensor:
        return torch.stack([model(noisy(x, k)) for k in range(views)])

    def transform(x: Tensor) -> Tensor:
        count[0] += 1
        return noisy(x, (count[0] - 1) % VIEWS)

    module.augmented_outputs = outputs  # type: ignore[attr-defined]
    official.transform = transform


@contextmanager
def same_draws() -> Iterator[None]:
    """Inside, ``torch.rand`` of a shape is always the same: both sides restore the same weights, in whatever order."""
    real = copy.copy(torch.rand)

    def rand(*shape: Any, **kw: Any) -> Tensor:
        size = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        seed = sum((k + 1) * n for k, n in enumerate(size)) % 2**31
        return real(size, generator=torch.Generator().manual_seed(seed))

    torch.rand = rand  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.rand = real
