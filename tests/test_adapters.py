"""Adapters: attaching by name, no-op at the start, exact merging, counts, copies."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from cl_bench.adapters import FUSED4, AdapterSet, attach, input_grams, layer_names
from cl_bench.errors import UserError
from cl_bench.registry import entries, find

WEIGHT_KINDS = sorted(n for n, e in entries("cl_bench.adapters").items() if e.facts.get("level") != "layer")
LAYER_KINDS = sorted(n for n, e in entries("cl_bench.adapters").items() if e.facts.get("level") == "layer")
BLOCKS = r"blocks\.\d+"
QKV = r"blocks\.\d+\.attn\.qkv"


def vit(depth: int = 2, width: int = 24, seed: int = 0) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=width, depth=depth, num_heads=3, mlp_ratio=2.0, num_classes=0
    ).eval()


def images(n: int = 3, side: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def attached(model: nn.Module, kind: str, at: str = FUSED4, side: int = 8, **kw: object) -> AdapterSet:
    grams = None
    if find("cl_bench.adapters", kind).needs_gram:
        dtype = next(model.parameters()).dtype
        grams = input_grams(model, at, [images(4, side).to(dtype)])
    return attach(model, kind, at, grams=grams, **kw)  # type: ignore[arg-type]


def stir(adapters: AdapterSet, seed: int = 3) -> None:
    """Move every adapter parameter away from its start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapters.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g).to(p)


def keeps_its_promises(model: nn.Module, x: torch.Tensor, before: torch.Tensor, adapters: AdapterSet) -> None:
    """A kind on weights, in float64: a no-op at the start, moved by its parameters, off when off, merged exactly."""
    assert torch.allclose(model(x), before, atol=1e-10), "the start changes the output"
    stir(adapters)
    moved = model(x)
    assert (moved - before).abs().max() > 1e-4, "moving the parameters changes nothing"
    with adapters.off():
        assert torch.equal(model(x), before), "off() is not the frozen backbone"
    adapters.merge_()
    assert torch.allclose(model(x), moved, atol=1e-9), "merging changed the output, or the new start is no no-op"
    with adapters.off():
        assert torch.allclose(model(x), moved, atol=1e-9), "after merging the weights must carry the update"


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_weight_kinds_start_as_a_no_op_and_merge_exactly_in_float64(kind: str) -> None:
    model, x = vit().double(), images().double()
    before = model(x)
    keeps_its_promises(model, x, before, attached(model, kind))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_layer_kinds_switch_off_and_refuse_to_merge(kind: str) -> None:
    model, x = vit(), images()
    before = model(x)
    where = {"prefix": r"blocks\.\d+\.attn"}.get(kind, BLOCKS)
    adapters = attach(model, kind, where)
    if kind in ("adaptformer", "pfeiffer"):
        assert torch.allclose(model(x), before, atol=1e-6)
    stir(adapters)
    assert (model(x) - before).abs().max() > 1e-5
    with adapters.off():
        assert torch.equal(model(x), before)
    with pytest.raises(UserError, match="cannot be merged"):
        adapters.merge_()


@pytest.mark.parametrize("kind", WEIGHT_KINDS + LAYER_KINDS)
def test_only_the_adapter_learns_and_copies_are_independent(kind: str) -> None:
    model, x = vit(), images()
    where = {"prefix": r"blocks\.\d+\.attn"}.get(kind, BLOCKS)
    adapters = attached(model, kind, FUSED4 if kind in WEIGHT_KINDS else where)
    pair = nn.ModuleList([model, adapters])
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    twin = copy.deepcopy(pair)
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).pow(2).mean() + adapters.aux_loss()).backward()
        optimizer.step()
        adapters.after_step()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items()), "a frozen tensor moved"
    assert not torch.equal(twin[0](x), model(x)), "the copy follows the original"
    assert next(iter(twin[1].parameters())) is not next(iter(adapters.parameters()))
    fresh = vit()
    again = attached(fresh, kind, FUSED4 if kind in WEIGHT_KINDS else where)
    again.load_state_dict(adapters.state_dict())
    assert torch.allclose(fresh(x), model(x), atol=1e-5), "state_dict does not carry the adapter"


@pytest.mark.parametrize("kind", WEIGHT_KINDS + LAYER_KINDS)
def test_half_precision_stays_finite_and_gradients_pass_through(kind: str) -> None:
    model, x = vit(), images(side=8).requires_grad_()
    where = {"prefix": r"blocks\.\d+\.attn"}.get(kind, BLOCKS)
    adapters = attached(model, kind, FUSED4 if kind in WEIGHT_KINDS else where)
    stir(adapters)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean() + adapters.aux_loss()
    loss.backward()
    assert loss.isfinite() and x.grad is not None and float(x.grad.abs().max()) > 0, "no gradient reaches the input"
    assert all(p.grad is None or p.grad.isfinite().all() for p in adapters.parameters())


