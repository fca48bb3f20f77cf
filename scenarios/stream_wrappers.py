"""Ways in which a test stream can arrive: wrappers around any scenario that streams, in any combination.

``Recurring(Correlated(DigitsC()))`` is a scenario; so is ``SmallBatch(PerDomain(CIFAR10C(...)), test_batch_size=1)``.
Without ``of`` a wrapper wraps Digits-C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np

from cl_bench import Scenario, TestSet, UserError
from cl_bench.ranges import Count, Range, Seed
from cl_bench.types import LabelSpace

from ._data import numbers, pick, view
from ._wrapper import StreamWrapper, at_visit, coming

__all__ = [
    "ConstantSpeed", "Continual", "Episodic", "Gradual", "LabelDelay", "Mixed", "PerDomain", "Recurring",
    "ReturnToSource", "Shuffled", "SmallBatch",
]  # fmt: skip

Rearranged = Sequence[TestSet]
Speed = Annotated[float, Range(0, 1, above=True)]


class Continual(StreamWrapper):
    """Domain after domain, no reset, no boundary revealed: the default protocol, said aloud.

    Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022.
    """

    paper: ClassVar[str] = "Wang et al., CVPR 2022"
    reset = "never"


class PerDomain(StreamWrapper):
    """Back to the deployed model before every domain: the protocol of TENT's, SAR's and DeYO's tables.

    It uses the boundaries of the stream, which a deployed model would not know.
    """

    paper: ClassVar[str] = "Wang et al., ICLR 2021"
    reset = "domain"


class Episodic(StreamWrapper):
    """Back to the deployed model before every batch: nothing is carried over, as in MEMO and TPT."""

    paper: ClassVar[str] = "Zhang et al., NeurIPS 2022"
    reset = "batch"


class Shuffled(StreamWrapper):
    """The images of each domain in random order.

    Args:
        of: what streams.
        seed: of the orders.
        same: one order for all domains of equal size, as TTA-lib draws it (it seeds anew for every domain, so that
            batch k holds the same base images under every corruption); otherwise one order per domain.
    """

    draws = True

    def __init__(self, of: Scenario | None = None, seed: Seed = 0, same: bool = False) -> None:
        super().__init__(of)
        self.seed, self.same = seed, same

    def rearrange(self, tests: Rearranged, visit: int) -> Rearranged:
        rngs = [numbers("shuffled", self.seed, visit, 0 if self.same else k) for k in range(len(tests))]
        return [view(t, rng.permutation(_size(t)), self._shelf) for t, rng in zip(tests, rngs, strict=True)]


class Gradual(StreamWrapper):
    """Severities rise and fall, 1 2 3 4 5 4 3 2 1, within every corruption.

    The domain of a segment is "fog:3"; the error at full severity is that of the domains ":5".

    Args:
        of: a stream of corruptions.
        convention: "every" ramps up and down in every domain (TTA-lib, RoTTA; 135 segments of 15 corruptions);
            "cotta" begins the stream at severity 5: 5 4 3 2 1 in the first domain, nine segments in each later one
            (131; CoTTA, Wang et al., CVPR 2022).

    Raises:
        UserError: if what is wrapped has no severities.
    """

    paper: ClassVar[str] = "Wang et al., CVPR 2022"

    def __init__(self, of: Scenario | None = None, convention: Literal["every", "cotta"] = "every") -> None:
        super().__init__(of)
        if not self.of.severities:
            raise UserError(f"{type(self.of).__name__} has no severities; a gradual stream needs corruptions.")
        self.convention = convention

    @property
    def severities(self) -> tuple[int, ...]:
        return ()

    def drawn(self, visit: int) -> Rearranged:
        by_severity = {s: at_visit(self.of, s, visit) for s in (1, 2, 3, 4, 5)}
        segments: list[TestSet] = []
        for k in range(len(by_severity[5])):
            falling = (5, 4, 3, 2, 1)
            ramp = falling if k == 0 and self.convention == "cotta" else (1, 2, 3, 4, *falling)
            for step, severity in enumerate(ramp):
                test = by_severity[severity][k]
                again = "@2" if severity in ramp[:step] else ""
                domain = f"{test.domain or test.name}:{severity}"
                segments.append(replace(test, name=f"{test.name}:{severity}{again}", domain=domain))
        return tuple(segments)

    def at(self, severity: int, visit: int = 1) -> Rearranged:
        raise UserError("a gradual stream has all severities; wrap the stream inside it instead.")


class Recurring(StreamWrapper):
    """The whole stream again and again without reset; does a method drift?

    Hoang et al., "Persistent Test-time Adaptation in Recurring Testing Scenarios" (PeTTA), NeurIPS 2024: 20 visits, the
    error of each visit and the last minus the first.

    Args:
        of: what streams; what it draws (a correlated order) is drawn anew for every visit.
        visits: how often.
        redraw: where ``of`` draws nothing itself: a new order of each domain's images per visit, instead of the same.
        seed: of these orders.
    """

    paper: ClassVar[str] = "Hoang et al., NeurIPS 2024"

    def __init__(self, of: Scenario | None = None, visits: Count = 20, redraw: bool = True, seed: Seed = 0) -> None:
        super().__init__(of)
        self.visits, self.redraw, self.seed = visits, redraw, seed

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether another coming of all visits has other orders."""
        return self.redraw or self.of.draws

    def drawn(self, visit: int) -> Rearranged:
        if visit not in self._drawn:
            inner = self._inner()
            self._drawn[visit] = self._visits(visit, lambda number: coming(inner, number))
        return self._drawn[visit]

    def at(self, severity: int, visit: int = 1) -> Rearranged:
        inner = self._inner()
        return self._visits(visit, lambda number: at_visit(inner, severity, number))

    def _inner(self) -> Scenario:
        return Shuffled(self.of, self.seed) if self.redraw and not self.of.draws else self.of

    def _visits(self, visit: int, come: Callable[[int], Rearranged]) -> tuple[TestSet, ...]:
        first = (visit - 1) * self.visits  # a recurring stream inside another goes on counting
        return tuple(_visited(t, k) for k in range(1, self.visits + 1) for t in come(first + k))


