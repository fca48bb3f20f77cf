"""Streams that are not shuffled: correlated, shifting and long-tailed labels, and domains that change at will."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np

from cl_bench import Experience, Scenario, TestSet, UserError
from cl_bench.data.tensor import labels_of
from cl_bench.ranges import Count, Positive, Range, Seed, Size, Whole

from . import _draws
from ._data import numbers, pick, view
from ._wrapper import StreamWrapper

__all__ = ["ContinualDynamicChange", "Correlated", "LabelShift", "LongTailed"]

Ratio = Annotated[float, Range(1, 1e12)]


class Correlated(StreamWrapper):
    """Neighbouring images share a class, as frames of a video do: non-i.i.d. test-time adaptation.

    Three published generators, which are not interchangeable; within each domain every image appears once.

    Args:
        of: what streams.
        generator: "rotta" = practical TTA (Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023):
            min(C, 100) slots per domain, classes in file order; "note" = Dirichlet chunks (Gong et al., NeurIPS 2022)
            as in TTA-lib; "sorted" = class after class (ROID, Marsden et al., WACV 2024).
        delta: Dirichlet concentration; smaller = more correlated. 0.1 is RoTTA's gamma for CIFAR-10-C (PeTTA uses 0.01
            for CIFAR-100-C; ImageNet-C mixed and correlated 0.01). Unused by "sorted".
        seed: of the draws.

    RoTTA's own tables use batches of 64 and the order ``corruptions="rotta"``.
    """

    paper: ClassVar[str] = "Yuan et al., CVPR 2023; Gong et al., NeurIPS 2022"
    draws = True

    def __init__(
        self,
        of: Scenario | None = None,
        generator: Literal["rotta", "note", "sorted"] = "rotta",
        delta: Positive = 0.1,
        seed: Seed = 0,
    ) -> None:
        if generator not in ("rotta", "note", "sorted"):
            raise UserError(f"generator {generator!r}: use rotta, note or sorted.")
        super().__init__(of)
        self.generator, self.delta, self.seed = generator, delta, seed

    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        return [view(t, self._rows(_labels(t), visit, k), self._shelf) for k, t in enumerate(tests)]

    def _rows(self, y: _draws.Rows, visit: int, k: int) -> _draws.Rows:
        rng = numbers("correlated", self.generator, self.seed, visit, k)
        if self.generator == "note":
            return _draws.note_chunks(y, self.delta, rng)
        return _draws.rotta_slots(y, self.delta, rng) if self.generator == "rotta" else _draws.sorted_by_class(y)

    def correlation(self) -> dict[str, float]:
        """The realised correlation of the first domain: distinct classes per batch and agreement of neighbours."""
        return _draws.correlation(_labels(self.stream()[0]), self.test_batch_size)


class ContinualDynamicChange(StreamWrapper):
    """Domains change back and forth at random times, each batch of one domain: CDC.

    Zhang et al., "DPCore: Dynamic Prompt Coreset for Continual Test-Time Adaptation", ICML 2025. Images of a domain
    come in its own order, each once. A domain's blocks are named "fog", "fog#2", ... and share the domain "fog".
    Deviation: ceil(N / B) batches per domain; the official N // B + 1 counts an empty batch when B divides N.

    Args:
        of: what streams.
        generator: "dirichlet" spreads each domain's batches over ``slots`` by Dir(delta), each slot visiting its
            domains in random order (DPCore's default); "multinomial" sends blocks of random length (also ReservoirTTA).
        delta, slots: of the Dirichlet form.
        seed: of the draws.
    """

    paper: ClassVar[str] = "Zhang et al., ICML 2025"
    draws = True

    def __init__(
        self,
        of: Scenario | None = None,
        generator: Literal["dirichlet", "multinomial"] = "dirichlet",
        delta: Positive = 1.0,
        slots: Size = 3,
        seed: Seed = 0,
    ) -> None:
        if generator not in ("dirichlet", "multinomial"):
            raise UserError(f"generator {generator!r}: use dirichlet or multinomial.")
        super().__init__(of)
        self.generator, self.delta, self.slots, self.seed = generator, delta, slots, seed

    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        rng = numbers("dynamic change", self.generator, self.seed, visit)
        sizes = [len(t.data) for t in tests]  # type: ignore[arg-type]
        size = [t.batch_size or self.test_batch_size for t in tests]
        batches = [-(-n // b) for n, b in zip(sizes, size, strict=True)]
        if self.generator == "dirichlet":
            blocks = _draws.change_by_slots(batches, self.delta, self.slots, rng)
        else:
            blocks = _draws.change_by_blocks(batches, rng)
        sent, seen, out = [0] * len(tests), [0] * len(tests), []
        for k, count in blocks:
            rows = np.arange(sent[k] * size[k], min((sent[k] + count) * size[k], sizes[k]))
            sent[k] += count
            seen[k] += 1
            name = tests[k].name + (f"#{seen[k]}" if seen[k] > 1 else "")
            out.append(view(tests[k], rows, self._shelf, name))
        return out


class LabelShift(StreamWrapper):
    """One class dominates for a while, then another: online label shift.

    Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World" (SAR), ICLR 2023. The stream of each domain
    is drawn with replacement: ``steps`` x ``per_step`` images.

    Args:
        of: what streams; SAR resets before each corruption (wrap in ``PerDomain``).
        imbalance_ratio: of the major class to each other: 1, 1000, 2000, 3000, 4000, 5000 or 500000 ("infinity").
        steps: changes of the major class per domain; 0 = one per class, as on ImageNet-C (1,000 steps, 100,000 images).
        per_step: images per step.
        seed: of the draws.
    """

    paper: ClassVar[str] = "Niu et al., ICLR 2023"
    draws = True

    def __init__(
        self,
        of: Scenario | None = None,
        imbalance_ratio: Ratio = 500_000.0,
        steps: Whole = 0,
        per_step: Count = 100,
        seed: Seed = 0,
    ) -> None:
        super().__init__(of)
        self.imbalance_ratio, self.steps, self.per_step, self.seed = imbalance_ratio, steps, per_step, seed

    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        out = []
        for k, test in enumerate(tests):
            rng = numbers("label shift", self.seed, visit, k)
            rows = _draws.label_shift(_labels(test), self.imbalance_ratio, rng, self.steps, self.per_step)
            out.append(view(test, rows, self._shelf))
        return out


class LongTailed(StreamWrapper):
    """The source is long-tailed; the stream has the same tail, no tail, or the reversed one.

    Park et al., "Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts", ICCV 2023.

    Args:
        of: what streams.
        direction: of the test stream: "forward" = the source's classes are frequent, "uniform", "backward" = the
            source's rare classes are frequent.
        imbalance: rho of the test stream: the most frequent class has rho times the images of the rarest.
        source_imbalance: rho of the source's training data; 1 leaves the source as it is.
        seed: of the draws.
    """

    paper: ClassVar[str] = "Park et al., ICCV 2023"
    draws = True

    def __init__(
        self,
        of: Scenario | None = None,
        direction: Literal["forward", "uniform", "backward"] = "backward",
        imbalance: Ratio = 100.0,
        source_imbalance: Ratio = 100.0,
        seed: Seed = 0,
    ) -> None:
        if direction not in ("forward", "uniform", "backward"):
            raise UserError(f"direction {direction!r}: use forward, uniform or backward.")
        super().__init__(of)
        self.direction, self.imbalance, self.source_imbalance = direction, imbalance, source_imbalance
        self.seed = seed

    def rearrange(self, tests: Sequence[TestSet], visit: int) -> Sequence[TestSet]:
        out = []
        for k, test in enumerate(tests):
            rng = numbers("long tail", self.seed, visit, k)
            rows = _draws.long_tail(_labels(test), self.imbalance, self.direction, rng)
            out.append(view(test, rows, self._shelf))
        return out

    @property
    def source(self) -> Experience | None:
        whole = self.of.source
        if whole is None or self.source_imbalance == 1:
            return whole
        y = labels_of(whole.data).numpy()
        # The source keeps one draw whatever the stream's seed: runs over seeds share their source model.
        rows = _draws.long_tail(y, self.source_imbalance, "forward", numbers("long-tailed source"))
        return Experience(whole.name, whole.space, pick([whole.data], np.sort(rows)), whole.augment)


def _labels(test: TestSet) -> _draws.Rows:
    return labels_of(test.data).numpy()
