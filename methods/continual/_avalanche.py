"""What an Avalanche strategy is given: a network, data with columns as targets, and an experience that says its classes.

Avalanche is imported inside, so that naming another method does not load it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from cl_bench import Backbone, Experience, Head, LabelSpace, TensorData
from cl_bench.data.tensor import as_float, labels_of
from cl_bench.state import parts


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


class Labelled:
    """An experience's images, float in [0, 1] and augmented where the scenario augments, with columns as targets.

    Avalanche's buffers are views, by index, of whole experiences. ``keep`` lets go of the images that no view shows, so
    that a buffer of twenty holds twenty; indices go on meaning what they meant.
    """

    def __init__(self, exp: Experience, targets: Tensor, generator: torch.Generator) -> None:
        self.data, self.augment, self.generator = exp.data, exp.augment, generator
        self.targets = targets.tolist()
        self.at: dict[int, int] | None = None  # index -> row of what is left of the data; None: all of it is there
        self.asked: set[int] | None = None  # the indices that views show, while they are looked up

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.asked is not None:
            self.asked.add(index)
            return torch.zeros(()), self.targets[index]
        row = index if self.at is None else self.at[index]
        x = as_float(torch.as_tensor(self.data[row][0]))
        return (x if self.augment is None else self.augment(x[None], self.generator)[0]), self.targets[index]

    @property
    def held(self) -> int:
        """How many images lie here."""
        return len(self.data)  # type: ignore[arg-type]

    def keep(self, indices: list[int]) -> None:
        """Let go of the images at all other indices."""
        rows = indices if self.at is None else [self.at[index] for index in indices]
        whole = self.data
        if isinstance(whole, TensorData):
            self.data = TensorData(whole.x[rows], whole.y[rows])
        else:
            self.data = Subset(whole, rows)
        self.at = {index: row for row, index in enumerate(indices)}


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


def release(strategy: Any) -> None:
    """Let go of the experience that was just trained: what the strategy means to keep, its buffers show."""
    for name in [n for n in vars(strategy) if n.startswith("mb")] + ["experience", "dataloader", "adapted_dataset", "loss"]:
        setattr(strategy, name, None)  # the last batch too, and what was drawn beside it
    views, leaves, _ = found_in(strategy, ())
    for leaf in leaves:
        leaf.asked = set()
    try:
        for view in views:
            for k in range(len(view)):
                view[k]
        shown = [sorted(leaf.asked or ()) for leaf in leaves]
    finally:
        for leaf in leaves:
            leaf.asked = None
    for leaf, indices in zip(leaves, shown, strict=True):
        leaf.keep(indices)


def held_images(strategy: Any, image: tuple[int, ...]) -> int:
    """Images that a strategy holds, in data sets that its buffers show or as tensors of the ``image``'s shape (GEM's and
    GSS's memories, lists of iCaRL's), each once."""
    _, leaves, tensors = found_in(strategy, image)
    return sum(leaf.held for leaf in leaves) + sum(len(t) for t in tensors)


def found_in(root: Any, image: tuple[int, ...]) -> tuple[list[Any], list[Labelled], list[Tensor]]:
    """All of Avalanche's data sets, our own under them, and batches (n, *image) of plain tensors, each object once."""
    from avalanche.benchmarks.utils import AvalancheDataset

    views, leaves, tensors = list[Any](), list[Labelled](), list[Tensor]()
    todo, seen, alive = [root], set[int](), list[Any]()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        alive.append(part)  # an id is unique only while its object lives
        if isinstance(part, Labelled):
            leaves.append(part)
        elif isinstance(part, Tensor):
            if part.ndim == len(image) + 1 and tuple(part.shape[1:]) == image and not isinstance(part, nn.Parameter):
                tensors.append(part)
        else:
            if isinstance(part, AvalancheDataset):
                views.append(part)
            todo.extend(parts(part, everything=True))
    return views, leaves, tensors
