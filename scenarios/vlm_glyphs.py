"""Seven embedded domains with label spaces of their own, for models that read class names: nothing to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.corruptions import corrupt
from cl_bench.data.described import COLOURS, MARKS, TEXTURES, Look, described_data, letter_name
from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.data.glyphs import HELD_OUT_FONTS, LETTERS
from cl_bench.ranges import Count, LegacySeed, Seed

from ._data import digest_of, numbers
from .split import Answers, class_order, order_policy

__all__ = ["VlmGlyphs"]

DOMAINS: dict[str, tuple[str, ...]] = {
    "capitals": tuple(letter_name(c) for c in LETTERS[:26]),
    "small letters": tuple(letter_name(c) for c in LETTERS[26:]),
    "marks": MARKS,
    "handwriting": tuple(f"digit {n}" for n in DIGIT_NAMES),
    "corrupted digits": tuple(f"digit {n}" for n in DIGIT_NAMES),
    "textures": TEXTURES,
    "colours": tuple(f"{c} thing" for c in COLOURS),
}
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.")
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast", "pixelate", "fog")
_FIRST_TEST_SEED = 10_000_000
_EACH = 15  # test images of a class, but handwriting has its 359


class VlmGlyphs(Scenario):
    """Capitals, small letters and marks of fonts that no pretraining saw, handwritten digits, corrupted digits, textures and
    colours: 7 domains, 90 classes, few images each. The shape of MTIL (``answers="task"``: each set among its own
    classes) and of X-TAIL (``answers="all"``: among all 90) on embedded data.

    A head that reads class names is measured before any learning and on domains that come later: Transfer, Average and
    Last of Zheng et al. (ICCV 2023). The two domains of digits share their classes.

    Args:
        shots: training images of a class.
        seed: which training images are drawn; test images stay.
        order: None = as above; a number draws another order of the domains (RandomState); or a list of positions.
        answers: ``task`` (MTIL), ``all`` (X-TAIL) or ``seen``.
        domains: how many of the domains, from the first in order.
    """

    family: ClassVar[str] = "vision-language"
    paper: ClassVar[str] = "protocols of Zheng et al. (MTIL), ICCV 2023, and Xu et al. (X-TAIL), NeurIPS 2024"
    backbone: str = "glyph_clip"
    gives: frozenset[str] = frozenset({"boundaries", "names"})

    def __init__(
        self,
        *,
        shots: Count = 16,
        seed: Seed = 0,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "task",
        domains: Count = 7,
    ) -> None:
        if domains > len(DOMAINS):
            raise UserError(f"vlm_glyphs has {len(DOMAINS)} domains, not {domains}.")
        self.shots, self.seed, self.order, self.answers, self.domains = shots, seed, order, answers, domains
        if answers == "task":
            self.gives = type(self).gives | {"task_id"}
        self._made: dict[tuple[str, bool], TensorData] = {}

    @cached_property
    def _spaces(self) -> dict[str, LabelSpace]:
        ids: dict[str, int] = {}
        for names in DOMAINS.values():
            for name in names:
                ids.setdefault(name, len(ids))
        return {d: LabelSpace(tuple(ids[n] for n in names), names, TEMPLATES) for d, names in DOMAINS.items()}

    @property
    def ordered(self) -> tuple[str, ...]:
        """The domains in the order of arrival."""
        names = tuple(DOMAINS)
        return tuple(names[k] for k in class_order(self.order, len(names)))[: self.domains]

    @property
    def space(self) -> LabelSpace:
        whole = LabelSpace()
        for name in self.ordered:
            whole = whole | self._spaces[name]
        return whole

    def experiences(self) -> Sequence[Experience]:
        return [Experience(d, self._spaces[d], self._data(d, True)) for d in self.ordered]

    def test_sets(self) -> Sequence[TestSet]:
        return [TestSet(d, self._spaces[d], self._data(d, False), of=d) for d in self.ordered]

    def protocol(self) -> Mapping[str, Any]:
        return {
            "data": {d: digest_of(self._data(d, False)) for d in sorted(self.ordered)},
            "shots": self.shots,
            "draw": "few-shot by seed",
            "order_policy": order_policy(self.order),
            "names": {d: [*self._spaces[d].names] for d in sorted(self.ordered)},
            "templates": list(TEMPLATES),
        }

    def _data(self, domain: str, train: bool) -> TensorData:
        if (domain, train) not in self._made:
            self._made[domain, train] = self._make(domain, train)
        return self._made[domain, train]

    def _make(self, domain: str, train: bool) -> TensorData:
        position, classes = list(DOMAINS).index(domain), len(DOMAINS[domain])
        ids = torch.tensor(self._spaces[domain].ids)
        seed = 1000 * self.seed + position if train else _FIRST_TEST_SEED + position
        each = self.shots if train else _EACH
        if domain == "handwriting":
            data = digits("train" if train else "test")
            if train:
                of = [(data.y == c).nonzero().flatten().numpy() for c in range(10)]
                rows = [numbers("shots", self.seed, c).permutation(of[c])[: self.shots] for c in range(10)]
                data = data.subset(torch.cat([torch.as_tensor(r) for r in rows]))
            return TensorData(data.x, ids[data.y])
        x, y = _balanced(domain, classes, each, seed)
        if domain == "corrupted digits":
            kinds = torch.arange(len(x)) % len(CORRUPTIONS)
            for k, name in enumerate(CORRUPTIONS):
                noise = torch.Generator().manual_seed(seed + k)
                shown = corrupt(x[kinds == k].float() / 255, name, 4, generator=noise)
                x[kinds == k] = (shown * 255).round().to(torch.uint8)
        return TensorData(x, ids[y])


def _balanced(domain: str, classes: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """``each`` images of every class, drawn until there are enough."""
    base = Look(fonts=HELD_OUT_FONTS, noise=(0.0, 0.15), jitter=0.12)
    kind = {"capitals": "letter", "small letters": "letter", "marks": "mark", "textures": "texture"}.get(domain, "digit")
    look = replace(base, kinds=(kind,), shares=(1.0,), texture=(4.0, 7.0))
    if domain == "colours":
        look = replace(base, jitter=0.16)
    attribute = "colour" if domain == "colours" else "thing"
    kept: list[tuple[Tensor, Tensor]] = []
    found = torch.zeros(classes, dtype=torch.int64)
    first = {"small letters": 26, "marks": 62, "textures": 72, "colours": 0, "capitals": 0}.get(domain, 52)
    visit = 0
    while int(found.min()) < each:
        data, _ = described_data(4 * each * classes, seed * 64 + visit, attribute, look)
        visit += 1
        for x, label in zip(data.x, (data.y - first).tolist(), strict=True):
            if 0 <= label < classes and found[label] < each:
                found[label] += 1
                kept.append((x, torch.tensor(label)))
    return torch.stack([x for x, _ in kept]), torch.stack([y for _, y in kept])
