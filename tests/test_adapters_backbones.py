"""Adapters on the architectures of timm, torchvision and open_clip: random weights, tiny configurations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cl_bench.adapters import FUSED4, attach, input_grams
from cl_bench.errors import UserError


def swin() -> tuple[nn.Module, Tensor]:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0
    )
    return model, torch.rand(2, 3, 32, 32)


def convnext() -> tuple[nn.Module, Tensor]:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=0, ls_init_value=0.5), torch.rand(
        2, 3, 64, 64
    )


def resnet() -> tuple[nn.Module, Tensor]:
    from timm.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=0, zero_init_last=False)
    return model, torch.rand(2, 3, 32, 32)


def torchvision_vit() -> tuple[nn.Module, Tensor]:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(16, 8, 2, 3, 24, 48)
    nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr, arg-type]
    return model, torch.rand(2, 3, 16, 16)


def torchvision_resnet() -> tuple[nn.Module, Tensor]:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3), torch.rand(2, 3, 32, 32)


def open_clip() -> tuple[nn.Module, Tensor]:
    from open_clip.model import CLIP

    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 2}
    return CLIP(16, vision, text).visual, torch.rand(2, 3, 16, 16)  # type: ignore[arg-type]


MADE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f.__name__: f for f in (swin, convnext, resnet, torchvision_vit, torchvision_resnet, open_clip)
}
WEIGHTS = {
    "swin": FUSED4,
    "convnext": FUSED4,
    "resnet": r"layer\d\.\d\.conv\d",
    "torchvision_vit": r"encoder\.layers\.encoder_layer_\d\.(self_attention(\.out_proj)?|mlp\.[03])",
    "torchvision_resnet": r"layer1\.0\.conv1",
    "open_clip": r"transformer\.resblocks\.\d\.(attn(\.out_proj)?|mlp\.(c_fc|c_proj))",
}
BLOCKS = {
    "swin": r"layers\.\d\.blocks\.\d",
    "convnext": r"stages\.\d\.blocks\.\d",
    "torchvision_vit": r"encoder\.layers\.encoder_layer_\d",
    "open_clip": r"transformer\.resblocks\.\d",
}
ATTENTION = {
    "open_clip": r"transformer\.resblocks\.\d\.attn",
    "torchvision_vit": r"encoder\.layers\.encoder_layer_\d\.self_attention",
}
NORMS = {
    "swin": r"layers\.\d\.blocks\.\d\.(norm[12]|attn\.(qkv|proj))",
    "convnext": r"stages\.\d\.blocks\.\d\.(conv_dw|norm)",
    "resnet": r"layer\d\.\d\.(conv|bn)\d",
    "torchvision_vit": r"encoder\.layers\.encoder_layer_\d\.(ln_[12]|self_attention)",
    "torchvision_resnet": r"bn1|conv1",
    "open_clip": r"transformer\.resblocks\.\d\.(ln_[12]|attn|attn\.out_proj)",
}


def stir(adapters: nn.Module) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapters.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g).to(p)


@pytest.mark.parametrize("kind", ["lora", "codyra", "dora", "osft", "svfit", "ssf"])
@pytest.mark.parametrize("name", sorted(MADE))
def test_weight_kinds(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model, x = MADE[name]()
    model, x = model.double().eval(), x.double()
    with torch.no_grad():
        before = model(x)
        adapters = attach(model, kind, NORMS[name] if kind == "ssf" else WEIGHTS[name])
        assert torch.allclose(model(x), before, atol=1e-9), "not a no-op"
        stir(adapters)
        moved = model(x)
        assert (moved - before).abs().max() > 1e-5, "attached without effect"
        adapters.merge_()
        assert torch.allclose(model(x), moved, atol=1e-8), "merging changed the output"
        for at in adapters.sites:
            delta = adapters.delta(at)
            assert delta is not None and delta.abs().max() < 1e-9, at


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_branches(name: str) -> None:
    torch.manual_seed(0)
    model, x = MADE[name]()
    model.eval()
    before = model(x)
    adapters = attach(model, "adaptformer", BLOCKS[name], r=4)
    assert torch.allclose(model(x), before, atol=1e-5)
    stir(adapters)
    after = model(x)
    assert after.shape == before.shape and (after - before).abs().max() > 1e-5
    # Not the plain sum: behind a layer norm that is constant, and its gradients are rounding.
    (after * torch.randn(after.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-4 for p in adapters.parameters())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), after)


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_prompts_and_prefixes(name: str) -> None:
    torch.manual_seed(0)
    for kind, at in (("prefix", ATTENTION[name]), ("vpt_deep", BLOCKS[name]), ("vpt_shallow", BLOCKS[name])):
        model, x = MADE[name]()
        model.eval()
        before = model(x)
        adapters = attach(model, kind, at)
        stir(adapters)
        assert model(x).shape == before.shape and (model(x) - before).abs().max() > 1e-5, kind
    with pytest.raises(UserError, match="one sequence"):
        windows, x = swin()
        attach(windows, "vpt_deep", BLOCKS["swin"])
        windows(x)


def test_an_adapter_leaves_the_frozen_convolution_in_its_own_shape() -> None:
    model, _ = resnet()
    adapters = attach(model, "lora", r"layer1\.0\.conv2", r=2)
    assert model.layer1[0].conv2.weight.shape == (8, 8, 3, 3)
    assert sum(p.numel() for p in adapters.parameters()) == 2 * (8 + 72)


@pytest.mark.parametrize("name", ["resnet", "swin", "open_clip", "torchvision_vit"])
def test_input_statistics_are_those_of_what_the_weight_multiplies(name: str) -> None:
    torch.manual_seed(0)
    model, x = MADE[name]()
    model.train()
    at = {
        "resnet": r"layer1\.0\.conv1",
        "swin": r"layers\.0\.blocks\.0\.mlp\.fc2",
        "open_clip": r"transformer\.resblocks\.0\.attn",
        "torchvision_vit": r"encoder\.layers\.encoder_layer_0\.self_attention",
    }[name]
    grams = input_grams(model, at, [x])
    assert model.training, "modes are restored"
    (gram,) = grams.values()
    kore = attach(model.double(), "kore", at, grams={k: g.double() for k, g in grams.items()}, r=2, init="nullspace")
    a = next(kore.each())[1].A
    values = torch.linalg.eigvalsh(gram)
    assert torch.allclose((a @ gram @ a.T).diagonal(), values[:2], atol=1e-8), "A is not the weakest directions"
    with pytest.raises(UserError, match="never called"):
        input_grams(open_clip()[0].eval(), r"transformer\.resblocks\.0\.attn\.out_proj", [torch.rand(1, 3, 16, 16)])


def test_protected_kinds_leave_old_inputs_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(12, 6))
    old = torch.randn(40, 4) @ torch.randn(4, 12)  # 4 of 12 directions
    grams = input_grams(layer, "0", [old])
    with torch.no_grad():
        before = layer(old)
        adapters = attach(layer, "kore", "0", grams=grams, r=6)
        adapter = next(adapters.each())[1]
        adapter.B += torch.randn_like(adapter.B)
        assert (layer(old) - before).abs().max() < 1e-4, "training B must not move what old inputs give"
        assert (
            layer(torch.randn(5, 12)) - nn.functional.linear(torch.randn(5, 12), adapters.weight("0"))
        ).abs().max() > 0.1
    assert not adapter.A.requires_grad and adapter.B.requires_grad and adapter.tail < 1e-5
