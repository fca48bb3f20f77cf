"""A method with low-rank updates on the linears of both towers, merged when an experience ends."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_bench import AdapterSet, Backbone, Experience, attach
from cl_bench.ranges import Amount, Count, Whole

from ._clip import Clip

# The linears of a block: OpenCLIP's own towers, timm's vision transformers, BERT's as transformers writes them.
LINEARS = (
    r"(.*\.)?(resblocks\.\d+\.(attn(\.out_proj)?|mlp\.(c_fc|c_proj))|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    r"|layer\.\d+\.(attention\.(self\.(query|key|value)|output\.dense)|intermediate\.dense|output\.dense))"
)
Towers = Literal["both", "image", "text"]


class Adapted(Clip):
    """``kind`` adapters on every linear of the blocks; q, k and v of a packed projection have one each."""

    def __init__(
        self, backbone: Backbone, kind: str, settings: dict[str, Any], *, lr: Amount, epochs: Whole, batch_size: Count,
        iterations: Count, at: str, towers: Towers,
    ) -> None:  # fmt: skip
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size, iterations=iterations)
        self.at, self.towers = at, towers
        self.backbone.requires_grad_(False)
        places = {"image": [self.backbone.model], "text": [self.backbone.language]}
        sides = [*places["image"], *places["text"]] if towers == "both" else places[towers]
        self.adapters = nn.ModuleList(attach(side, kind, at, rows=("q", "k", "v"), **settings) for side in sides)

    def sets(self) -> list[AdapterSet]:
        """The adapters of each tower."""
        return [s for s in self.adapters if isinstance(s, AdapterSet)]

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves: adapters alone."""
        return [p for s in self.sets() for p in s.parameters() if p.requires_grad]

    def cosine(self, betas: tuple[float, float] = (0.9, 0.999)) -> dict[str, Any]:
        """AdamW without decay, its rate a cosine to 0 without warm-up."""
        optimizer = torch.optim.AdamW(self.trained(), lr=self.lr, betas=betas, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        for s in self.sets():
            s.after_step(self.done, self.total)

    def end(self, exp: Experience) -> None:
        for s in self.sets():
            s.merge_()
        self.head.refresh()

    def old_prompts(self, exp: Experience) -> Tensor:
        """Text features of the classes of earlier experiences, by the model as it is; (0, d) at first."""
        old = self.seen - exp.space
        with torch.no_grad():
            return self.prompts(old) if len(old) else torch.zeros(0, self.backbone.num_features, device=self.device)
