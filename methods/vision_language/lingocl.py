"""LingoCL: class names, as a frozen language model places them, are the classifier of any other method."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace, LinearHead, Method, TextHead, UserError
from cl_bench.heads import CosineHead, FixedHead
from cl_bench.ranges import Positive, Text
from cl_bench.registry import find
from cl_bench.types import takes_name

from ._clip import Clip
from ._language import LanguageHead, Words

__all__ = ["Lingocl"]


class Lingocl(Method):
    """Another method, its classifier replaced by frozen vectors of the class names; everything else is that method's.

    Ni et al., "Enhancing Visual Continual Learning with Language-Guided Supervision", CVPR 2024, arXiv 2403.16124. The
    paper's language model is CLIP's text encoder. From the paper alone, without the authors' code: features meet the
    vectors as a cosine with a learned scale, through a learned linear map where their widths differ.

    Args:
        host: name of the method, one whose classifier is linear, or the backbone's own where that reads names. args: its own
            settings.
        words: a backbone with a text side, or an ``.npz`` file with ``names`` and ``vectors``.
        template: sentence with ``{}`` that a name is put into; a file's vectors are taken as they are.
        scale: of the cosine at the start.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"names"})
    family: ClassVar[str] = "vision-language"
    paper: ClassVar[str] = "Ni et al. (LingoCL), CVPR 2024"
    exempt: ClassVar[dict[str, str]] = {
        "no file, program or network is opened": "the language model is a second set of weights, read when the method is built"
    }

    def __init__(self, backbone: Backbone, *, host: Text = "finetune", args: dict[str, Any] | None = None,
                 words: Text = "glyph_clip", template: Text = "a photo of a {}.",
                 scale: Positive = 1 / 0.07) -> None:  # fmt: skip
        if not takes_name(template):
            raise UserError(f'the template "{template}" has no place for a name: put one {{}} there, and no other brace.')
        inner: Method = find("cl_bench.methods", host)(backbone, **(args or {}))
        own = type(inner.head) is TextHead and not isinstance(inner, Clip)  # made by the backbone, not read by the method
        if inner.adapts or not (own or type(inner.head) in (LinearHead, CosineHead, FixedHead)):
            raise UserError(f"{host} has no classifier that class names can take the place of; name a method that trains a "
                            "linear one.")
        super().__init__(backbone, lr=inner.lr, epochs=inner.epochs, batch_size=inner.batch_size)
        self.args, self.words, self.template, self.scale = args, words, template, scale
        inner.head = LanguageHead(backbone.num_features, Words(words, template), scale)
        self.head, self.inner, self.host = inner.head, inner, host
        self.automatic_optimization = inner.automatic_optimization

    # ------------------------------------------------------------------ the host's life
    def plan(self, experiences: int) -> None:
        self.inner.plan(experiences)

    def begin(self, exp: Experience) -> None:
        self.inner.rng = self.rng
        self.inner.begin(exp)
        self.seen, self.current = self.inner.seen, self.inner.current

    def training_data(self, exp: Experience) -> Dataset:
        return self.inner.training_data(exp)

    def epochs_for(self, exp: Experience) -> int:
        return self.inner.epochs_for(exp)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.inner.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self.inner.configure_optimizers()

    def on_train_start(self) -> None:
        self.inner.on_train_start()

    def on_train_epoch_start(self) -> None:
        self.inner.on_train_epoch_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return self.inner.on_train_batch_start(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.inner.on_after_backward()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.inner.on_before_optimizer_step(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.inner.on_train_batch_end(outputs, batch, batch_idx)

    def end(self, exp: Experience) -> None:
        self.inner.rng = self.rng
        self.inner.end(exp)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        self.inner.rng = self.rng
        return self.inner.predict(x, space)

    def counters(self) -> dict[str, int | float]:
        return self.inner.counters()

    def stored_samples(self) -> int:
        return self.inner.stored_samples()
