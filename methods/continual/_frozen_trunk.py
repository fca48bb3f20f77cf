"""What the methods with a frozen trunk share: a head that grows, a trunk in eval mode, passes over the data, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_bench import AdapterSet, Batch, Experience, LabelSpace, Method, UserError, batches
from cl_bench.heads import Head, LinearHead


class FrozenTrunk(Method):
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

    def train(self, mode: bool = True) -> FrozenTrunk:
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
        """Parameter groups: the adapters at ``lr``, the head at ``head_lr`` (None: the same; 0 holds it still)."""
        body = [p for p in self.adapters.parameters() if p.requires_grad]
        head = {"params": list(self.head.parameters()), "lr": self.lr if head_lr is None else head_lr}
        return [{"params": body, "lr": self.lr}, head]

    def sgd(self, parameters: Any = None, weight_decay: float = 5e-4) -> dict[str, Any]:
        """The prototype and adapter papers' optimizer: SGD with momentum 0.9, its rate a cosine to 0 that falls after
        each epoch (APER, EASE, RanPAC, MOS and SEMA step their schedules once per epoch)."""
        parameters = self.trained() if parameters is None else parameters
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=weight_decay)
        return cosine(optimizer, self.epochs, "epoch")

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


def planned(tasks: int, experiences: int) -> int:
    """For how many experiences a method divides what it has: ``tasks``, or all ``experiences`` where that is 0.

    Raises:
        UserError: if there are more experiences than that.
    """
    if tasks and experiences > tasks:
        raise UserError(f"tasks={tasks} but there are {experiences} experiences or more; give their number, or tasks=0 for "
                        "as many as the scenario has.")
    return tasks or experiences


def cosine(optimizer: torch.optim.Optimizer, length: int, interval: Literal["step", "epoch"] = "step") -> dict[str, Any]:
    """Lightning's form of an optimizer whose rate falls as a cosine to 0 over ``length`` steps or epochs."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, length))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def truncated_cosine(optimizer: torch.optim.Optimizer, epochs: int, released: bool = True) -> dict[str, Any]:
    """CODA-Prompt's and InfLoRA's schedule over the epochs, see :func:`truncated_factors`."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _Listed(truncated_factors(epochs, released)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def truncated_factors(epochs: int, released: bool = True) -> list[float]:
    """The rate's factor in each epoch: ``f(e) = cos(99 pi e / (200 (K - 1)))``, a cosine that stops short of 0.

    ``released`` is what both repositories do (utils/schedulers.py, CosineSchedule): the first call of ``step`` answers for
    epoch 0 again, so the factors are f(0), f(0), f(1), ..., f(K - 2). Without it they are f(0), ..., f(K - 1).
    """
    factors = [math.cos(99 * math.pi * e / (200 * max(1, epochs - 1))) for e in range(max(1, epochs))]
    return [factors[0], *factors[:-1]] if released else factors


class _Listed:
    def __init__(self, factors: list[float]) -> None:
        self.factors = factors

    def __call__(self, epoch: int) -> float:
        return self.factors[min(epoch, len(self.factors) - 1)]
