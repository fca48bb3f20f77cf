"""Norm modes: which statistics a BatchNorm layer normalises with while a model is deployed.

Layers are exchanged in place and keep their affine parameters (the same objects, under the same names), their ``eps``,
and the activation that some libraries fold into the layer. LayerNorm and GroupNorm have no statistics to exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cl_bench_ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..adapters import soft_threshold

__all__ = [
    "BatchStatistics",
    "DeployedNorm",
    "InstanceAwareNorm",
    "MixedNorm",
    "RobustNorm",
    "batch_statistics",
    "convert",
    "grouped",
    "norm_layers",
]


class DeployedNorm(nn.Module):
    """What all exchanged BatchNorm layers share; subclasses say where mean and variance come from.

    Args:
        norm: the BatchNorm layer to stand in for.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.num_features = norm.eps, norm.num_features
        folded = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
        self.after = nn.Sequential(*folded)  # timm folds dropout and activation into its norm layers
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        kept = getattr(self, "mean", x)  # statistics stay float32 where mixed precision hands over half of it
        return self.after(self.normalised(x.to(kept.dtype)).to(x.dtype))

    def normalised(self, x: Tensor) -> Tensor:
        """Images or features (N, C, ...) normalised and scaled."""
        raise NotImplementedError

    def keep_source(self, norm: _BatchNorm) -> None:
        """Start the buffers ``mean`` and ``var`` (C,) at the layer's running statistics."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("this BatchNorm layer has no running statistics to start from")
        self.register_buffer("mean", norm.running_mean.detach().clone())
        self.register_buffer("var", norm.running_var.detach().clone())

    def fixed(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise with given statistics (C,) that carry no gradient: one fused kernel."""
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def mixed(self, x: Tensor, alpha: float, unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x normalised with (1 - alpha) of the kept and alpha of the batch's statistics, and these (C,), without gradient."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if v is None else v.to(wide) for v in (self.weight, self.bias))
        return cl_bench_ops.batchnorm_mix(x, self.mean.to(wide), self.var.to(wide), weight, bias, alpha, self.eps, unbiased)

    def scaled(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise with statistics that broadcast against x and may carry gradient."""
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * per_channel(self.weight, x)
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + per_channel(self.bias, x)
        return torch.addcmul(shift, x, scale)


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """(C,) to (1, C, 1, ...), to go with x (N, C, ...)."""
    return v.view(1, -1, *([1] * (x.ndim - 2)))


class Moments(torch.autograd.Function):
    """Mean and biased variance (C,) of x (N, C, ...) over all but channels, differentiable.

    The statistics that the fused BatchNorm kernel computes on its way, which on a CPU is four times as fast as
    ``torch.var_mean`` on a channels-last tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 0.0)
        var = torch.where(inverse == 0, 0.0, inverse.square().reciprocal())  # how the kernel writes a variance of 0
        mean, var = mean.to(x.dtype), var.to(x.dtype)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = to_var * (2 / n)
        return torch.addcmul(per_channel(to_mean / n - slope * mean, x), x, per_channel(slope, x))


class InstanceMoments(torch.autograd.Function):
    """Mean and unbiased variance (N, C, 1, ...) of every image's channels x (N, C, ...), differentiable.

    ``torch.var_mean`` over these dimensions is seven times as slow on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        inside, n = list(range(2, x.ndim)), x[0, 0].numel()
        mean = x.mean(inside, keepdim=True)
        var = (x - mean).square_().sum(inside, keepdim=True) / (n - 1)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x[0, 0].numel()
        slope = to_var * (2 / (n - 1))
        return torch.addcmul(to_mean / n - slope * mean, x, slope)


def moments(x: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of a batch x (N, C, ...); the unbiased variance of a single value counts as 0."""
    mean, var = Moments.apply(x)
    n = x.numel() // x.shape[1]
    return mean, var * (n / (n - 1)) if unbiased and n > 1 else var


class BatchStatistics(DeployedNorm):
    """BATCH: mean and biased variance of the batch at hand, in ``train`` and ``eval`` alike.

    With ``groups`` > 1 (see :func:`grouped`) every group of N / groups consecutive rows is a batch of its own.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm)
        self.groups = 1

    def normalised(self, x: Tensor) -> Tensor:
        if self.groups > 1:
            parts = x.unflatten(0, (self.groups, -1))
            var, mean = torch.var_mean(parts, dim=[1, *range(3, parts.ndim)], correction=0, keepdim=True)
            return self.scaled(x, *(s.expand(-1, parts.shape[1], *s.shape[2:]).flatten(0, 1) for s in (mean, var)))
        if x.numel() == x.shape[1]:
            return self.scaled(x, x, torch.zeros_like(x))  # one value per channel: its mean is itself
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class MixedNorm(DeployedNorm):
    """MIX(a): (1 - alpha) source + alpha batch, mean and variance alike. No gradient passes the statistics, as in
    zhangmarvin/memo and in TTA-lib, which take the batch's from the buffers of a second BatchNorm.

    Args:
        alpha: weight of the batch; Schneider et al. write n / (N + n) with pseudo-count N.
        unbiased: whether the batch variance divides by n - 1 (TTA-lib reads it so); a single value then counts as 0.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: _BatchNorm, alpha: float = 0.1, unbiased: bool = True) -> None:
        super().__init__(norm)
        self.alpha, self.unbiased = alpha, unbiased
        self.keep_source(norm)

    def normalised(self, x: Tensor) -> Tensor:
        return self.mixed(x, self.alpha, self.unbiased)[0]


