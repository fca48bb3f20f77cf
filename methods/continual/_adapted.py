"""What the methods with a frozen trunk share: a head that grows, a trunk in eval mode, passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench import AdapterSet, Batch, Experience, LabelSpace, Method, batches
from cl_bench.heads import Head, LinearHead


class Adapted(Method):
    """A method on a frozen backbone with adapters in ``self.adapters``.

    The trunk stays in eval mode while fitting: it is a fixed function, so its batch statistics and drop-path must not
    move; adapters follow the mode.
    """

    adapters: AdapterSet
    total_steps: int = 0

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.total_steps = self.steps(exp)

    def make_head(self) -> Head:
        """A linear head that grows, whatever classifier came with the weights."""
        return LinearHead(self.backbone.num_features)

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if mode:
            self.backbone.eval()
            if "adapters" in self._modules:  # not there yet while being built, nor in methods without adapters
                self.adapters.train()
        return self

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer is to move."""
        return [p for p in self.parameters() if p.requires_grad]

    def rates(self, head_lr: float | None) -> list[dict[str, Any]]:
        """Parameter groups: the adapters at ``lr``, the head at ``head_lr`` (None: the same)."""
        body = [p for p in self.adapters.parameters() if p.requires_grad]
        return [{"params": body, "lr": self.lr}, {"params": list(self.head.parameters()), "lr": head_lr or self.lr}]

    def sgd(self, parameters: Any = None, weight_decay: float = 5e-4) -> dict[str, Any]:
        """The prototype and adapter papers' optimizer: SGD with momentum 0.9, its rate a cosine to 0."""
        parameters = self.trained() if parameters is None else parameters
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=weight_decay)
        return cosine(optimizer, self.total_steps)

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.predict(x, space)

    def steps(self, exp: Experience) -> int:
        """Optimizer steps that ``fit`` will make on this experience."""
        n = len(self.training_data(exp))  # type: ignore[arg-type]
        return self.epochs_for(exp) * math.ceil(n / self.batch_size)

    def plain(self, exp: Experience, size: int = 128) -> Iterator[Batch]:
        """The experience once, in order and without augmentation: for statistics and prototypes."""
        return batches(exp.data, size, device=self.device)

    def shuffled(self, exp: Experience, size: int) -> Iterator[Batch]:
        """The experience once, shuffled and augmented by the method's own generators."""
        return batches(
            exp.data,
            size,
            shuffle=True,
            generator=self.rng.on("cpu"),
            device=self.device,
            augment=exp.augment,
            augment_generator=self.rng.on(self.device),
        )

    @torch.enable_grad()
    def fit_loop(
        self,
        exp: Experience,
        parameters: list[nn.Parameter],
        loss: Callable[[Batch], Tensor],
        lr: float,
        epochs: int,
        weight_decay: float,
    ) -> None:
        """A plain loop for what ``fit`` does not cover: SGD with momentum 0.9, its rate a cosine over the epochs."""
        self.train()
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
        schedule = cosine(optimizer, epochs)["lr_scheduler"]["scheduler"]
        for _ in range(epochs):
            for batch in self.shuffled(exp, self.batch_size):
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
            schedule.step()

    @torch.no_grad()
    def embed(self, exp: Experience) -> tuple[Tensor, Tensor]:
        """Features (n, d) and global labels (n,) of the experience, in eval mode."""
        mode = self.training
        self.eval()
        pairs = [(self.backbone.forward_features(b.x), b.y) for b in self.plain(exp)]
        self.train(mode)
        return torch.cat([f for f, _ in pairs]), torch.cat([y for _, y in pairs])


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """Lightning's form of an optimizer whose rate falls as a cosine to 0 over ``steps`` steps."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def truncated_cosine(optimizer: torch.optim.Optimizer, epochs: int) -> dict[str, Any]:
    """CODA-Prompt's schedule, factor ``cos(99 pi e / (200 (K - 1)))`` in epoch e of K: a cosine that stops short of 0."""
    factors = [math.cos(99 * math.pi * e / (200 * max(1, epochs - 1))) for e in range(max(1, epochs) + 1)]
    schedule = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, _Ratio(factors))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class _Ratio:
    def __init__(self, factors: list[float]) -> None:
        self.factors = factors

    def __call__(self, epoch: int) -> float:
        before, now = self.factors[min(epoch, len(self.factors)) - 1], self.factors[min(epoch, len(self.factors) - 1)]
        return now / before
