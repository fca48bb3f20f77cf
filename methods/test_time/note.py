"""NOTE: norm layers that correct themselves per image, and a memory balanced over predicted classes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_bench import Backbone, Experience
from cl_bench.adaptation import InstanceAwareNorm, Learning, TestTimeMethod, convert, entropy, norm_parameters
from cl_bench.ranges import Amount, Count, Positive, Share

from .._differs import Differs

__all__ = ["NOTE"]


class NOTE(TestTimeMethod):
    """Instance-aware batch normalisation, and entropy minimisation on a prediction-balanced reservoir of test images.

    Gong et al., "NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation", NeurIPS 2022
    (TaesikGong/NOTE). Every image is answered, without its batch, before it can be learned from; a step follows every
    ``frequency`` images. Deviation: the authors train the source model with these norm layers; here a deployed
    BatchNorm model is converted, which costs some accuracy at first. Their extra step at the end of a data set whose size
    is no multiple of ``frequency`` is left out, since a stream has no known end; their entropy is also divided by the
    number of classes, which Adam does not see. LayerNorm and GroupNorm networks keep
    their layers and have their affine parameters trained, as TTA-lib does for RoTTA; the original covers BatchNorm.

    Args:
        lr: 1e-4 with Adam on CIFAR and ImageNet.
        k: how many deviations of the sampling noise an image's own statistics must differ by to count.
        bn_momentum: weight of the memory's statistics in the running ones at every step.
        memory: capacity.
        frequency: images between steps.
        temperature: of the softmax in the entropy.
    """

    paper: ClassVar[str] = "Gong et al., NeurIPS 2022"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The entropy is a mean over images and classes, so smaller by the number of classes than the paper's, with "
                "1e-6 in its logarithm; Adam does not see the factor.", "TaesikGong/NOTE@a714a2a2 utils/loss_functions.py:16",
                table="released code"),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-4,
        optimizer: Literal["adam", "sgd"] = "adam",
        k: Amount = 4.0,
        bn_momentum: Share = 0.01,
        memory: Count = 64,
        frequency: Count = 64,
        temperature: Positive = 1.0,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, lr=lr, optimizer=optimizer, **learning)
        self.k, self.bn_momentum, self.memory = k, bn_momentum, memory
        self.frequency, self.temperature = frequency, temperature

    def build(self, source: Experience | None) -> None:
        convert(self.model, lambda norm: InstanceAwareNorm(norm, self.k, self.bn_momentum))
        self.optimise(norm_parameters(self.model))
        self.narrowed()

    def narrowed(self) -> None:
        self.bank = torch.zeros(0)
        self.owners: list[int] = []  # slot -> predicted class
        self.met = [0] * self.model.classes  # predictions of each class so far
        self.arrived = 0

    def adapt(self, x: Tensor) -> Tensor:
        answers = []
        while len(x):
            # answers between two steps do not depend on each other, so they are computed together
            part, x = x.tensor_split([self.frequency - self.arrived % self.frequency])
            z = self.outputs(part)
            self.remember(part, z)
            answers.append(z)
            self.arrived += len(part)
            if self.arrived % self.frequency == 0 and self.owners:
                self.update()
        return torch.cat(answers)

    def remember(self, x: Tensor, z: Tensor) -> None:
        """Offer every image to the reservoir: a class that fills most of it competes with its own images only."""
        entered: dict[int, int] = {}
        for row, (label, ok) in enumerate(zip(z.argmax(1).tolist(), z.isfinite().all(1).tolist(), strict=True)):
            if ok:
                self.met[label] += 1
                slot = self.slot(label)
                if slot is not None:
                    self.owners[slot : slot + 1] = [label]
                    entered[slot] = row
        if entered:
            if len(self.bank) == 0:
                self.bank = x.new_zeros(self.memory, *x.shape[1:])
            slots, rows = (torch.tensor(list(v), device=x.device) for v in (entered.keys(), entered.values()))
            self.bank[slots] = x[rows].detach()

    def slot(self, label: int) -> int | None:
        """Where an image of a predicted class goes: a free slot, one of the largest class, one of its own, or none."""
        if len(self.owners) < self.memory:
            return len(self.owners)
        sizes = [0] * self.model.classes
        for owner in self.owners:
            sizes[owner] += 1
        largest = [c for c, n in enumerate(sizes) if n == max(sizes)]
        if label not in largest:
            label = largest[self.draw(len(largest))]
        elif float(torch.rand((), generator=self.rng.on("cpu"))) > sizes[label] / self.met[label]:
            return None
        own = [k for k, owner in enumerate(self.owners) if owner == label]
        return own[self.draw(len(own))]

    def draw(self, below: int) -> int:
        """A uniform number in 0 .. below - 1."""
        return int(torch.randint(below, (), generator=self.rng.on("cpu")))

    def update(self) -> None:
        """One step of entropy minimisation on the memory, whose statistics enter the running ones."""
        self.track(True)
        z = self.model(self.bank[: len(self.owners)])
        self.track(False)
        self.step(entropy(z / self.temperature).mean())

    def track(self, on: bool) -> None:
        """Whether forward passes use and move the batch's statistics."""
        for layer in self.model.modules():
            if isinstance(layer, InstanceAwareNorm):
                layer.train(on)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x)
