"""Adapters in PEFT's layout: what we write PEFT reads, what PEFT writes we read, with the same answers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cl_bench.adapters import FUSED4, attach, load_peft, save_peft
from cl_bench.errors import UserError

peft = pytest.importorskip("peft")

from test_adapters import attached, images, stir, vit  # noqa: E402

AT = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lora", {"r": 4, "alpha": 8.0}),
        ("lora", {"r": 4, "rows": ("q", "v")}),
        ("dora", {"r": 4, "alpha": 8.0}),
        ("adalora", {"r": 4, "alpha": 8.0}),
        ("pissa", {"r": 4}),
        ("soma", {"r": 4}),
        ("corda", {"r": 4}),
        ("kore", {"r": 4}),
        ("svfit", {}),
        ("codyra", {"r": 4, "rows": ("q", "k", "v")}),
        ("sora", {"r": 4}),
    ],
)
def test_peft_reads_what_we_write(tmp_path, kind: str, settings: dict) -> None:
    model, x = vit(), images()
    adapters = attached(model, kind, AT, **settings)
    stir(adapters)
    if kind in ("codyra", "sora"):
        for _, adapter in adapters.each():
            adapter.gate.data[::2] = 0  # closed ranks are left out
    expected = model(x)
    assert (expected - vit()(x)).abs().max() > 1e-3
    save_peft(adapters, tmp_path)
    read = peft.PeftModel.from_pretrained(vit(), str(tmp_path)).eval()
    assert torch.allclose(read(x), expected, atol=1e-4)
    again = vit()
    load_peft(again, tmp_path)
    assert torch.allclose(again(x), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "pissa", "adalora"])
def test_we_read_what_peft_writes(tmp_path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "adalora":
        config = peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=8, target_modules=AT, total_step=10, tinit=1, tfinal=1
        )
    else:
        config = peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=AT,
            use_rslora=kind == "rslora",
            use_dora=kind == "dora",
            init_lora_weights="pissa" if kind == "pissa" else True,
        )
    wrapped, x = peft.get_peft_model(vit(), config).eval(), images()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p += 0.1 * torch.randn_like(p)
    expected = wrapped(x)
    options = {}
    if kind == "pissa":  # PEFT's own way to a LoRA on the untouched weights
        torch.manual_seed(0)
        start = peft.get_peft_model(vit(), config)
        start.peft_config["default"].init_lora_weights = True
        start.save_pretrained(str(tmp_path / "start"))
        wrapped.peft_config["default"].init_lora_weights = "pissa"
        options["path_initial_model_for_weight_conversion"] = str(tmp_path / "start")
    wrapped.save_pretrained(str(tmp_path), **options)
    model = vit()
    adapters = load_peft(model, tmp_path)
    assert torch.allclose(model(x), expected, atol=1e-4)
    assert adapters.kind.__name__ == {"dora": "DoRA", "adalora": "AdaLoRA"}.get(kind, "LoRA")
    adapters.merge_()
    assert torch.allclose(model(x), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora", "pissa", "soma", "corda", "sora"])
@pytest.mark.parametrize("r", [2, 4])  # with a rank of 4 a folded start has more ranks than the second weight
def test_convolutions_keep_their_shape(tmp_path, kind: str, r: int) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(1), nn.LazyLinear(5))

    model, x = net(), images()
    model(x)
    plain = {k: v.clone() for k, v in model.state_dict().items()}

    def fresh() -> nn.Module:
        other = net()
        other(x)
        other.load_state_dict(plain)
        return other

    adapters = attached(model, kind, r"[024]", r=r)
    stir(adapters)
    expected = model(x)
    save_peft(adapters, tmp_path)
    again = fresh()
    load_peft(again, tmp_path)
    assert torch.allclose(again(x), expected, atol=1e-5)
    read = peft.PeftModel.from_pretrained(fresh(), str(tmp_path)).eval()
    assert torch.allclose(read(x), expected, atol=1e-5)


def test_what_cannot_be_written_or_read_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match="no low-rank update"):
        save_peft(attach(vit(), "ssf", FUSED4), tmp_path)
    with pytest.raises(UserError, match=r"there is no adapter_config\.json"):
        load_peft(vit(), tmp_path / "nowhere")
    block = nn.Sequential(nn.MultiheadAttention(12, 3, batch_first=True))
    with pytest.raises(UserError, match="MultiheadAttention"):
        save_peft(attach(block, "lora", "0"), tmp_path)
    save_peft(attach(vit(), "lora", AT, r=2), tmp_path)
    with pytest.raises(UserError, match=r"no layer blocks\.1"):
        load_peft(vit(depth=1), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "VERA"}))
    with pytest.raises(UserError, match="VERA"):
        load_peft(vit(), tmp_path)
    for text in ("[]", "{}", "{", "[" * 100_000, "3"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="no configuration of PEFT"):
            load_peft(vit(), tmp_path)
