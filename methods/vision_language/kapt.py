"""KAPT: prompts made of descriptions of classes, and an image feature to which salient patches are added."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, LabelSpace, UserError
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from ._clip import Clip, contrast, scaled_cosines
from ._descriptions import pieces, read_descriptions
from ._prompt import coop_rates, prompt_tokens, prompted, start_context
from ._salience import Salience

__all__ = ["Kapt"]

MOST_BYTES = 512 * 2**20  # of patches of an experience that are kept; of more, images go through the tower in every step


class Kapt(Clip):
    """Key words of a class's description stand behind its name, the words before it are made of the whole description by a
    small network, and to the image feature is added what its most salient patches hold. Both towers are frozen.

    Kan et al., "Knowledge-Aware Prompt Tuning for Generalizable Vision-Language Models", ICCV 2023: a discrete prompt of the
    key information of descriptions from outside, a learned continuous one of their overall context, and an adaptation head
    that gathers salient visual cues. No code was released.

    Left open by the text that could be read (the abstract), and chosen here: the frozen text tower reads a description in
    pieces that fit its context, whose unit features are averaged. Two layers with a ReLU between make of it what is added to
    the vectors of ``start``, as CoCoOp's do of an image: at first nothing. Key words are found by TF-IDF among the classes of
    the file; as many are said as are asked for and fit. The head is one attention, of the image feature to its patches among
    texts, both of unit length; the map of what it gathers starts at 0. Cross-entropy at CLIP's scale; rates, epochs and
    batches are CoOp's. As a continual method network and head go on from experience to experience, and keep no image; before
    the first, the model answers as it came, with the key words said.

    Args:
        descriptions: JSON file, for each class by name a description, or an object of ``description`` and ``keywords``; "" =
            a class is described by its sentences in the scenario's templates, which have no key words beside its name.
        keywords: most of them that are said of a class.
        start: the words before the name.
        reduction: width of a feature over that of the network's hidden layer and of the attention.
    """

    paper: ClassVar[str] = "Kan et al. (KAPT), ICCV 2023"

    def __init__(self, backbone: Backbone, *, lr: Amount = 2e-3, epochs: Whole = 50, batch_size: Count = 32,
                 iterations: Count = 1000, descriptions: str = "", keywords: Whole = 8, start: Text = "a photo of a",
                 reduction: Size = 16) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.descriptions, self.keywords, self.start, self.reduction = descriptions, keywords, start, reduction
        self.told = dict(read_descriptions(descriptions)) if descriptions else {}
        self.backbone.requires_grad_(False)
        self.register_buffer("words", start_context(self.backbone, start))
        with torch.no_grad():  # refuses a tower without patches
            self.each = 4 * self.whole_and_patches(self.backbone.mean.new_zeros(1, 3, 32, 32)).numel()
        width, inner = backbone.num_features, max(1, backbone.num_features // reduction)
        self.network = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, self.words.numel()))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        self.salience = Salience(width, inner)

    # ------------------------------------------------------------------ texts
    def sentences(self, space: LabelSpace) -> tuple[str, ...]:
        """Each name with the first of its key words behind it, as many as fit.

        Raises:
            UserError: the file has no description of a class.
        """
        if self.told and (missing := [n for n in space.names if n not in self.told]):
            raise UserError(f'"{self.descriptions}" has no description of "{missing[0]}": add one under that name.')
        found, room = [], self.backbone.context_length - len(self.words)
        for name in space.names:
            for word in self.told.get(name, ("", ()))[1][: self.keywords]:
                if self.backbone.token_count(f"{name}, {word}.".replace("_", " ")) > room:
                    break
                name = f"{name}, {word}"
            found.append(name)
        return tuple(found)

    @torch.no_grad()
    def described(self, space: LabelSpace) -> Tensor:
        """Unit features (C, d) of the descriptions of classes."""
        if not self.told:
            return self.head.embeddings(space)
        rows = []
        for name in space.names:
            parts = pieces(self.backbone, self.told[name][0])
            texts = [self.backbone.encode_tokens(self.backbone.tokenize(parts[k : k + 256])) for k in range(0, len(parts), 256)]
            rows.append(F.normalize(torch.cat(texts), dim=-1).mean(0))
        return F.normalize(torch.stack(rows), dim=-1)

    def text(self, space: LabelSpace) -> Tensor:
        """Unit text features (C, d) with the network as it is."""
        how = (space.names, space.templates)
        tokens = self.kept_text(("tokens", *how), lambda: prompt_tokens(self.backbone, len(self.words), self.sentences(space)))
        told = self.kept_text(("described", *how), lambda: self.described(space))
        context = self.words + self.network(told.to(self.words)).unflatten(1, self.words.shape)
        return prompted(self.backbone, tokens, context)

    # ------------------------------------------------------------------ images
    def whole_and_patches(self, x: Tensor) -> Tensor:
        """Features (N, 1 + L, d) of images, not normalised: first those of the whole, then those of its patches."""
        whole, patches = self.backbone.patch_features(x)
        return torch.cat([whole[:, None], patches], 1)

    def training_data(self, exp: Experience) -> Dataset:
        if exp.augment is not None or len(exp.data) * self.each > MOST_BYTES:  # type: ignore[arg-type]
            return exp.data
        return self.features_once(exp, self.whole_and_patches)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.sentences(exp.space)  # a class that the file says nothing of is told before anything is learned

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            parts = self.whole_and_patches(batch.x) if batch.x.ndim == 4 else batch.x
        image = self.salience(parts[:, 0], parts[:, 1:])
        return contrast(image, self.text(self.current), batch.y, self.current, self.backbone.logit_scale)

    def configure_optimizers(self) -> Any:
        trained = [*self.network.parameters(), *self.salience.parameters()]
        return coop_rates(trained, self.lr, self.total, self.epochs)

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        parts = self.whole_and_patches(x)
        return scaled_cosines(self.salience(parts[:, 0], parts[:, 1:]), self.text(space), self.backbone.logit_scale)
