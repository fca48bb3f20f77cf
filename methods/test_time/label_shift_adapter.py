"""Label shift adapter: a small network, trained on the source, that bends the classifier to the stream's labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import Amount, Backbone, Count, Experience, Share, Size, UserError, Whole, batches
from cl_bench.adaptation import Learning, TestTimeMethod
from cl_bench.heads import columns_of

from ._adapted_head import AdaptedHead, Generator, imbalance
from .tent import Tent

__all__ = ["LabelShiftAdapter"]


class LabelShiftAdapter(TestTimeMethod):
    """Bends the classifier of any test-time method to its running estimate of the stream's label distribution.

    Park et al., "Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts", ICCV 2023. No official
    code. **Ours**, because the paper leaves it open: the degree of imbalance m(pi) = (E_pi[ln pi_s] - E_u[ln pi_s]) /
    (E_pi_s[ln pi_s] - E_u[ln pi_s]), clipped to [-1.5, 1.5] (1 at the source's distribution pi_s, 0 at uniform u); the
    generator's size; dW of low rank beyond a million entries; Adam 1e-3 for 10 passes over source features; the
    estimate's rate 0.1 and its start at pi_s. A source that its labels do not tell from a balanced one has no degree:
    the adapter then stays the identity.

    Args:
        host: the method that adapts, as a class or a function of the backbone; TENT by default. Its teachers and
            anchors are bent as well.
        rate: weight of a batch's mean prediction in the estimate of the label distribution.
        hidden: width of the generator.
        rank: of dW where it would have more than a million entries.
        adapter_lr, adapter_epochs, adapter_batch: training of the generator on source features, before the stream.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    paper: ClassVar[str] = "Park et al., ICCV 2023"

    def __init__(
        self, backbone: Backbone, *, host: Callable[[Backbone], TestTimeMethod] = Tent, rate: Share = 0.1,
        hidden: Size = 64, rank: Size = 8, adapter_lr: Amount = 1e-3, adapter_epochs: Whole = 10, adapter_batch: Count = 128,
        **learning: Learning,
    ) -> None:
        super().__init__(backbone, **learning)
        self.host = host(backbone)
        if not isinstance(self.host, TestTimeMethod):
            raise UserError(f"host must be a test-time method, not {type(self.host).__name__}.")
        self.host.head = self.head
        self.rate, self.hidden, self.rank = rate, hidden, rank
        self.adapter_lr, self.adapter_epochs, self.adapter_batch = adapter_lr, adapter_epochs, adapter_batch

    # ------------------------------------------------------------------ before the stream
    def build(self, source: Experience | None) -> None:
        assert source is not None
        features, labels = self.source_features(source)
        counts = labels.bincount(minlength=self.model.classes).to(features)
        self.labelled, self.prior = counts, (counts / counts.sum()).clamp_min(0.1 / len(labels))
        self.estimate: Tensor = self.known()
        self.generator = Generator(features.shape[1], self.model.classes, self.hidden, self.rank, self.rng).to(features)
        if self.degree(self.estimate) is not None:
            self.train_generator(features, labels)
        self.generator.requires_grad_(False)
        self.host.rng, self.host.head = self.rng, AdaptedHead(self.head)
        self.host.deploy(source, self.stream)
        self.bend()

    @torch.no_grad()
    def source_features(self, source: Experience) -> tuple[Tensor, Tensor]:
        """Features (n, d) of the source in evaluation mode, and columns (n,) of its labels."""
        parts = [
            (self.model.features(x), columns_of(y, self.model.space))
            for x, y in batches(source.data, self.adapter_batch, device=self.model.where)
        ]
        return torch.cat([f for f, _ in parts]), torch.cat([y for _, y in parts])

    def train_generator(self, features: Tensor, labels: Tensor) -> None:
        """Generalised logit adjustment: ask for the source's, uniform or reversed labels, and correct by tau ln pi_s."""
        prior = self.estimate
        rising = prior.argsort()
        reverse = prior.clone()
        reverse[rising] = prior[rising].flip(0)
        degrees = [self.degree(pi) for pi in (prior, torch.full_like(prior, 1 / len(prior)), reverse)]  # tau = 0, 1, 2
        opt = torch.optim.Adam(self.generator.parameters(), lr=self.adapter_lr)
        draw = self.rng.on("cpu")
        for _ in range(self.adapter_epochs):
            for rows in torch.randperm(len(labels), generator=draw).split(self.adapter_batch):
                tau = int(torch.randint(3, (), generator=draw))
                gamma, beta, dw, db = self.generator(degrees[tau])
                h = gamma * features[rows] + beta
                z = self.model.classify(h) + h @ dw + db
                loss = F.cross_entropy(z + tau * prior.log(), labels[rows])
                opt.zero_grad()
                loss.backward()
                opt.step()

    def degree(self, pi: Tensor) -> Tensor | None:
        """m(pi), clipped; None where the source is balanced."""
        return imbalance(pi, self.known(), self.labelled[self.columns()].sum())

    # ------------------------------------------------------------------ in the stream
    def adapt(self, x: Tensor) -> Tensor:
        z = self.host.predict(x, self.model.space)
        p = z.softmax(1)
        p = p[p.isfinite().all(1)]
        if len(p):
            self.estimate = (1 - self.rate) * self.estimate + self.rate * p.mean(0)
        self.bend()
        return z

    @torch.no_grad()
    def bend(self) -> None:
        """Set every copy of the adapted head for the estimate at hand."""
        degree = self.degree(self.estimate)
        if degree is not None:
            parts = self.generator(degree)
            for module in self.host.modules():
                if isinstance(module, AdaptedHead):
                    module.bend(parts)

    def outputs(self, x: Tensor) -> Tensor:
        return self.host.answer(x, self.model.space)

    def known(self) -> Tensor:
        """The source's label distribution over the classes that are asked for."""
        prior = self.prior[self.columns()]
        return prior / prior.sum()

    def columns(self) -> list[int]:
        return [self.model.head.space.ids.index(i) for i in self.model.space.ids]

    def narrowed(self) -> None:
        self.estimate = self.known()
        if self.host._built:
            self.host.narrowed()

    def withdraw(self) -> None:
        super().withdraw()
        self.host.withdraw()
        self.host.head = self.head

    def counters(self) -> dict[str, int | float]:
        return {**self.host.counters(), "batches": self.counts["batches"]}
