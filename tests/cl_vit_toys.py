"""What the tests of adapter, subspace, prototype and prompt methods share: a tiny transformer, toy images, the loop."""

from __future__ import annotations

from typing import Any

import torch

from cl_bench import Experience, LabelSpace, TensorData
from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.method import Method
from cl_bench.registry import find

CPU = Compute(device="cpu")
SMALL: dict[str, dict[str, Any]] = {
    "codyra": {"epochs": 3},
    "coda_prompt": {"tasks": 5, "pool": 10, "epochs": 2},
    "ranpac": {"m": 60, "epochs": 1},
    "inflora": {"epochs": 1, "r": 4, "tasks": 3},
    "mos": {"epochs": 2, "align_epochs": 2, "r": 4},
    "ease": {"epochs": 1, "r": 4},
    "aper": {"epochs": 1},
    "sema": {"epochs": 1, "descriptor_epochs": 2, "r": 4},
    "slca": {"epochs": 1, "align_epochs": 1, "samples": 16},
    "l2p": {"epochs": 1, "length": 2},
    "dualprompt": {"epochs": 1, "g_at": r"blocks\.0\.attn", "e_at": r"blocks\.1\.attn"},
    "lae": {"epochs": 1},
    "sdlora": {"epochs": 1},
    "olora": {"epochs": 1, "r": 3},
    "osft": {"epochs": 1, "lr": 1e-2},
    "lora": {"epochs": 1},
    "ncm": {},
}


def backbone(depth: int = 2, width: int = 24) -> Backbone:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=width,
        depth=depth,
        num_heads=3,
        mlp_ratio=2.0,
        num_classes=0,
        global_pool="token",
    )
    return Backbone(model, num_features=width, preprocess=Preprocess(8)).eval()


def experience(k: int, n: int = 24) -> Experience:
    """Two classes (2k, 2k + 1): noise around class patterns that differ between experiences."""
    g = torch.Generator().manual_seed(k)
    y = torch.arange(n) % 2 + 2 * k
    pattern = torch.rand(2, 3, 8, 8, generator=g)
    x = (pattern[y - 2 * k] + 0.1 * torch.randn(n, 3, 8, 8, generator=g)).clamp(0, 1)
    return Experience(f"e{k}", LabelSpace((2 * k, 2 * k + 1)), TensorData((x * 255).to(torch.uint8), y))


def build(name: str, **settings: Any) -> Method:
    torch.manual_seed(1)
    return find("cl_bench.methods", name)(backbone(), **{**SMALL[name], **settings})


def learned(name: str, count: int = 2, **settings: Any) -> Method:
    method = build(name, **settings)
    for k in range(count):
        fit(method, experience(k), CPU, seed=k)
    return method


def images(k: int = 0) -> torch.Tensor:
    return experience(k).data.x.float() / 255  # type: ignore[attr-defined]


def features(method: Method, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return method.backbone.forward_features(x)
