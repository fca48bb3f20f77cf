"""Trainable parameters of every kind on ViT-B/16, against the published counts; built on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cl_bench.adapters import FUSED4, Adapter, attach, layer_names
from cl_bench.registry import entries, find

SPLIT = ("q", "k", "v")
BLOCKS = r"blocks\.\d+"
ALL_OPS = r"patch_embed\.proj|blocks\.\d+\.(norm1|norm2|attn\.(qkv|proj)|mlp\.(fc1|fc2))|norm"


@pytest.fixture(scope="module")
def factory():
    from timm.models.vision_transformer import VisionTransformer

    def make(**kw: int) -> nn.Module:
        with torch.device("meta"):
            return VisionTransformer(num_classes=0, **kw)

    return make


@pytest.mark.parametrize(
    ("kind", "at", "settings", "expected"),
    [
        ("lora", FUSED4, {"r": 8}, 1_179_648),
        ("lora", FUSED4, {"r": 8, "rows": SPLIT}, 1_327_104),
        ("lora", r"blocks\.\d+\.attn\.qkv", {"r": 8, "rows": ("q", "v")}, 294_912),
        ("dora", FUSED4, {"r": 8}, 1_262_592),
        ("codyra", FUSED4, {"r": 16, "rows": SPLIT}, 2_655_360),
        ("sora", FUSED4, {"r": 16, "rows": SPLIT}, 2_655_360),
        ("adalora", FUSED4, {"r": 12}, 1_770_048),
        ("pissa", FUSED4, {"r": 8}, 1_179_648),
        ("soma", r"blocks\.([4-9]|1[01])\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))", {"r": 16, "rows": SPLIT}, 1_769_472),
        ("svfit", FUSED4, {}, 36_864),
        ("svfit", FUSED4, {"rows": SPLIT}, 55_296),
        ("osft", FUSED4, {"keep": 0.5}, 56_641_536),
        ("kore", FUSED4, {"r": 64, "rows": SPLIT}, 5_308_416),
        ("corda", FUSED4, {"r": 8}, 1_179_648),
        ("ssf", ALL_OPS, {}, 205_824),
        ("adaptformer", BLOCKS, {"r": 64}, 1_189_632),
        ("adaptformer", BLOCKS, {"r": 16}, 304_320),
        ("pfeiffer", BLOCKS, {"r": 64}, 1_189_632),
        ("pfeiffer", r"blocks\.\d+\.(attn|mlp)", {"r": 64}, 2_379_264),
        ("vpt_shallow", BLOCKS, {"p": 10}, 7_680),
        ("vpt_deep", BLOCKS, {"p": 10}, 92_160),
        ("peft", FUSED4, {"tuner": "loha", "config": {"r": 8}}, 2_359_296),
        ("peft", FUSED4, {"tuner": "hra", "config": {"r": 8}}, 516_096),
        ("prefix", r"blocks\.\d+\.attn", {"n": 10}, 12 * 2 * 10 * 768),
    ],
)
def test_count_on_vit_b16(factory, kind: str, at: str, settings: dict, expected: int) -> None:
    model = factory()
    needs = find("cl_bench.adapters", kind).needs_gram
    adapters = attach(model, kind, at, grams={} if needs else None, **settings)
    assert sum(p.numel() for p in adapters.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected, "something else is trainable"
    if kind != "vpt_shallow":  # its parameters are all at the first site
        plain = {k: v for k, v in settings.items() if k != "rows"}
        assert expected == sum(adapters.kind.count(*_shape(adapters, at), **plain) for at, _ in adapters.each()), (
            "count() and the adapters disagree"
        )


def _shape(adapters, at: str) -> tuple[int, int]:
    site = adapters.sites[at]
    if adapters.kind.level == "layer":
        return 768, 768
    weight = adapters.weight(at)
    i = weight.flatten(1).shape[1] if weight.ndim > 1 else 1
    start, stop = site.groups[0]
    return stop - start, i


def test_every_kind_says_what_it_is_and_has_a_case_here() -> None:
    cases = {c[0] for c in test_count_on_vit_b16.pytestmark[0].args[1]}
    assert cases == set(entries("cl_bench.adapters")), "a kind without a count"
    for name in cases:
        kind = find("cl_bench.adapters", name)
        assert issubclass(kind, Adapter) and kind.paper and kind.__doc__, name


def test_rank_is_clipped_to_a_narrow_layer(factory) -> None:
    small = factory(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2)
    adapters = attach(small, "lora", r"blocks\.0\.attn\.proj", r=64)
    assert [a.r for _, a in adapters.each()] == [12]
    assert "blocks.0.attn.proj" in layer_names(small)