def test_a_pattern_that_matches_nothing_names_near_layers() -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv"):
        attach(vit(), "lora", r"blocks\.\d+\.attn\.qvk")
    with pytest.raises(UserError, match="not a regular expression"):
        attach(vit(), "lora", "blocks(")
    with pytest.raises(UserError, match="has no setting 'rank'"):
        attach(vit(), "lora", QKV, rank=3)
    with pytest.raises(UserError, match="no weight"):
        attach(vit(), "lora", r"blocks\.0\.mlp")
    with pytest.raises(UserError, match="rows names"):
        attach(vit(), "lora", QKV, rows=("query",))


def test_patterns_are_anchored_and_names_stay() -> None:
    model = vit()
    names = set(layer_names(model))
    adapters = attach(model, "lora", r"blocks\.\d+\.attn\.proj")
    assert list(adapters.sites) == ["blocks.0.attn.proj", "blocks.1.attn.proj"], "patch_embed.proj must not match"
    assert set(layer_names(model)) == names
    attach(model, "adaptformer", BLOCKS)
    assert set(layer_names(model)) == names
    attach(model, "lora", QKV)


def test_row_groups_leave_the_other_rows_alone() -> None:
    model = vit()
    adapters = attach(model, "lora", QKV, rows=("q", "v"), r=2)
    assert sum(p.numel() for p in adapters.parameters()) == 2 * 2 * 2 * (24 + 24)
    stir(adapters)
    delta = adapters.delta("blocks.0.attn.qkv")
    assert delta is not None
    assert delta[24:48].abs().max() == 0 and delta[:24].abs().min() > 0 and delta[48:].abs().min() > 0


def test_names_of_adapters() -> None:
    model, x = vit(), images()
    adapters = attach(model, "lora", QKV)
    before = model(x)
    adapters.add("second")
    assert adapters.used == ["default"]
    with pytest.raises(UserError, match="already"):
        adapters.add("second")
    with pytest.raises(UserError, match="no adapter is called"):
        adapters.use("third")
    stir(adapters)
    adapters.use("default")
    one = model(x)
    adapters.use("default", "second")
    both = model(x)
    adapters.use("second", "default")
    assert torch.allclose(model(x), both, atol=1e-6) and not torch.equal(one, both)
    adapters.use()
    assert torch.equal(model(x), before)
    adapters.drop("default")
    assert adapters.names == ["second"]


def test_attention_of_torch_is_adapted_in_train_and_in_the_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        before = layer(x)
    adapters = attach(layer, "lora", r"self_attn(\.out_proj)?")
    stir(adapters)
    with torch.no_grad():
        fast = layer(x)
    slow = layer.train()(x)
    assert torch.allclose(fast, slow, atol=1e-5) and (fast - before).abs().max() > 1e-4
    only = attach(nn.Sequential(nn.MultiheadAttention(12, 3, batch_first=True)), "lora", r"0\.out_proj")
    assert only.delta("0.out_proj") is not None


def test_merging_twice_adds_up_and_the_second_start_is_a_no_op() -> None:
    model, x = vit().double(), images().double()
    adapters = attach(model, "codyra", QKV, rows=("q", "k", "v"))
    for seed in (1, 2):
        stir(adapters, seed)
        y = model(x)
        adapters.merge_()
        assert torch.allclose(model(x), y, atol=1e-10)
    assert re.fullmatch(FUSED4, "layers.0.blocks.1.attn.qkv") and not re.fullmatch(FUSED4, "patch_embed.proj")


def test_published_regularisers_are_means_over_all_matrices() -> None:
    adapters = attach(vit(), "adalora", FUSED4, r=4, orth=0.1)
    stir(adapters)
    gaps = []
    for _, a in adapters.each():
        gaps += [(a.B.T @ a.B - torch.eye(4)).norm(), (a.A @ a.A.T - torch.eye(4)).norm()]
    assert torch.allclose(adapters.aux_loss(), 0.1 * torch.stack(gaps).mean(), rtol=1e-5)
    gated = attach(vit(), "sora", FUSED4, r=4, l1=10.0)
    gates = torch.cat([a.gate for _, a in gated.each()])
    assert torch.allclose(gated.aux_loss(), 10 * gates.abs().mean(), rtol=1e-5)
