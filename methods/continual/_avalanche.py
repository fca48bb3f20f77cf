"""What an Avalanche strategy is given: a network, data with columns as targets, and an experience that says its classes.

Avalanche is imported inside, so that naming another method does not load it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cl_bench import Backbone, Experience, Head, LabelSpace
from cl_bench.data.tensor import as_float, labels_of


class Columns(Head):
    """Avalanche's IncrementalClassifier, which grows as the strategy meets classes; columns in order of arrival."""

    def __init__(self, num_features: int, masking: bool) -> None:
        super().__init__(num_features)
        from avalanche.models import IncrementalClassifier

        self.layer = IncrementalClassifier(num_features, initial_out_features=2, masking=masking)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.to(next(self.layer.parameters()).dtype))  # what Avalanche grows is in single precision


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
