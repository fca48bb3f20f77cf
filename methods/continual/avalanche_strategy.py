"""Any supervised strategy of Avalanche (Lomonaco et al., CVPR workshops 2021; Carta et al., JMLR 2023) as a method."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_bench import Backbone, Batch, Experience, Head, LabelSpace, Method, UserError, align_columns
from cl_bench.ranges import Amount, Count, Share, Text

from ._avalanche import Columns, Network, experience_of, held_images, release

__all__ = ["AvalancheStrategy"]


class AvalancheStrategy(Method):
    """An Avalanche strategy trained by Avalanche's own loop, under this harness's records and metrics.

    Lightning's fit is entered, and left to Avalanche as it starts: ``strategy.train(experience)`` with as many epochs as
    the fit was allowed (an online scenario's cap holds). The strategy's model is the backbone under Avalanche's
    ``IncrementalClassifier``; labels are columns in the order in which classes arrived, task labels are all 0.

    Args:
        strategy: ``module:Class``, or a name in ``avalanche.training`` (Naive, Replay, EWC, LwF, GEM, SynapticIntelligence,
            ...) that takes model, optimizer and criterion.
        args: the strategy's own arguments, e.g. ``{mem_size: 200}`` or ``{ewc_lambda: 0.4}``.
        lr, momentum, optimizer: of ``torch.optim``.
        masking: IncrementalClassifier's masking of units that were never active.
    """

    family: ClassVar[str] = "interoperation"
    paper: ClassVar[str] = "Lomonaco et al., CVPR workshops 2021"
    exempt: ClassVar[dict[str, str]] = {
        "saved, loaded into a new object, answers the same": "the strategy object is Avalanche's and holds code; "
        "run with --checkpoint false",
        "predict has no side effect": "the check writes a checkpoint, see above; predict only runs the network",
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        strategy: Text = "Naive",
        args: dict[str, Any] | None = None,
        lr: Amount = 0.01,
        momentum: Share = 0.9,
        optimizer: Literal["sgd", "adam"] = "sgd",
        epochs: Count = 5,
        batch_size: Count = 32,
        masking: bool = True,
    ) -> None:
        self.masking = masking  # Lightning's __setattr__ takes plain values before its __init__
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.strategy, self.args, self.momentum, self.optimizer = strategy, args, momentum, optimizer
        self.automatic_optimization = False
        self.network = Network(self.backbone, self.head)
        self.running: Any = None  # the strategy, once there is something to learn
        self.pending: Any = None
        self.image: tuple[int, ...] = ()

    def make_head(self) -> Head:
        return Columns(self.backbone.num_features, self.masking)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, : len(self.head.space)]

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return align_columns(self(x), self.head.space, space)

    def begin(self, exp: Experience) -> None:
        before = self.seen
        super().begin(exp)
        if self.running is None:
            self.running = self.build()
        self.pending = experience_of(exp, self.head.space, before, self.running.clock.train_exp_counter, self.rng.on("cpu"))

    def on_train_start(self) -> None:
        self.running.device = self.device
        self.running.train_epochs = self.trainer.max_epochs
        with torch.enable_grad():
            self.running.train(self.pending)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
        return -1  # the epoch is over: Avalanche has done the work

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        return None

    def configure_optimizers(self) -> None:
        return None

    def end(self, exp: Experience) -> None:
        self.pending, self.image = None, tuple(torch.as_tensor(exp.data[0][0]).shape)
        release(self.running)

    def stored_samples(self) -> int:
        return super().stored_samples() + held_images(self.running, self.image)

    def build(self) -> Any:
        """The strategy on this method's network.

        Raises:
            UserError: if there is no such class.
        """
        module, _, name = self.strategy.rpartition(":")
        try:
            cls = getattr(importlib.import_module(module or "avalanche.training"), name)
        except (ModuleNotFoundError, AttributeError) as fault:
            raise UserError(f"there is no Avalanche strategy {self.strategy!r}; give module:Class, or Naive, Replay, EWC, "
                            "LwF, ... from avalanche.training.") from fault
        params = [p for p in self.network.parameters() if p.requires_grad]
        chosen: Any = (torch.optim.SGD(params, lr=self.lr, momentum=self.momentum) if self.optimizer == "sgd"
                       else torch.optim.Adam(params, lr=self.lr))
        try:
            return cls(model=self.network, optimizer=chosen, criterion=nn.CrossEntropyLoss(), train_mb_size=self.batch_size,
                       train_epochs=self.epochs, eval_mb_size=self.batch_size, device=self.device, evaluator=None,
                       **(self.args or {}))
        except TypeError as fault:
            raise UserError(f"{self.strategy} takes other arguments than model, optimizer, criterion and "
                            f"{self.args or 'no args'}: {fault}; correct args, or take another strategy.") from fault
