"""The model as it came: classes are told apart by their names alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cl_bench import Backbone, Experience, LabelSpace, UserError
from cl_bench.ranges import Count
from cl_bench.types import takes_name

from ._clip import Clip

__all__ = ["ZeroShot"]


class ZeroShot(Clip):
    """Zero-shot CLIP: cosine of image and class text, the mean over the space's templates; nothing is trained.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; as a method of
    continual learning whose list of classes grows: Thengane et al., "CLIP Model is an Efficient Continual Learner", 2022.

    Args:
        template: one sentence with ``{}`` in place of the space's own; "" keeps them.
    """

    family: ClassVar[str] = "vision-language"
    paper: ClassVar[str] = "Radford et al., ICML 2021; Thengane et al. (Continual-CLIP), 2022"
    reference: ClassVar[str] = "no adaptation"

    def __init__(self, backbone: Backbone, *, template: str = "", batch_size: Count = 64) -> None:
        if template and not takes_name(template):
            raise UserError(f'the template "{template}" has no place for a name: put one {{}} there, and no other brace.')
        super().__init__(backbone, lr=0.0, batch_size=batch_size, iterations=1)
        self.template = template
        self.backbone.requires_grad_(False)

    def epochs_for(self, exp: Experience) -> int:
        return 0

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        if self.template:
            space = LabelSpace(space.ids, space.names, (self.template,))
        return super().predict(x, space)