class Mixed(StreamWrapper):
    """All domains shuffled into one stream: every batch holds many shifts at once.

    Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World" (SAR), ICLR 2023; "mixed domains" of ROID
    (Marsden et al., WACV 2024). Errors are still kept per domain.
    """

    paper: ClassVar[str] = "Niu et al., ICLR 2023"
    draws = True

    def __init__(self, of: Scenario | None = None, seed: Seed = 0) -> None:
        super().__init__(of)
        self.seed = seed

    def rearrange(self, tests: Rearranged, visit: int) -> Rearranged:
        names: list[str] = []
        codes: list[np.ndarray] = []
        space = LabelSpace()
        for test in tests:
            space = space | test.space
            own, rows = test.rows or ((test.domain or test.name,), np.zeros(_size(test), np.int64))
            names += [name for name in own if name not in names]
            codes.append(np.array([names.index(name) for name in own], dtype=np.int64)[np.asarray(rows)])
        at = numbers("mixed", self.seed, visit).permutation(sum(len(part) for part in codes))
        data = pick([test.data for test in tests], at, self._shelf)
        return [TestSet("mixed", space, data, rows=(tuple(names), np.concatenate(codes)[at]))]


class SmallBatch(StreamWrapper):
    """Images arrive one by one, or a few at a time.

    ``test_batch_size`` 1 is SAR's single-sample setting (Niu et al., ICLR 2023).
    """

    paper: ClassVar[str] = "Niu et al., ICLR 2023"

    def __init__(self, of: Scenario | None = None, test_batch_size: Count = 1) -> None:
        super().__init__(of)
        self.test_batch_size = test_batch_size

    @property
    def rearranges(self) -> bool:
        return False

    def rearrange(self, tests: Rearranged, visit: int) -> Rearranged:
        return [replace(test, batch_size=0) for test in tests]


class ReturnToSource(StreamWrapper):
    """The clean test sets stream by as well, the method still adapting: does it come back?

    Niu et al., "Efficient Test-Time Model Adaptation without Forgetting" (EATA), ICML 2022.

    Args:
        of: what streams, with clean test sets.
        after: "stream" = once at the end; "domain" = after every domain (EATA's lifelong setting).

    Their domains ("clean" in Digits-C) count in the stream's mean error like any other.
    """

    paper: ClassVar[str] = "Niu et al., ICML 2022"

    def __init__(self, of: Scenario | None = None, after: Literal["stream", "domain"] = "stream") -> None:
        super().__init__(of)
        self.after = after

    def rearrange(self, tests: Rearranged, visit: int) -> Rearranged:
        clean = self.of.test_sets()
        if not clean:
            raise UserError(f"{type(self.of).__name__} has no clean test sets to return to.")
        if self.after == "stream":
            return [*tests, *(replace(t, name=f"{t.name} again", domain=t.domain or t.name) for t in clean)]
        out: list[TestSet] = []
        for test in tests:
            back = (replace(t, name=f"{t.name} after {test.name}", domain=t.domain or t.name) for t in clean)
            out += [test, *back]
        return out


class ConstantSpeed(StreamWrapper):
    """A stream that does not wait: a method slower than it misses batches.

    Alfarra et al., "Evaluation of Test-Time Adaptation Under Computational Time Constraints", ICML 2024. A method that
    needs k times the passes of a plain forward adapts on every k-th batch only; the batches in between are answered
    by its current state without adapting. Cost is counted in forward and backward passes, not in seconds, so that the
    result does not depend on the machine.

    Args:
        of: what streams.
        stream_speed: the paper's eta in (0, 1]: 1 = batches come as fast as the plain model answers, 0.5 = half that.
    """

    paper: ClassVar[str] = "Alfarra et al., ICML 2024"

    def __init__(self, of: Scenario | None = None, stream_speed: Speed = 1.0) -> None:
        super().__init__(of)
        self.stream_speed = stream_speed


class LabelDelay(StreamWrapper):
    """True labels arrive, ``label_delay`` batches late, for methods that may use them.

    Csaba et al., "Label Delay in Online Continual Learning", NeurIPS 2024. The images of a batch are scored when they
    arrive; their labels reach ``Method.feedback`` only ``label_delay`` batches later.
    """

    paper: ClassVar[str] = "Csaba et al., NeurIPS 2024"

    def __init__(self, of: Scenario | None = None, label_delay: Count = 10) -> None:
        super().__init__(of)
        self.label_delay = label_delay

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        """What ``of`` reveals, and ``labels``."""
        return self.of.gives | {"labels"}


def _size(test: TestSet) -> int:
    return len(test.data)  # type: ignore[arg-type]


def _visited(test: TestSet, visit: int) -> TestSet:
    return test if visit == 1 else replace(test, name=f"{test.name}@{visit}", domain=test.domain or test.name)
