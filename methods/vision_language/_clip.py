"""What methods for vision-language models share: the head that reads names, features of frozen towers, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Experience, LabelSpace, Method, TensorData, TextHead, UserError, batches
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.data.tensor import labels_of
from cl_bench.heads import columns_of, full_precision
from cl_bench.ranges import Amount, Count, Whole
from cl_bench.state import moved


class Clip(Method):
    """A method on a model with a text side: it answers for any named space, learned or not.

    Args:
        iterations: optimizer steps per experience, exactly; used while ``epochs`` is 0.
        epochs: passes over an experience instead, if not 0.
    """

    WIRING = Method.WIRING | {"kept_features", "kept_texts"}  # follow from towers and data, and are no state of their own
    needs: ClassVar[frozenset[str]] = frozenset({"names"})
    family: ClassVar[str] = "vision-language"
    backbone: VisionLanguageBackbone
    head: TextHead  # type: ignore[assignment]

    def __init__(
        self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 0, batch_size: Count = 64, iterations: Count = 1000
    ) -> None:
        need_text(type(self).__name__, backbone)
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.iterations, self.done, self.total = iterations, 0, 0

    # ------------------------------------------------------------------ learning
    def steps_per_epoch(self, exp: Experience) -> int:
        """Batches in one pass."""
        return math.ceil(len(self.training_data(exp)) / self.batch_size)  # type: ignore[arg-type]

    def epochs_for(self, exp: Experience) -> int:
        return self.epochs or max(1, math.ceil(self.iterations / self.steps_per_epoch(exp)))

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.done = 0
        self.total = self.epochs * self.steps_per_epoch(exp) if self.epochs else self.iterations

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.done >= self.total else None  # the epoch that the last step falls into ends there

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1

    def train(self, mode: bool = True) -> Clip:
        super().train(mode)
        self.backbone.eval()  # CLIP has no dropout; a frozen tower's batch statistics must not move
        return self

    def prompts(self, space: LabelSpace) -> Tensor:
        """Text features (C, d) of ``space`` by its first template, as MTIL and X-TAIL train; unit length."""
        first = (space.templates or self.head.templates)[:1]
        return self.head.embeddings(LabelSpace(space.ids, space.names, first))

    def images(self, x: Tensor) -> Tensor:
        """Image features, unit length; ``x`` may be features already (:meth:`features_once`)."""
        return F.normalize(self.backbone.forward_features(x) if x.ndim == 4 else x, dim=-1)

    def warm_cosine(self, parameters: list[nn.Parameter], warmup: int = 100, weight_decay: float = 0.0,
                    betas: tuple[float, float] = (0.9, 0.999)) -> dict[str, Any]:  # fmt: skip
        """AdamW; the rate rises over ``warmup`` steps (at most a tenth of all) and falls to 0 as a cosine."""
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Warm(min(warmup, max(1, self.total // 10)), self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ frozen towers
    @torch.no_grad()
    def features_once(self, exp: Experience, encode: Callable[[Tensor], Tensor] | None = None) -> TensorData:
        """Image features (n, d), not normalised, and labels of an experience, encoded once: they are kept for as long as its
        data are held by somebody and the image tower stays as it is. ``encode``: images -> what else than features to keep."""
        kept = self.__dict__.setdefault("kept_features", WeakKeyDictionary())
        tower = [(p.data_ptr(), p._version) for p in self.backbone.model.parameters()]
        if exp.data not in kept or kept[exp.data][0] != tower:
            self.backbone.eval()
            parts = [encode(b.x) for b in batches(exp.data, 256, device=self.device)] if encode else []
            found = torch.cat(parts) if encode else self.backbone.encoded(exp.data)
            kept[exp.data] = tower, TensorData(found, labels_of(exp.data).to(self.device))
        return kept[exp.data][1]

    @torch.no_grad()
    def raw_texts(self, space: LabelSpace, template: int = 0) -> Tensor:
        """Features (C, d), not normalised, of the names in one of the space's sentences; kept while the text tower stays."""
        sentence = (space.templates or self.head.templates)[template]
        texts = [sentence.format(n.replace("_", " ")) for n in space.names]
        return self.kept_text((space.names, sentence), lambda: self.backbone.encode_tokens(self.backbone.tokenize(texts)))

    def kept_text(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` says under a key, made anew once the text tower is another."""
        kept, version = self.__dict__.setdefault("kept_texts", {}), self.backbone.text_version()
        if kept.get("of") != version:
            kept.clear()
            kept["of"] = version
        if key not in kept:
            kept[key] = make()
        return kept[key]

    # ------------------------------------------------------------------ answering
    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.head.over(self.backbone.forward_features(x), space)

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        return self.predict(x, space)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.head.kept = moved(self.head.kept, fn)
        return self


class Warm:
    """Factors of a learning rate: ``(k + 1) / warmup`` while warming up, then a cosine from 1 to 0 at ``total``."""

    def __init__(self, warmup: int, total: int) -> None:
        self.warmup, self.total = warmup, total

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))))


def need_text(name: str, backbone: Backbone) -> None:
    """Refuse a backbone that reads no names.

    Raises:
        UserError: there is no text side.
    """
    if not isinstance(backbone, VisionLanguageBackbone):
        raise UserError(f"{name} needs a backbone with a text side, and {backbone.info['name'] or 'this one'} has none; use "
                        "glyph_clip or open_clip_model.")


def scaled_cosines(images: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Answers (N, C) of images (N, d) and texts (C, d), both of unit length, never in half precision."""
    with full_precision(images, text, scale) as (f, t, s):
        return s * f @ t.T


def contrast(images: Tensor, text: Tensor, y: Tensor, space: LabelSpace, scale: Tensor | float,
             smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of images (N, d) against the texts (C, d) of ``space``, both of unit length."""
    return F.cross_entropy(scale * images @ text.T, columns_of(y, space), label_smoothing=smoothing)


def cycle(data: TensorData, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled batches of images."""
    while True:
        for b in batches(data, size, shuffle=True, generator=generator):
            yield b.x
