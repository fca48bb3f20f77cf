"""PEFT's LoRA, DoRA, PiSSA and AdaLoRA and AdapterHub's bottleneck beside ours, from the same start on the same batches."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.adapters import FUSED4, attach
from cl_bench.data.tensor import as_float

from .checkouts import Row, importable
from .learners import digits, embedded

STEPS, RANK = 12, 4


class Classified(nn.Module):
    """The embedded ViT under a fixed random classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = embedded()
        torch.manual_seed(4)
        self.register_buffer("weight", torch.randn(6, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body.forward_features(x), self.weight)  # type: ignore[arg-type]


def data() -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Twelve batches with labels, and test images."""
    experiences, tests = digits()
    x = torch.cat([as_float(e.data.x).double() for e in experiences])  # type: ignore[attr-defined]
    y = torch.cat([e.data.y for e in experiences])  # type: ignore[attr-defined]
    return [(x[k::STEPS], y[k::STEPS]) for k in range(STEPS)], tests


def peft(tree: Path) -> list[Row]:
    """Logits after twelve steps of AdamW without decay."""
    import peft as theirs

    torch.set_default_dtype(torch.float64)
    batches, tests = data()
    names = ("qkv", "proj", "fc1", "fc2")
    where = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    rows = list[Row]()
    for kind in ("lora", "dora", "pissa", "adalora"):
        torch.manual_seed(0)
        mine, net = Classified(), Classified()
        settings: dict[str, Any] = {"r": RANK, "alpha": 8.0}
        if kind == "adalora":
            settings |= {"target_r": 2, "first": 2 / STEPS, "last": 4 / STEPS, "orth": 0.0}
            config: Any = theirs.AdaLoraConfig(init_r=RANK, target_r=2, lora_alpha=8, lora_dropout=0.0, target_modules=where,
                                               total_step=STEPS, tinit=2, tfinal=4, deltaT=1)
        else:
            config = theirs.LoraConfig(r=RANK, lora_alpha=8, lora_dropout=0.0, target_modules=where, use_dora=kind == "dora",
                                       init_lora_weights="pissa" if kind == "pissa" else True)
        adapters = attach(mine.body, kind, FUSED4, **settings)
        wrapped = theirs.get_peft_model(net.float() if kind == "pissa" else net, config).double()  # PiSSA starts in float32
        if kind != "pissa":
            with torch.no_grad():
                for at, adapter in adapters.each():
                    layer = wrapped.base_model.model.get_submodule(f"body.model.{at}")
                    a, b = layer.lora_A["default"], layer.lora_B["default"]
                    (a if kind == "adalora" else a.weight).copy_(adapter.A)
                    (b if kind == "adalora" else b.weight).copy_(adapter.B)
                    if kind == "adalora":
                        layer.lora_E["default"].copy_(adapter.gate[:, None])
        sides = [(mine, [p for p in adapters.parameters() if p.requires_grad]),
                 (wrapped, [p for n, p in wrapped.named_parameters() if p.requires_grad])]
        optimizers = [torch.optim.AdamW(ps, lr=5e-3, weight_decay=0.0) for _, ps in sides]
        with torch.no_grad():
            start = float((mine(tests) - wrapped(tests)).abs().max())
        for step, (bx, by) in enumerate(batches):
            for (side, _), optimizer in zip(sides, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(side(bx), by).backward()
                optimizer.step()
            if kind == "adalora":
                adapters.after_step(step + 1, STEPS)
                wrapped.base_model.update_and_allocate(step + 1)
        with torch.no_grad():
            end = float((mine(tests) - wrapped(tests)).abs().max())
        what = f"PEFT {kind}"
        slack = 100.0 if kind == "pissa" else 1.0
        note = ", whose start PEFT decomposes in single precision" if kind == "pissa" else ""
        rows += [Row(what, f"logits of 60 test images at the start, on {', '.join(names)} of three blocks{note}", start,
                     slack * 2e-6),
                 Row(what, f"logits after {STEPS} steps{note}", end, slack * 1e-5)]
        if kind == "adalora":
            closed = sum(int((a.gate != 0).sum()) for _, a in adapters.each())
            official = sum(int((p != 0).sum()) for n, p in wrapped.named_parameters() if "lora_E" in n)
            rows.append(Row(what, f"triplets left open at the end: {closed}", float(abs(closed - official)), 0.0))
    return [*rows, *osf(theirs, where, tests, batches)]


def osf(theirs: Any, where: str, tests: Tensor, batches: list[tuple[Tensor, Tensor]]) -> list[Row]:
    """PEFT's OSF, the form in which OSFT's authors' method is spread: half of every weight's directions are kept."""
    rows = list[Row]()
    for name, make, expected in (("SGD", torch.optim.SGD, ""), ("AdamW", torch.optim.AdamW,
                                 "PEFT projects gradients alone, and AdamW's scaling brings the protected directions back")):
        torch.manual_seed(0)
        mine, net = Classified(), Classified()
        adapters = attach(mine.body, "osft", FUSED4, keep=0.5)
        wrapped = theirs.get_peft_model(net, theirs.OSFConfig(effective_rank=32, target_modules=where)).double()
        sides = [(mine, [p for p in adapters.parameters() if p.requires_grad]),
                 (wrapped, [p for n, p in wrapped.named_parameters() if p.requires_grad])]
        optimizers = [make(ps, lr=1e-2 if name == "SGD" else 1e-3, weight_decay=0.0) for _, ps in sides]
        for bx, by in batches:
            for (side, _), optimizer in zip(sides, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(side(bx), by).backward()
                if side is mine:
                    adapters.after_backward()
                optimizer.step()
            adapters.after_step()
        with torch.no_grad():
            apart = float((mine(tests) - wrapped(tests)).abs().max())
        rows.append(Row("PEFT OSF, osft", f"logits after {STEPS} steps of {name}, 32 of 64 directions kept", apart, 1e-4,
                        expected=expected))
    return rows


def adapterhub(tree: Path) -> list[Row]:
    """AdapterHub's bottleneck as its ``seq_bn`` (Pfeiffer) and ``double_seq_bn`` (Houlsby) run it on a ViT: before, through and
    after the adapter, without a norm layer, on the timm blocks in place of transformers' own."""
    stand_ins = ("adapters.context", "adapters.utils", "adapters.composition")
    with importable(tree / "src", stand_ins, ("adapters", "adapters.methods", "adapters.configuration")):
        configs: Any = importlib.import_module("adapters.configuration.adapter_config")
        fusion = importlib.import_module("adapters.configuration.adapter_fusion_config")
        sys.modules["adapters.configuration"].__dict__.update(vars(fusion) | vars(configs))
        module: Any = importlib.import_module("adapters.methods.modeling")
    torch.set_default_dtype(torch.float64)
    batches, tests = data()
    rows = list[Row]()
    for what, config, at in (("pfeiffer", configs.SeqBnConfig(), r".*blocks\.\d+"),
                             ("pfeiffer on attention and MLP", configs.DoubleSeqBnConfig(non_linearity="relu"),
                              r".*blocks\.\d+\.(attn|mlp)")):
        torch.manual_seed(0)
        mine, net = Classified(), Classified()
        net.body.requires_grad_(False)
        adapters = attach(mine.body, "pfeiffer", at, r=RANK)
        theirs = nn.ModuleList()
        with torch.no_grad():
            for _, adapter in adapters.each():
                made = module.Adapter("a", 64, RANK, config)
                made.adapter_down[0].load_state_dict(adapter.down.state_dict())
                made.adapter_up.load_state_dict(adapter.up.state_dict())
                theirs.append(made)
        left = iter(theirs)
        for block in net.body.model.blocks:  # type: ignore[union-attr]
            block.forward = bottlenecked(block, next(left) if config.mh_adapter else None, next(left))
        sides = [(mine, [p for p in adapters.parameters() if p.requires_grad]), (net, list(theirs.parameters()))]
        optimizers = [torch.optim.AdamW(ps, lr=5e-3, weight_decay=0.0) for _, ps in sides]
        with torch.no_grad():
            start = mine(tests)
        for bx, by in batches:
            for (side, _), optimizer in zip(sides, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(side(bx), by).backward()
                optimizer.step()
        with torch.no_grad():
            end, apart = mine(tests), float((mine(tests) - net(tests)).abs().max())
        moved = float((end - start).abs().max())
        text = f"logits after {STEPS} steps, which move them by up to {moved:.1f}"
        rows.append(Row(f"AdapterHub, {what}", text, apart, 1e-9))
    return rows


def bottlenecked(block: Any, attention: Any, output: Any) -> Any:
    """A timm block's forward with adapters where ``ViTLayerWithAdapters`` and ``ViTOutputWithAdapters`` have theirs."""
    def through(adapter: Any, h: Tensor, stream: Tensor) -> Tensor:
        if adapter is None:
            return h + stream
        into, _, residual = adapter.pre_forward(h, stream, None)
        return adapter.post_forward(adapter(into, residual)[0], h, stream, None)  # type: ignore[no-any-return]

    def forward(x: Tensor, *args: Any, **kw: Any) -> Tensor:
        x = through(attention, block.attn(block.norm1(x)), x)
        return through(output, block.mlp(block.norm2(x)), x)

    return forward