class RobustNorm(DeployedNorm):
    """RBN (RoTTA): running statistics that follow the batch by ``alpha``, in ``train()`` passes only.

    train: normalise with (1 - alpha) running + alpha batch (biased variance, gradient through the batch part) and keep
    the detached result. eval: normalise with what was kept.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: _BatchNorm, alpha: float = 0.05) -> None:
        super().__init__(norm)
        self.alpha = alpha
        self.keep_source(norm)

    def normalised(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.fixed(x, self.mean, self.var)
        if not (torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))):
            out, mean, var = self.mixed(x, self.alpha, unbiased=False)
            self.mean.copy_(mean)
            self.var.copy_(var)
            return out
        mean, var = moments(x)
        mean, var = self.mean.lerp(mean, self.alpha), self.var.lerp(var, self.alpha)
        self.mean.copy_(mean.detach())
        self.var.copy_(var.detach())
        return self.scaled(x, per_channel(mean, x), per_channel(var, x))


class InstanceAwareNorm(DeployedNorm):
    """IABN (NOTE): running statistics, corrected per image where its own differ by more than sampling noise explains.

    mu' = mu + shrink(mu_i - mu, k sqrt((s2 + eps) / hw)), s2' = relu(s2 + shrink(s2_i - s2, k (s2 + eps) sqrt(2 /
    (hw - 1)))). train() passes use the batch's statistics for mu and s2 and move the running ones by ``momentum``.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: _BatchNorm, k: float = 4.0, momentum: float = 0.01) -> None:
        super().__init__(norm)
        self.k, self.momentum = k, momentum
        self.keep_source(norm)

    def normalised(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = moments(x, unbiased=True)
            self.mean.lerp_(mean.detach(), self.momentum)
            self.var.lerp_(var.detach(), self.momentum)
        else:
            mean, var = self.mean, self.var
        mean, var = per_channel(mean, x), per_channel(var, x)
        pixels = x[0, 0].numel()
        if pixels > 1:
            own_mean, own_var = InstanceMoments.apply(x)
            noise = self.k * torch.sqrt((var + self.eps) / pixels)
            noise2 = self.k * (var + self.eps) * (2 / (pixels - 1)) ** 0.5
            mean = mean + soft_threshold(own_mean - mean, noise)
            var = F.relu(var + soft_threshold(own_var - var, noise2))
        return self.scaled(x, mean, var)


def convert(model: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> int:
    """Exchange every BatchNorm layer of ``model`` in place for ``make(layer)``; returns how many there were.

    Modules that hold the same layer twice get the same replacement twice.
    """
    made: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                if id(child) not in made:
                    made[id(child)] = make(child)
                setattr(parent, name, made[id(child)])
    return len(made)


def batch_statistics(model: nn.Module) -> int:
    """Put every BatchNorm layer in BATCH mode; returns how many there were."""
    return convert(model, BatchStatistics)


@contextmanager
def grouped(model: nn.Module, groups: int) -> Iterator[None]:
    """Within, ``groups`` batches that come concatenated are normalised as the separate batches they are."""
    layers = [m for m in model.modules() if isinstance(m, BatchStatistics)]
    for layer in layers:
        layer.groups = groups
    try:
        yield
    finally:
        for layer in layers:
            layer.groups = 1


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All normalisation layers by name: BatchNorm (exchanged or not), LayerNorm, GroupNorm, InstanceNorm, RMSNorm."""
    kinds = (_BatchNorm, DeployedNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
