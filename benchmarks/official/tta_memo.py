"""MEMO's two programs beside ours: CIFAR's, whose network has GroupNorm, and ImageNet's, whose BatchNorm mixes statistics."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_bench import Backbone
from cl_bench.backbones import Preprocess
from cl_bench.registry import find
from cl_bench.rng import Rng

from .checkouts import Row, importable
from .learners import on_the_cpu
from .toys import difference
from .tta import CLOSE, SPACE, arriving, deployed, only, ours, resnet20

VIEWS, IMAGES = 16, 3


def rows(tree: Path) -> list[Row]:
    """Answers after the step on the same views; and the views themselves, as two samples of the same images."""
    torch.set_default_dtype(torch.float64)
    images = torch.cat([x[:1] for x in arriving(IMAGES)])
    views = augmix()
    fixed = [views(image, VIEWS, Rng(k)) for k, image in enumerate(images)]
    with importable(tree / "imagenet-exps", ("utils.third_party",)), on_the_cpu():
        helpers: Any = importlib.import_module("utils.adapt_helpers")
        training: Any = importlib.import_module("utils.train_helpers")
        script = only(tree / "imagenet-exps/test_calls/test_adapt.py", ["marginal_entropy"], torch=torch, np=np)
        forward = nn.BatchNorm2d.forward
        nn.BatchNorm2d.forward = training._modified_bn_forward  # type: ignore[method-assign]
        found = batch_norm(helpers, script.marginal_entropy, images, fixed)
        nn.BatchNorm2d.forward = forward  # type: ignore[method-assign]
    for name in [n for n in sys.modules if n == "utils" or n.startswith("utils.")]:
        del sys.modules[name]
    with importable(tree / "cifar-10-exps", ()), on_the_cpu():
        found += group_norm(tree / "cifar-10-exps", images, fixed)
        found.append(sampled(loaded(tree / "cifar-10-exps/utils/third_party.py"), images[0]))
    return found


def loaded(path: Path) -> Any:
    """A module by its file: the program before has one of the same name, which is stood in for."""
    spec = importlib.util.spec_from_file_location("third_party", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def augmix() -> Callable[[Tensor, int, Rng], Tensor]:
    """Our views."""
    module = sys.modules[find("cl_bench.methods", "memo").__module__]
    made: Callable[[Tensor, int, Rng], Tensor] = module.augmix  # type: ignore[attr-defined]
    return made


def answers(backbone: Backbone, images: Tensor, fixed: list[Tensor], **settings: Any) -> Tensor:
    """Ours, on given views."""
    method = ours("memo", backbone, 1, views=VIEWS, **settings)
    module, left = sys.modules[type(method).__module__], iter(fixed)
    real = module.augmix  # type: ignore[attr-defined]
    module.augmix = lambda image, views, rng: next(left)  # type: ignore[attr-defined]
    try:
        return method.predict(images, SPACE)
    finally:
        module.augmix = real  # type: ignore[attr-defined]


def batch_norm(helpers: Any, entropy: Any, images: Tensor, fixed: list[Tensor]) -> list[Row]:
    """``adapt_single`` and ``test_single`` of the ImageNet program on the ResNet-20."""
    def official(optimizer: str, lr: float, decay: float) -> Tensor:
        model, logits = deployed(resnet20()), list[Tensor]()
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        opt = kind(model.parameters(), lr=lr, weight_decay=decay)
        model.register_forward_hook(lambda m, given, out: logits.append(out.detach()))
        for image, views in zip(images, fixed, strict=True):
            model.load_state_dict(kept)
            left = iter(views)
            helpers.tr_transforms = lambda _, left=left: next(left)
            helpers.te_transforms = helpers.te_transforms_inc = lambda image: image
            helpers.adapt_single(model, image, opt, entropy, "none", 1, VIEWS, 16)
            helpers.test_single(model, image, 0, "none", 16)
        return torch.cat(logits[1::2])

    for p in ("common_corruptions", "indices_in_1k", "imagenet_r_mask"):
        setattr(helpers, p, ())
    rows, still = list[Row](), answers(resnet20(), images, fixed, lr=0.0)
    mine, theirs = answers(resnet20(), images, fixed), official("sgd", 5e-3, 0.0)
    rows.append(Row("memo, ImageNet's program (BatchNorm, prior of 16 images)", compared(mine, still),
                    difference([mine], [theirs]), CLOSE))
    mine = answers(resnet20(), images, fixed, optimizer="adamw", lr=1e-3)
    theirs = official("adamw", 1e-3, 0.01)
    what = "memo, ImageNet's program with AdamW"
    rows.append(Row(what, "logits of the first image after its step", difference([mine[:1]], [theirs[:1]]), CLOSE))
    rows.append(Row(what, "logits of the three that follow", difference([mine[1:]], [theirs[1:]]), CLOSE,
                    "its optimizer is made once, so that moments pass from image to image; here each image starts afresh"))
    return rows


def compared(mine: Tensor, still: Tensor) -> str:
    """What a row compares."""
    moved = difference([mine], [still])
    return f"logits of {IMAGES} images, each after its step on {VIEWS} views (which moves them by up to {moved:.2g})"


def group_norm(tree: Path, images: Tensor, fixed: list[Tensor]) -> list[Row]:
    """``adapt_single`` of CIFAR's program on its own ResNet-26 with random weights."""
    resnet: Any = importlib.import_module("models.ResNet")
    torch.manual_seed(0)
    net = resnet.ResNetCifar(26, 1, channels=3, classes=10, norm_layer=lambda planes: nn.GroupNorm(8, planes))
    with torch.no_grad():
        net.fc.weight.mul_(8)
    head, trunk = net.fc, net
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    lr, results = 5e-3, list[Tensor]()
    known = {"torch": torch, "np": np, "nn": nn, "net": net, "optimizer": torch.optim.SGD(net.parameters(), lr=lr),
             "args": Namespace(niter=1, batch_size=VIEWS), "te_transforms": lambda image: image}
    script = only(tree / "test_calls/test_adapt.py", ["marginal_entropy", "adapt_single", "test_single"], **known)
    hook = net.register_forward_hook(lambda m, given, out: results.append(out.detach()))
    for image, views in zip(images, fixed, strict=True):
        net.load_state_dict(kept)
        left = iter(views)
        script.module.aug = lambda _, left=left: next(left)
        script.adapt_single(image)
        script.test_single(net, image, 0)
    hook.remove()
    net.load_state_dict(kept)
    trunk.fc = nn.Identity()
    body = Backbone(trunk, num_features=64, head=head, preprocess=Preprocess(None))
    mine, still = answers(body, images, fixed, lr=lr), answers(body, images, fixed, lr=0.0)
    return [Row("memo, CIFAR's program (its ResNet-26, GroupNorm)", compared(mine, still),
                difference([mine], [torch.cat(results[1::2])]), CLOSE)]


def sampled(third: Any, image: Tensor, count: int = 4000) -> Row:
    """The mean of every pixel over many AugMix views of one image, by Pillow there and in batches here."""
    from PIL import Image

    torch.set_default_dtype(torch.float32)
    np.random.seed(0)  # noqa: NPY002 - what the official code draws from
    torch.manual_seed(0)
    pillow = Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    theirs = torch.stack([third.aug(pillow) for _ in range(count)]).double() * 0.5 + 0.5
    views = augmix()
    mine = torch.cat([views(image.float(), 500, Rng(k)) for k in range(count // 500)]).double()
    error = ((mine.var(0) + theirs.var(0)) / count).sqrt()
    far = float(((mine.mean(0) - theirs.mean(0)).abs() / error).max())
    spreads = [float((a.std(0) / b.std(0)).log().abs().mean()) for a, b in ((mine, theirs), (theirs[::2], theirs[1::2]))]
    told = (f"largest difference of a pixel's mean over {count} views, in standard errors (standard deviations differ by "
            f"{100 * spreads[0]:.1f} % on average; those of the official halves by {100 * spreads[1]:.1f} %)")
    return Row("memo, AugMix views", told, far, 5.0)
