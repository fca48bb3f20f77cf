"""Any supervised strategy of Avalanche (Lomonaco et al., CVPR workshops 2021; Carta et al., JMLR 2023) as a method."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Batch, Experience, Head, LabelSpace, Method, UserError, select
from cl_bench.data.tensor import as_float, labels_of

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
        strategy: str = "Naive",
        args: dict[str, Any] | None = None,
        lr: float = 0.01,
        momentum: float = 0.9,
        optimizer: Literal["sgd", "adam"] = "sgd",
        epochs: int = 5,
        batch_size: int = 32,
        masking: bool = True,
    ) -> None:
        self.masking = masking  # Lightning's __setattr__ takes plain values before its __init__
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        self.strategy, self.args, self.momentum, self.optimizer = strategy, args, momentum, optimizer
        self.automatic_optimization = False
        self.network = Network(self.backbone, self.head)
        self.running: Any = None  # the strategy, once there is something to learn
        self.pending: Any = None

    def make_head(self) -> Head:
        return Columns(self.backbone.num_features, self.masking)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, : len(self.head.space)]

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        return select(self(x), self.head.space, space)

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
        self.pending = self.running.experience = None  # no strong hold on old data beyond what the strategy stores

    def stored_samples(self) -> int:
        policies = [getattr(p, "storage_policy", None) for p in getattr(self.running, "plugins", ())]
        return super().stored_samples() + sum(len(p.buffer) for p in policies if p is not None)

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
        return cls(model=self.network, optimizer=chosen, criterion=nn.CrossEntropyLoss(), train_mb_size=self.batch_size,
                   train_epochs=self.epochs, eval_mb_size=self.batch_size, device=self.device, evaluator=None,
                   **(self.args or {}))


class Columns(Head):
    """Avalanche's IncrementalClassifier, which grows as the strategy meets classes; columns in order of arrival."""

    def __init__(self, num_features: int, masking: bool) -> None:
        super().__init__(num_features)
        from avalanche.models import IncrementalClassifier

        self.layer = IncrementalClassifier(num_features, initial_out_features=2, masking=masking)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


class Network(nn.Module):
    """What the strategy trains: features, then the growing classifier."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(x))


class Labelled(Dataset):
    """An experience's images, float in [0, 1] and augmented where the scenario augments, with columns as targets."""

    def __init__(self, exp: Experience, targets: Tensor, generator: torch.Generator) -> None:
        self.data, self.augment, self.generator = exp.data, exp.augment, generator
        self.targets = targets.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = as_float(torch.as_tensor(self.data[index][0]))
        return (x if self.augment is None else self.augment(x[None], self.generator)[0]), self.targets[index]


def experience_of(exp: Experience, space: LabelSpace, before: LabelSpace, position: int, draw: torch.Generator) -> Any:
    """``exp`` as Avalanche sees it: targets are columns of ``space``, and the timeline of classes is said."""
    from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
    from avalanche.benchmarks.scenarios.generic_scenario import EagerCLStream
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_classification_dataset

    column = {label: k for k, label in enumerate(space)}
    targets = torch.tensor([column[int(t)] for t in labels_of(exp.data)])
    dataset = _make_taskaware_classification_dataset(Labelled(exp, targets, draw), task_labels=0)
    out: Any = DatasetExperience(dataset=dataset, current_experience=position)
    out.classes_in_this_experience = sorted({column[label] for label in exp.space})
    out.previous_classes = {column[label] for label in before}
    out.classes_seen_so_far = sorted(column.values())
    out.future_classes = set()
    out.task_labels, out.task_label = [0], 0
    out.origin_stream = EagerCLStream("train", [])
    return out
