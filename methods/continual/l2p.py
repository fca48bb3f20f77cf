"""L2P (Wang et al., CVPR 2022, arXiv 2112.08654, github.com/google-research/l2p): a pool of prompts, chosen by keys."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import Backbone, Batch, UserError, attach
from cl_bench.heads import Head, LinearHead, cosines
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._prompts import InputTokens, Prompted

__all__ = ["L2P"]


class L2P(Prompted):
    """The frozen query picks ``top_k`` prompts of a pool by cosine to their keys; the head reads the prompts' outputs.

    Prompts stand before the class token and carry no position (the JAX form); the head's input is the mean of their
    pooled outputs. Loss: cross-entropy among the current classes minus ``pull`` times the mean over the batch of the
    sum of cosines between query and chosen keys. While fitting, the ``top_k`` prompts most often chosen in the batch are
    used for all of it (``batchwise``).

    Deviations: at test time every image chooses for itself. The published code votes over the test batch as well, which
    leaks its composition. Rate and batch are the published ones of one device, 0.03 * 16 / 256. Adam without decay; new
    rows of the head start at zero, as in the authors' code (models/vit.py: kernel_init zeros).

    Args:
        pool, length, top_k: number of prompts, tokens in each, prompts per image.
        pull: weight of the key loss.
        clip: norm to which gradients are clipped.
        at: anchored pattern of all blocks of a plain ViT that pools its first token.
    """

    family: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Wang et al., L2P, CVPR 2022"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("PILOT draws prompts and keys from U(-1, 1), a hundred times the authors' U(0, 0.01).",
                "LAMDA-CL/LAMDA-PILOT@52407147 backbone/prompt.py:238", table="the authors' JAX code"),
        Differs("PILOT's head starts from N(0, 0.02^2), the authors' at zero.",
                "LAMDA-CL/LAMDA-PILOT@52407147 backbone/vit_l2p.py:522", table="the authors' JAX code"),
        Differs("PILOT's run has five prompts of length 5 an image and a tenth of the key loss.",
                "LAMDA-CL/LAMDA-PILOT@52407147 exps/l2p.json:35", table="the authors' JAX code",
                here=({"length": 10, "top_k": 4, "pull": 1.0}, {"length": 5, "top_k": 5, "pull": 0.1}),
                both={"lr": 0.01}),
        Differs("Prompts are chosen by a vote over the batch, at test time too; here the vote is for training "
                "alone.",
                "google-research/l2p@dd8836e6 models/prompt.py:211", table="released code",
                here=({"batchwise": True}, {"batchwise": False}), both={"lr": 0.01}),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.001875,
        epochs: Whole = 5,
        batch_size: Count = 16,
        pool: Size = 10,
        length: Size = 10,
        top_k: Size = 4,
        pull: Amount = 1.0,
        clip: Amount = 1.0,
        batchwise: bool = True,
        at: Text = r"blocks\.\d+",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        if top_k > pool:
            raise UserError(f"top_k={top_k} prompts of a pool of {pool} cannot be chosen; use a larger pool.")
        self.pool, self.length, self.top_k = pool, length, top_k
        self.pull, self.clip, self.batchwise, self.at = pull, clip, batchwise, at
        self.adapters = attach(backbone, InputTokens, at)
        d = backbone.num_features
        self.prompts = nn.Parameter(torch.empty(pool, length, d).uniform_(0, 0.01))
        self.keys = nn.Parameter(torch.empty(pool, d).uniform_(0, 0.01))

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, std=0.0)

    def choose(self, similarity: Tensor, together: bool) -> Tensor:
        """Ids (B, top_k) of the prompts for similarities (B, pool); ``together`` takes the batch's favourites."""
        ids = similarity.topk(self.top_k, dim=1).indices
        if together:
            votes = F.one_hot(ids, self.pool).sum((0, 1))
            ids = votes.topk(self.top_k).indices.expand(len(ids), -1)
        return ids

    def prompted(self, x: Tensor, together: bool) -> tuple[Tensor, Tensor]:
        """Logits, and the mean over images of the summed cosines to the chosen keys."""
        similarity = cosines(self.query(x), self.keys)
        ids = self.choose(similarity.detach(), together)
        tokens = self.prompts[ids].flatten(1, 2)  # (B, top_k * length, d)
        with self.lent(self.adapters, [tokens] * len(self.adapters.sites)):
            outputs = self.backbone.forward_features(x)
        features = outputs.unflatten(0, (len(x), -1)).mean(1)
        return self.head(features), similarity.gather(1, ids).sum(1).mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.prompted(x, together=False)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, match = self.prompted(batch.x, self.batchwise)
        return self.loss(logits, batch.y, among=self.current) - self.pull * match

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.trained(), lr=self.lr)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.trained(), self.clip)
