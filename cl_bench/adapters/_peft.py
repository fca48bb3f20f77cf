"""Adapters in Hugging Face PEFT's layout: ``adapter_model.safetensors`` beside ``adapter_config.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ._attach import AdapterSet, attach, layer_names, trunk_of
from ._base import Adapter, WeightSite
from .adalora import AdaLoRA
from .peft_tuner import LINEAR, Peft

__all__ = ["load_peft", "save_peft"]

_PREFIX = "base_model.model."
_BOOKKEEPING = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
                "inference_mode", "target_modules")


def save_peft(adapters: AdapterSet, folder: str | Path, name: str = "default") -> Path:
    """Write one adapter of a low-rank kind so that ``peft.PeftModel.from_pretrained(model, folder)`` reads it.

    LoRA, DoRA, AdaLoRA and PEFT's own tuners keep their tensors; gates, scales and singular starts of the other low-rank
    kinds are folded into a plain LoRA of the same update, and so is AdaLoRA where it sits on a convolution, for which PEFT
    has no AdaLoRA. Row groups of a fused projection become one LoRA of the summed
    rank.

    Raises:
        UserError: for a kind that is no low-rank update, or sites on ``nn.MultiheadAttention`` (PEFT stores those two
            projections together).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if adapters.kind is Peft:
        return _save_tuner(adapters, folder, name)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    extra: dict[str, Any] = {}
    keeps = adapters.kind is not AdaLoRA or all(isinstance(layer, nn.Linear) for layer in adapters.layers.values())
    for at, site in adapters.sites.items():
        layer = adapters.layers[at]
        parts = list(site.adapters(name))
        if not isinstance(site, WeightSite) or not hasattr(parts[0], "factors"):
            raise UserError(f"{adapters.kind.__name__} is no low-rank update: PEFT has no layout for it.")
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or at.endswith("out_proj"):
            raise UserError(f"{at} is inside nn.MultiheadAttention, whose adapters PEFT stores in its own wrapper.")
        own = parts[0].peft_tensors() if keeps and len(parts) == 1 else None  # type: ignore[operator]
        if own is not None:
            found, r, alphas[at], extra = own
        else:
            a, b = _folded(site, parts, len(adapters.weight(at)))
            found, r, alphas[at] = {"lora_A.weight": a, "lora_B.weight": b}, len(a), float(len(a))
        ranks[at] = r
        for key, value in found.items():
            tensors[f"{_PREFIX}{at}.{key}"] = _shaped(value, key, layer).detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "r": max(ranks.values()),
        "lora_alpha": max(alphas.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {f"^{re.escape(k)}": r for k, r in ranks.items()},
        "alpha_pattern": {f"^{re.escape(k)}": a for k, a in alphas.items()},
        **extra,
    }
    if config["peft_type"] == "ADALORA":  # there the patterns mean masks of the budget
        config |= {"rank_pattern": None, "alpha_pattern": {}}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    return folder


