"""Self-attention with extra keys and values, for the attention layers of timm, torch and open_clip."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["attend", "width_of"]


def width_of(layer: nn.Module) -> int:
    """Width d of the tokens that an attention layer, a block or an MLP reads.

    Raises:
        UserError: if the layer is none of these.
    """
    for name in ("norm2", "ln_2", "norm1", "ln_1", "norm"):
        shape = getattr(getattr(layer, name, None), "normalized_shape", None)
        if shape:
            return int(shape[0])
    if isinstance(getattr(layer, "embed_dim", None), int):
        return int(layer.embed_dim)  # type: ignore[arg-type]
    first = next((m for m in layer.modules() if isinstance(m, nn.Linear)), None)
    if first is None:
        raise UserError(f"{type(layer).__name__} is no transformer block, attention or MLP; match such layers with at.")
    return first.in_features


def attend(layer: nn.Module, x: Tensor, keys: Tensor, values: Tensor, compensate: bool = False, **kwargs: Any) -> Any:
    """What ``layer`` answers for tokens ``x`` (B, N, d) with extra ``keys``, ``values`` (n, d) or (B, n, d).

    They join after the projections, so queries and the sequence's length stay (prefix tuning). ``compensate`` divides
    the attention that falls on the prefix by its own sum (LAE): the prefix then counts with mass 1 and the rest as
    before.

    Raises:
        UserError: if the layer is no self-attention of timm, torch or open_clip over a flat sequence.
    """
    if x.ndim != 3:
        raise UserError("prefixes need attention over one sequence of tokens; windows and feature maps have none.")
    packed = getattr(layer, "in_proj_weight", None)
    if packed is None and not hasattr(layer, "qkv"):
        raise UserError(f"{type(layer).__name__} is no attention with a fused projection; match attn layers with at.")
    if packed is not None and not getattr(layer, "batch_first", True):
        raise UserError("prefixes need attention with batch_first=True.")
    if any(kwargs.get(k) is not None for k in ("attn_mask", "key_padding_mask")) or kwargs.get("is_causal"):
        raise UserError("prefixes are for image towers: attention masks are not supported.")
    m: Any = layer
    qkv = F.linear(x, packed, m.in_proj_bias) if packed is not None else m.qkv(x)
    q, k, v = qkv.chunk(3, dim=-1)
    k = torch.cat([_each(keys, x), k], dim=1)
    v = torch.cat([_each(values, x), v], dim=1)
    q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    if packed is None:
        q, k = m.q_norm(q), m.k_norm(k)
    drop = m.attn_drop if packed is None else nn.Dropout(m.dropout).train(m.training)
    if compensate:
        n = keys.shape[-2]
        share = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        front = share[..., :n]
        share = torch.cat([front / front.sum(-1, keepdim=True).clamp(min=1e-12), share[..., n:]], -1)
        y = drop(share) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop.p if m.training else 0.0)
    y = y.transpose(1, 2).flatten(2)
    if packed is not None:
        return F.linear(y, m.out_proj.weight, m.out_proj.bias), None
    if isinstance(getattr(m, "norm", None), nn.Module):
        y = m.norm(y)
    if getattr(m, "gate", None) is not None:
        y = y * m.gate(x).sigmoid()
    return m.proj_drop(m.proj(y))


def _each(extra: Tensor, x: Tensor) -> Tensor:
    return extra.to(x.dtype) if extra.ndim == 3 else extra.to(x.dtype).expand(len(x), -1, -1)
