"""SimpleCIL (Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024, arXiv 2303.07338,
github.com/zhoudw-zdw/RevisitingCIL): never train; class means of frozen features, compared by cosine."""

from __future__ import annotations

from typing import Any, ClassVar

from cl_bench import Backbone, Experience, PrototypeHead
from cl_bench.heads import Head
from cl_bench.ranges import Count

from ._frozen_trunk import FrozenTrunk

__all__ = ["NCM"]


class NCM(FrozenTrunk):
    """Nearest class mean of frozen features (SimpleCIL): ``logit_c = cos(f, mean of f over class c)``.

    Means are of raw features, not normalised, over images without augmentation. Nothing is trained, so the result
    depends on the order of classes only through ties.
    """

    family: ClassVar[str] = "prototype"
    paper: ClassVar[str] = "Zhou et al., SimpleCIL, IJCV 2024"
    shares_batches: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, batch_size: Count = 128) -> None:
        super().__init__(backbone, epochs=0, batch_size=batch_size)
        self.backbone.requires_grad_(False)

    def make_head(self) -> Head:
        return PrototypeHead(self.backbone.num_features)

    def configure_optimizers(self) -> Any:
        return None

    def end(self, exp: Experience) -> None:
        assert isinstance(self.head, PrototypeHead)
        self.head.add(*self.embed(exp))
