"""The test images of the embedded vision-language domains as a stream, for test-time methods that read class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from cl_bench import LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.corruptions import NAMES, corrupt
from cl_bench.ranges import Count, LegacySeed, Seed

from ._data import numbers
from .vlm_glyphs import VlmGlyphs

__all__ = ["VlmGlyphsStream"]


class VlmGlyphsStream(Scenario):
    """The seven test sets of ``vlm_glyphs``, one after another, unlabelled; each shuffled once.

    Nothing is learned: a model with a text side answers from the first image on. Caches and memories start anew where the
    label space changes. Protocol of the benchmark TTA-VLM (Sheng et al., NeurIPS 2025): images come one by one as far as
    its methods are concerned, online methods carry their state along, episodic ones reset after each image.

    Args:
        answers: ``task``: each set among its own classes; ``all``: among all 90.
        per_domain: at most so many images of each set; 0 = all.
        corruption: on every image, by its name among those of Hendrycks and Dietterich; "" = none.
        severity: of the corruption, 1 to 5.
        seed: of the order within a domain and of the corruption's noise.
        order, domains: as in ``vlm_glyphs``.
        test_batch_size: how many images arrive at once.
    """

    family: ClassVar[str] = "test-time stream"
    paper: ClassVar[str] = "protocol of Sheng et al. (TTA-VLM), NeurIPS 2025"
    backbone: str = "glyph_clip"
    gives: frozenset[str] = frozenset({"names"})

    def __init__(
        self,
        *,
        answers: Literal["task", "all"] = "task",
        per_domain: Count | None = None,
        corruption: str = "",
        severity: Count = 3,
        seed: Seed = 0,
        order: LegacySeed | list[int] | None = None,
        domains: Count = 7,
        test_batch_size: Count = 64,
    ) -> None:
        if corruption and corruption not in NAMES:
            raise UserError(f"there is no corruption {corruption!r}; use one of {', '.join(NAMES)}, or none.")
        if severity > 5:
            raise UserError(f"severity {severity}: corruptions have severities 1 to 5.")
        self._of = VlmGlyphs(order=order, domains=domains, answers=answers)
        self.answers, self.per_domain, self.corruption, self.severity = answers, per_domain, corruption, severity
        self.seed, self.order, self.domains, self.test_batch_size = seed, order, domains, test_batch_size
        self._made: tuple[TestSet, ...] | None = None

    @property
    def space(self) -> LabelSpace:
        return self._of.space

    def stream(self) -> Sequence[TestSet]:
        if self._made is None:
            self._made = tuple(self._shown(t) for t in self._of.test_sets())
        return self._made

    def protocol(self) -> Mapping[str, Any]:
        shown = {"corruption": self.corruption, "severity": self.severity if self.corruption else 0}
        return {**{k: v for k, v in self._of.protocol().items() if k not in ("shots", "draw")}, **shown,
                "per_domain": self.per_domain, "stream": "shuffled once per domain"}

    def _shown(self, test: TestSet) -> TestSet:
        data = test.data
        assert isinstance(data, TensorData)
        rows = numbers("stream", self.seed, test.name).permutation(len(data))[: self.per_domain]
        x, y = data.take(torch.as_tensor(rows))
        if self.corruption:
            noise = torch.Generator().manual_seed(self.seed)
            x = (corrupt(x.float() / 255, self.corruption, self.severity, generator=noise) * 255).round().to(torch.uint8)
        return TestSet(test.name, test.space, TensorData(x, y), test.name)
