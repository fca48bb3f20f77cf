"""Tiny networks and data in double precision, and our side of a comparison: a method driven step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, LabelSpace, Method, TensorData
from cl_bench.backbones import Preprocess
from cl_bench.registry import find
from cl_bench.rng import Rng

from .shipped import STATE

WIDTH, FEATURES, IMAGES, STEPS = 12, 6, 24, 6


def trunk() -> nn.Sequential:
    """A two-layer network of vectors (N, 12)."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, FEATURES), nn.Tanh()).double()


def experience(classes: tuple[int, ...], seed: int) -> Experience:
    """Vectors whose mean tells their class; labels in random order."""
    g = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes)[torch.randint(len(classes), (IMAGES,), generator=g)]
    means = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = means[y] + torch.randn(IMAGES, WIDTH, generator=g, dtype=torch.float64)
    return Experience(f"task {classes}", LabelSpace(classes), TensorData(x, y))


def made(name: str, model: nn.Module | None = None, num_features: int = FEATURES, **kw: Any) -> Method:
    """A registered method in double precision on the tiny network."""
    torch.manual_seed(5)
    base = Backbone(model if model is not None else trunk(), num_features=num_features, preprocess=Preprocess(None))
    method = find("cl_bench.methods", name)(base, **kw).double()
    method.rng = Rng(0)
    return method


def cut(exp: Experience, size: int) -> list[Batch]:
    """The experience in batches, in order."""
    x, y = exp.data.x, exp.data.y  # type: ignore[attr-defined]
    return [Batch(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)]


def ready(method: Method, exp: Experience, whole: LabelSpace | None = None) -> None:
    """``begin``, with a head for the ``whole`` label space from the start where one is given."""
    if whole is not None and not len(method.head.space):
        torch.manual_seed(7)
        method.head.grow(whole)
    torch.manual_seed(8)
    method.train()
    method.begin(exp)
    method.double()


def trained(method: Method, batches: Sequence[Batch], optimizer: torch.optim.Optimizer | None = None) -> None:
    """The steps that Lightning's loop takes; ``optimizer`` in place of the method's own."""
    own: Any = optimizer if optimizer is not None else method.configure_optimizers()
    if isinstance(own, dict):
        own = own["optimizer"]
    for k, batch in enumerate(batches):
        loss = method.training_step(batch, k)
        own.zero_grad()
        loss.backward()
        method.on_after_backward()
        method.on_before_optimizer_step(own)
        own.step()
        method.on_train_batch_end(loss, batch, k)


def sgd(method: Method, lr: float) -> torch.optim.Optimizer:
    """Plain SGD on what the method trains."""
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)


class Plain(nn.Module):
    """The same network as one official code has it: a trunk and a linear ``classifier`` with a row per class."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.classifier = body, nn.Linear(features, classes).double()
        self.columns: slice | None = None  # the only columns that answer; None: all
        self.device = torch.device("cpu")

    def forward(self, x: Tensor, returnt: str = "out") -> Tensor:
        features = self.body(x)
        return features if returnt == "features" else self.answer(features)

    def answer(self, features: Tensor) -> Tensor:
        logits = self.classifier(features)
        return logits if self.columns is None else logits[:, self.columns]


def difference(ours: Iterator[Tensor] | Sequence[Tensor], theirs: Iterator[Tensor] | Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors; of a head that grew, the rows that there are."""
    if STATE.on:
        STATE.seen(list(ours), list(theirs))
        return 0.0
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        b = b[: len(a)] if a.shape != b.shape else b
        if a.shape != b.shape:
            raise ValueError(f"{tuple(a.shape)} is compared with {tuple(b.shape)}")
        most = max(most, float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0)
    return most


def synchronised(found: Sequence[Any]) -> Callable[..., Any]:
    """A stand-in for a random draw that hands out ``found``, one after another."""
    left = iter(found)
    return lambda *args, **kw: next(left)
