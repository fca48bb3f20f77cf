"""TPT: the context of the prompts is tuned for each image."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench import Backbone
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.ranges import Amount, Count, Share, Size, Text

from ._prompt import prompt_tokens, prompted, start_context
from ._views import Views, confident, entropies, marginal_entropy

__all__ = ["Tpt"]


class Tpt(Views):
    """One step on the entropy of the confident views' mean answer moves the context words; the image is answered with them.

    Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022
    (azshue/TPT): AdamW 5e-3 with decay 0.01; context and optimizer start anew with every image. Episodic. Computed in the
    precision of the run, without the gradient scaler whose state crosses images in the released code.

    Args:
        context: words that the learned vectors start from. Prompts are "CONTEXT NAME."; a space's own templates are not read.
        share: of the views that are kept.
        steps: of the optimizer, for each image.
    """

    family: ClassVar[str] = "test-time"
    paper: ClassVar[str] = "Shu et al. (TPT), NeurIPS 2022"

    def __init__(self, backbone: Backbone, *, lr: Amount = 5e-3, views: Size = 64, steps: Count = 1, share: Share = 0.1,
                 context: Text = "a photo of a", area: Share = 0.08, flip: bool = True,
                 augmix: bool = False) -> None:  # fmt: skip
        super().__init__(backbone, views=views, area=area, flip=flip, augmix=augmix, lr=lr)
        self.steps, self.share, self.context = steps, share, context

    def restart_memory(self) -> None:
        clip: Any = self.model.backbone
        self.start_words = start_context(clip, self.context)
        names = self.model.space.names
        self.tokens = prompt_tokens(clip, len(self.start_words), names) if names else torch.zeros(0, 0, dtype=torch.int64)
        with torch.no_grad():  # what every image starts from
            self.started = prompted(clip, self.tokens, self.start_words) if names else torch.zeros(0, clip.num_features)

    @property
    def clip(self) -> VisionLanguageBackbone:
        """The deployed model."""
        return self.model.backbone  # type: ignore[return-value]

    @property
    def text(self) -> Tensor:
        return self.started

    def score(self, f: Tensor, text: Tensor) -> Tensor:
        tuned = self.tuned(f)
        return self.answer_of(f, self.scale * f @ prompted(self.clip, self.tokens, tuned).detach().T)

    def tuned(self, f: Tensor) -> Tensor:
        """The context (n, width) after the steps on views (V, d)."""
        with torch.enable_grad():
            words = self.start_words.clone().requires_grad_()
            optimizer = torch.optim.AdamW([words], lr=self.lr, weight_decay=0.01)
            kept: Tensor | None = None
            for _ in range(self.steps):
                text = prompted(self.clip, self.tokens, words)
                logits = self.scale * f @ text.T
                kept = confident(entropies(logits.detach()), self.share) if kept is None else kept
                loss = self.objective(logits[kept], text)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.counts["steps"] += 1
        return words.detach()

    def objective(self, logits: Tensor, text: Tensor) -> Tensor:
        """What a step lowers, of the kept views' logits and the texts."""
        return marginal_entropy(logits)

    def answer_of(self, f: Tensor, logits: Tensor) -> Tensor:
        """The answer (C,) from all views' logits (V, C) with the tuned context: the image's own."""
        return logits[0]