def _save_tuner(adapters: AdapterSet, folder: Path, name: str) -> Path:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for at, site in adapters.sites.items():
        parts = list(site.adapters(name))
        if len(parts) > 1 or not isinstance(adapters.layers[at], nn.Linear):
            raise UserError(f"{at} is no whole linear layer: PEFT has no layout for its tuner there; attach without rows.")
        found, config = parts[0].peft_state()  # type: ignore[operator]
        tensors |= {f"{_PREFIX}{at}.{k}": v.detach().cpu().contiguous().clone() for k, v in found.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config.target_modules = set(adapters.sites)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return folder


def _folded(site: WeightSite, parts: list[Adapter], out: int) -> tuple[Tensor, Tensor]:
    """One (A, B) for all groups of rows; a closed adapter leaves one zero rank, as PEFT wants at least one."""
    downs, ups = [], []
    for adapter, (start, stop) in zip(parts, site.groups, strict=True):
        a, b = adapter.factors()  # type: ignore[operator]
        whole = b.new_zeros(out, b.shape[1])
        whole[start:stop] = b
        downs.append(a)
        ups.append(whole)
    down, up = torch.cat(downs), torch.cat(ups, 1)
    return (down, up) if len(down) else (down.new_zeros(1, down.shape[1]), up.new_zeros(out, 1))


def _shaped(value: Tensor, key: str, layer: nn.Module) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return value
    if value.ndim == 1:
        return value.reshape(1, -1, 1, 1)  # DoRA's magnitudes
    if key.startswith("lora_A"):
        return value.reshape(-1, layer.in_channels // layer.groups, *layer.kernel_size)
    return value.reshape(layer.out_channels, -1, 1, 1)


def load_peft(backbone: nn.Module, folder: str | Path) -> AdapterSet:
    """Attach what PEFT (or :func:`save_peft`) wrote: LoRA, DoRA or AdaLoRA on linear and convolution layers, or one of
    PEFT's other linear tuners on linear layers.

    Raises:
        UserError: if a file is missing, the type is another one, or a layer is not in this backbone.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"there is no {file} in {folder}; give a folder that PEFT's save_pretrained wrote.")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        kinds = {"ADALORA": "adalora", "LORA": "dora" if config.get("use_dora") else "lora"}
        kind = kinds.get(config["peft_type"])
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as fault:
        raise UserError(f"{folder / 'adapter_config.json'} is no configuration of PEFT ({type(fault).__name__}: {fault}); "
                        "write it anew.") from fault
    if kind is None:
        return _load_tuner(backbone, folder, config["peft_type"])
    sites: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        at, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not at:
            raise UserError(f"{folder} holds {key}, which is no low-rank factor.")
        sites.setdefault(at, {})["lora_" + part] = value.flatten(1) if value.ndim > 2 else value
    missing = [at for at in sites if not _has(trunk_of(backbone), at)]
    if missing:
        raise UserError(f"this backbone has no layer {missing[0]}, which {folder} adapts.")
    handle = attach(backbone, kind, at="|".join(map(re.escape, sites)))
    for at, site in handle.sites.items():
        weight = handle.weight(at)
        site.bank["default"] = nn.ModuleList([_read(handle.kind, config, at, sites[at], weight)])
    return handle


def _load_tuner(backbone: nn.Module, folder: Path, peft_type: str) -> AdapterSet:
    from peft import PeftConfig
    from safetensors.torch import load_file

    tuner = peft_type.lower()
    if tuner not in LINEAR:
        raise UserError(f"adapters of PEFT type {peft_type} cannot be read; {', '.join(LINEAR).upper()} and ADALORA can.")
    written, layers = PeftConfig.from_pretrained(str(folder)).to_dict(), layer_names(backbone)
    config = {k: v for k, v in written.items() if v is not None and k not in _BOOKKEEPING}
    sites: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        path = key.removeprefix(_PREFIX)
        at = max((n for n in layers if path.startswith(f"{n}.")), key=len, default="")
        if not isinstance(trunk_of(backbone).get_submodule(layers[at]) if at else None, nn.Linear):
            raise UserError(f"this backbone has no linear layer for {path}, which {folder} adapts.")
        sites.setdefault(at, {})[path[len(at) + 1 :]] = value
    handle = attach(backbone, "peft", at="|".join(map(re.escape, sites)), tuner=tuner, config=config)
    for at, adapter in handle.each():
        assert isinstance(adapter, Peft)
        adapter.read_peft_state(sites[at])
    return handle


def _has(trunk: nn.Module, at: str) -> bool:
    try:
        trunk.get_submodule(at)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def _read(kind: type[Adapter], config: dict[str, Any], at: str, found: dict[str, Tensor], weight: Tensor) -> Adapter:
    a = found.get("lora_A.weight", found.get("lora_A"))
    assert a is not None
    r = len(a)
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.)({pattern})$", at) or pattern == at:
            alpha = float(value)
    most = min(weight.flatten(1).shape)
    if r > most and kind is not AdaLoRA:  # more ranks than the weight has: the same update in as many as it has
        found, narrow = _narrowed(found), most / r
        r, alpha = most, alpha * (narrow**0.5 if config.get("use_rslora") else narrow)
    adapter = kind(weight.flatten(1), r=r, alpha=alpha, **({"rslora": True} if config.get("use_rslora") else {}))
    adapter = adapter.to(weight)
    adapter.read_peft(found)  # type: ignore[operator]
    return adapter


def _narrowed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same product of two factors with no more ranks than its smaller side."""
    a, b = found["lora_A.weight"], found["lora_B.weight"]
    update = b @ a
    eye = torch.eye(min(update.shape), dtype=update.dtype, device=update.device)
    a, b = (update, eye) if len(update) <= update.shape[1] else (eye, update)
    return {**found, "lora_A.weight": a, "lora_B.weight": b}
