"""The inner loops of TENT, CoTTA and ROID as their public procedures run them, in plain torch and torchvision.

Written from the papers and the published settings, for timing: one image transform after another per view, one forward
pass per view, one small operation per parameter. No harness around them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

__all__ = ["PROCEDURES"]


def norms(model: nn.Module) -> list[nn.Parameter]:
    """Batch statistics everywhere; the affine parameters of the norm layers."""
    model.requires_grad_(False)
    found = []
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            found += [m.weight, m.bias]
        elif isinstance(m, nn.LayerNorm):
            found += [m.weight, m.bias]
    for p in found:
        p.requires_grad_(True)
    return found


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def jitter(padding: str, blur: bool, side: int) -> Callable[[Tensor], Tensor]:
    """The augmentation of CoTTA, and of ROID with reflected borders and neither blur nor noise."""
    steps = [transforms.ColorJitter((0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.06, 0.06)),
             transforms.Pad(side // 2, padding_mode=padding),
             transforms.RandomAffine((-15, 15), (1 / 16, 1 / 16), (0.9, 1.1),
                                     interpolation=transforms.InterpolationMode.BILINEAR)]
    if blur:
        steps.append(transforms.GaussianBlur(5, (0.001, 0.5)))
    chain = transforms.Compose([*steps, transforms.CenterCrop(side), transforms.RandomHorizontalFlip(0.5)])

    def view(x: Tensor) -> Tensor:
        gamma = float(torch.empty(1).uniform_(0.7, 1.3))
        x = transforms.functional.adjust_gamma(chain(x.clamp(0, 1)).clamp(1e-8, 1), gamma)
        return (x + 0.005 * torch.randn_like(x)).clamp(0, 1) if blur else x

    return view


def tent(model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    optimizer = torch.optim.Adam(norms(model), lr=1e-3)

    def step(x: Tensor) -> Tensor:
        z = model(x)
        entropy(z).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return z

    return step


def cotta(model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    norms(model)
    teacher, anchor = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).requires_grad_(False)
    model.requires_grad_(True)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer, view = torch.optim.Adam(model.parameters(), lr=1e-3), jitter("edge", True, side)

    def step(x: Tensor) -> Tensor:
        z = model(x)
        with torch.no_grad():
            confidence = anchor(x).softmax(1).max(1)[0].mean()
            target = teacher(x)
            if confidence < 0.92:
                target = torch.stack([teacher(view(x)) for _ in range(32)]).mean(0)
        loss = -(target.softmax(1) * z.log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), model.parameters(), strict=True):
                old.data[:] = 0.999 * old + 0.001 * new
            for name, p in model.named_parameters():
                mask = (torch.rand(p.shape, device=p.device) < 0.01).float()
                p.data = start[name] * mask + p * (1.0 - mask)
        return target

    return step


def roid(model: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    trained = norms(model)
    start = [p.detach().clone() for p in trained]
    optimizer, view = torch.optim.Adam(trained, lr=1e-3), jitter("reflect", False, side)
    state: dict[str, Tensor] = {}

    def step(x: Tensor) -> Tensor:
        z = model(x)
        with torch.no_grad():
            p = z.softmax(1)
            prior = state.get("prior", torch.full_like(p[0], 1 / p.shape[1]))
            diverse = 1 - F.cosine_similarity(prior.unsqueeze(0), p)
            diverse = (diverse - diverse.min()) / (diverse.max() - diverse.min())
            keep = diverse >= diverse.mean()
            certain = -entropy(z)
            certain = (certain - certain.min()) / (certain.max() - certain.min())
            weight = torch.exp(diverse * certain * 3.0)
            weight[~keep] = 0.0
            state["prior"] = 0.9 * prior + 0.1 * p.mean(0)
        cut = z.softmax(1).clamp(max=0.99)
        loss = (-(cut * torch.log(cut / (1 - cut) + 1e-5)).sum(1)[keep] * weight[keep]).sum() / len(x)
        z2 = model(view(x[keep]))
        a = -(z[keep].softmax(1) * z2.log_softmax(1)).sum(1)
        b = -(z2.softmax(1) * z[keep].log_softmax(1)).sum(1)
        loss = loss + ((0.5 * a + 0.5 * b) * weight[keep]).sum() / len(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for q, s in zip(trained, start, strict=True):
                q.data = 0.99 * q.data + 0.01 * s
            share = z.softmax(1).mean(0)
            smooth = max(1 / z.shape[0], 1 / z.shape[1]) / share.max()
            return z * (share + smooth) / (1 + smooth * z.shape[1])

    return step


PROCEDURES: dict[str, Callable[[nn.Module, int], Callable[[Tensor], Tensor]]] = {"tent": tent, "cotta": cotta, "roid": roid}
