"""The networks of test-time adaptation on CIFAR-C against a second forward pass written from the weights' names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.backbones.cifar_group_norm import CifarResNetGN, cifar_resnet_gn
from cl_bench.backbones.cifar_wide import CifarResNeXt, CifarWideResNet, cifar_resnext, cifar_wide_resnet
from cl_bench.data.classes import CIFAR10, CIFAR100
from cl_bench.errors import UserError

State = dict[str, Tensor]


def lively(trunk: nn.Module, head: str, features: int, classes: int) -> State:
    """A state dict with a head, and norms that are not the identity."""
    torch.manual_seed(0)
    setattr(trunk, head, nn.Linear(features, classes))
    for module in trunk.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, 0, 0.3)  # type: ignore[arg-type]
    return dict(trunk.state_dict())


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, *(s[f"{name}.{k}"].double() for k in ("running_mean", "running_var", "weight", "bias")))


def conv(s: State, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{name}.weight"].double()
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)


def wide(s: State, x: Tensor, n: int) -> Tensor:
    x = conv(s, "conv1", x)
    for k in (1, 2, 3):
        for i in range(n):
            at, stride = f"block{k}.layer.{i}", 2 if k > 1 and i == 0 else 1
            y = norm(s, f"{at}.bn1", x).relu()
            z = conv(s, f"{at}.conv2", norm(s, f"{at}.bn2", conv(s, f"{at}.conv1", y, stride)).relu())
            x = z + (conv(s, f"{at}.convShortcut", y, stride) if f"{at}.convShortcut.weight" in s else x)
    pooled = F.avg_pool2d(norm(s, "bn1", x).relu(), 8).flatten(1)
    return F.linear(pooled, s["fc.weight"].double(), s["fc.bias"].double())


def next_(s: State, x: Tensor, n: int, groups: int) -> Tensor:
    x = norm(s, "bn_1", conv(s, "conv_1_3x3", x)).relu()
    for k in (1, 2, 3):
        for i in range(n):
            at, stride = f"stage_{k}.{i}", 2 if k > 1 and i == 0 else 1
            y = norm(s, f"{at}.bn_reduce", conv(s, f"{at}.conv_reduce", x)).relu()
            y = norm(s, f"{at}.bn", conv(s, f"{at}.conv_conv", y, stride, groups)).relu()
            y = norm(s, f"{at}.bn_expand", conv(s, f"{at}.conv_expand", y))
            if f"{at}.downsample.0.weight" in s:
                x = norm(s, f"{at}.downsample.1", conv(s, f"{at}.downsample.0", x, stride))
            x = (x + y).relu()
    pooled = F.avg_pool2d(x, 8).flatten(1)
    return F.linear(pooled, s["classifier.weight"].double(), s["classifier.bias"].double())


def grouped(s: State, x: Tensor, n: int, groups: int) -> Tensor:
    def norm_(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, groups, s[f"{name}.weight"].double(), s[f"{name}.bias"].double())

    x = conv(s, "conv1", x)
    for k in (1, 2, 3):
        for i in range(n):
            at, stride = f"layer{k}.{i}", 2 if k > 1 and i == 0 else 1
            y = conv(s, f"{at}.conv1", norm_(f"{at}.bn1", x).relu(), stride)
            y = conv(s, f"{at}.conv2", norm_(f"{at}.bn2", y).relu())
            if stride == 2:
                x = F.avg_pool2d(x, 2)
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = x + y
    pooled = F.avg_pool2d(norm_("bn", x).relu(), 8).flatten(1)
    return F.linear(pooled, s["fc.weight"].double(), s["fc.bias"].double())


def answers(backbone: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = backbone.double()(x)
        return out


@pytest.mark.parametrize("normalised", [False, True])
def test_a_wide_network_computes_what_its_paper_says(tmp_path, normalised):
    state = lively(CifarWideResNet(2, 1), "fc", 64, 10)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_acc": 0.9}, tmp_path / "Standard.pt")
    backbone = cifar_wide_resnet(weights=str(tmp_path / "Standard.pt"), depth=16, width=1, normalised=normalised)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    expected = wide(state, (x - 0.5) / 0.5 if normalised else x, 2)
    torch.testing.assert_close(answers(backbone, x), expected, rtol=1e-10, atol=1e-10)
    assert backbone.classes == CIFAR10 and backbone.info["sha256"]


def test_a_resnext_computes_what_its_paper_says(tmp_path):
    state = lively(CifarResNeXt(3, 2, 16), "classifier", 1024, 100)
    half = torch.full((1, 3, 1, 1), 0.5)
    torch.save({**state, "mu": half, "sigma": half}, tmp_path / "next.pt")
    backbone = cifar_resnext(weights=str(tmp_path / "next.pt"), cardinality=2, base_width=16)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(answers(backbone, x), next_(state, (x - 0.5) / 0.5, 3, 2), rtol=1e-10, atol=1e-10)
    assert backbone.classes == CIFAR100


def test_a_network_with_group_norm_computes_what_its_authors_code_does(tmp_path):
    state = lively(CifarResNetGN(3, 4), "fc", 64, 10)
    torch.save({"net": state, "err_cls": 0.1}, tmp_path / "resnet.pth")
    backbone = cifar_resnet_gn(weights=str(tmp_path / "resnet.pth"), depth=20, groups=4)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(answers(backbone, x), grouped(state, (x - 0.5) / 0.5, 3, 4), rtol=1e-10, atol=1e-10)
    assert backbone.classes == CIFAR10
    with pytest.raises(UserError, match=r"resnet26_gn\.pth"):
        cifar_resnet_gn(weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(("made", "head", "count"), [
    (lambda: cifar_wide_resnet(), (640, 10), 36_479_194),
    (lambda: cifar_wide_resnet(depth=40, width=2), (128, 100), 2_255_156),
    (lambda: cifar_resnext(), (1024, 100), 6_900_132),
    (lambda: cifar_resnet_gn(), (64, 10), 366_938),
])
def test_they_are_as_large_as_the_published(made: Any, head: tuple[int, int], count: int) -> None:
    """Counted in RobustBench's and TTA-lib's own classes, with their heads."""
    assert sum(p.numel() for p in made().parameters()) + head[0] * head[1] + head[1] == count


def test_other_files_are_refused(tmp_path):
    state = lively(CifarWideResNet(2, 1), "fc", 64, 10)
    file = tmp_path / "w.pt"
    with pytest.raises(UserError, match="load_model"):
        cifar_wide_resnet(weights=str(file))
    torch.save(state, file)
    with pytest.raises(UserError, match=r"misses .*block1\.layer\.2"):
        cifar_wide_resnet(weights=str(file), depth=28, width=1)
    with pytest.raises(UserError, match="sha256"):
        cifar_wide_resnet(weights=str(file), depth=16, width=1, sha256="0" * 16)
    torch.save({**state, "mu": torch.full((1, 3, 1, 1), 0.5)}, file)
    with pytest.raises(UserError, match="normalised"):
        cifar_wide_resnet(weights=str(file), depth=16, width=1)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc")}, file)
    with pytest.raises(UserError, match=r"fc\.weight"):
        cifar_wide_resnet(weights=str(file), depth=16, width=1)
