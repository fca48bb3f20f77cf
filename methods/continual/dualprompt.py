"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799, github.com/google-research/l2p): prompts for all tasks in shallow
layers, prompts of a task in deeper ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, attach
from cl_bench.heads import Head, LinearHead, cosines
from cl_bench.ranges import Amount, Count, Size, Text, Whole

from .._differs import Differs
from ._prompts import PrefixSlot, Prompted

__all__ = ["DualPrompt"]


class DualPrompt(Prompted):
    """A G-prompt shared by all tasks and an E-prompt with a key per task, both as prefixes of keys and values.

    While an experience is learned its own E-prompt is used and its key pulled to the queries; a test image takes the
    E-prompt whose key is nearest to its query. A new E-prompt starts as a copy of the last; old ones are frozen. Loss:
    cross-entropy among the current classes minus ``pull`` times the mean cosine between query and key.

    Every test image chooses for itself (no vote over the batch). Rate and batch are the published ones of one device,
    0.03 * 24 / 256. Adam without decay; new rows of the head start at zero, as in the authors' code.

    Args:
        g_length, e_length: keys and values per prompt (published: 5; the paper's text says 20 for E).
        pull: weight of the key loss; clip: norm to which gradients are clipped.
        g_at, e_at: anchored patterns of the attention layers (published: blocks 0-1 and 2-4).
    """

    family: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Wang et al., DualPrompt, ECCV 2022"
    differs: ClassVar[tuple[Differs, ...]] = (
        Differs("The paper has E-prompts of length 20, the released CIFAR-100 run of 5.",
                "google-research/l2p@dd8836e6 configs/cifar100_dualprompt.py:104", table="released code",
                here=({"e_length": 5}, {"e_length": 20})),
        Differs("PILOT reshapes prompts without permuting, which mixes keys and values with images of the batch.",
                "LAMDA-CL/LAMDA-PILOT@52407147 backbone/prompt.py:323", table="the authors' JAX code"),
        Differs("CODA-Prompt's copy draws prompts and keys from U(0, 1), a hundred times the authors' U(0, 0.01).",
                "GT-RIPL/CODA-Prompt@6417d4f6 models/zoo.py:350", table="the authors' JAX code"),
        Differs("PILOT's run has a tenth of the key loss.",
                "LAMDA-CL/LAMDA-PILOT@52407147 exps/dualprompt.json:56", table="the authors' JAX code",
                here=({"pull": 1.0}, {"pull": 0.1})),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 0.0028125,
        epochs: Whole = 5,
        batch_size: Count = 24,
        g_length: Size = 5,
        e_length: Size = 5,
        pull: Amount = 1.0,
        clip: Amount = 1.0,
        g_at: Text = r"blocks\.[01]\.attn",
        e_at: Text = r"blocks\.[2-4]\.attn",
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.g_length, self.e_length, self.pull, self.clip = g_length, e_length, pull, clip
        self.g_at, self.e_at = g_at, e_at
        self.general = attach(backbone, PrefixSlot, g_at)
        self.expert = attach(backbone, PrefixSlot, e_at)
        self.width = backbone.num_features
        self.g = nn.Parameter(torch.empty(len(self.general.sites), 2, g_length, self.width).uniform_(0, 0.01))
        self.e, self.keys = nn.ParameterList(), nn.ParameterList()

    def make_head(self) -> Head:
        return LinearHead(self.backbone.num_features, std=0.0)

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        shape = len(self.expert.sites), 2, self.e_length, self.width
        fresh = self.e[-1].detach().clone() if len(self.e) else torch.empty(shape).uniform_(0, 0.01).to(self.g)
        self.e.requires_grad_(False)
        self.keys.requires_grad_(False)
        self.e.append(nn.Parameter(fresh))
        self.keys.append(nn.Parameter(torch.empty(self.width).uniform_(0, 0.01).to(self.g)))

    def prompted(self, x: Tensor, e: Tensor) -> Tensor:
        """Logits with E-prompts (layers, 2, n, d), or one per image (layers, 2, B, n, d)."""
        with self.lent(self.general, list(self.g)), self.lent(self.expert, list(e)):
            return self.head(self.backbone.forward_features(x))

    def match(self, x: Tensor) -> Tensor:
        """Cosine of each image's query to each key (N, tasks)."""
        return cosines(self.query(x), torch.stack(list(self.keys)))

    def forward(self, x: Tensor) -> Tensor:
        task = self.match(x).argmax(1)
        e = torch.stack(list(self.e))[task]  # (B, layers, 2, n, d)
        return self.prompted(x, e.permute(1, 2, 0, 3, 4))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.prompted(batch.x, self.e[-1])
        return self.loss(logits, batch.y, among=self.current) - self.pull * self.match(batch.x)[:, -1].mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.trained(), lr=self.lr)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.trained(), self.clip)
