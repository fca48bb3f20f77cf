"""A scenario's data, walked once before any work: what cannot be right is refused, what is odd is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..types import Experience, LabelSpace, TestSet
from .labels import labels_of

__all__ = ["check_data"]

_NAMED = 5  # classes that one sentence lists


class Described(Protocol):
    """What of a scenario is walked over."""

    answers: Any

    def experiences(self) -> Sequence[Experience]: ...
    def test_sets(self) -> Sequence[TestSet]: ...
    def stream(self) -> Sequence[TestSet]: ...
    def notes(self) -> Sequence[str]: ...


def check_data(scenario: Described) -> list[str]:
    """Sentences for the record's warnings: classes without images on one side, and the scenario's own notes.

    Labels are read, and of every data set one item; images are not decoded otherwise.

    Raises:
        UserError: a part without images, labels that are no class numbers or not among the part's classes, images that
            no network takes, one id for two classes, tasks that all have the same labels.
    """
    experiences, tests = list(scenario.experiences()), list(scenario.test_sets())
    learned = [_present("experience", e) for e in experiences]
    tested = [_present("test set", t) for t in tests]
    for segment in scenario.stream():
        _present("stream segment", segment)
    _one_name_per_id([(e.name, e.space) for e in experiences] + [(t.name, t.space) for t in tests])
    _no_folding(scenario, experiences)
    return [*_one_sided(experiences, learned, tests, tested), *scenario.notes()]


def _present(kind: str, part: Experience | TestSet) -> set[int]:
    """The classes that a part holds images of, each of them among its own."""
    told = f'{kind} "{part.name}"'
    try:
        n = len(part.data)  # type: ignore[arg-type]
    except TypeError as fault:
        raise UserError(f"The data of {told} have no length: give a data set with __len__ and __getitem__.") from fault
    if n == 0:
        raise UserError(f"{told[0].upper()}{told[1:]} holds no images: check its data, or leave it out.")
    try:
        y = labels_of(part.data)
    except UserError as fault:
        raise UserError(f"{told[0].upper()}{told[1:]}: {fault}") from fault
    foreign = ~torch.isin(y, torch.tensor(part.space.ids, dtype=torch.int64))
    if bool(foreign.any()):
        row = int(foreign.nonzero()[0])
        raise UserError(
            f"{told[0].upper()}{told[1:]} holds label {int(y[row])} (row {row}; {int(foreign.sum())} of {n} rows), which is "
            f"not among its classes {_some(part.space.ids)}: give its space all classes that occur."
        )
    _usable(told, part.data[0])
    return set(y.unique().tolist())


def _usable(told: str, item: Any) -> None:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise UserError(f"The items of {told} are no pairs (x, y): give each image with its label.")
    try:
        x = torch.as_tensor(item[0])
    except (TypeError, ValueError, RuntimeError) as fault:
        raise UserError(f"The images of {told} are {type(item[0]).__name__}, no tensors: convert them.") from fault
    if x.is_floating_point() and x.ndim == 3 and _unlike_image(x):
        raise UserError(f"The images of {told} leave [0, 1]: give uint8, or float in [0, 1]; a backbone normalises itself.")
    if x.is_floating_point() and bool(x.isnan().any()):
        raise UserError(f"The first item of {told} holds NaN: clean the data.")


def _unlike_image(x: Tensor) -> bool:
    return len(x) in (1, 3) and (float(x.min()) < -1e-4 or float(x.max()) > 1 + 1e-4)


def _one_name_per_id(spaces: Iterable[tuple[str, LabelSpace]]) -> None:
    names: dict[int, tuple[str, str]] = {}
    for part, space in spaces:
        for label, name in zip(space.ids, space.names, strict=False):
            first, where = names.setdefault(label, (name, part))
            if first != name:
                raise UserError(f'Label {label} is "{first}" in "{where}" and "{name}" in "{part}": give every class an id of '
                                "its own.")


def _no_folding(scenario: Described, experiences: Sequence[Experience]) -> None:
    """Labels 0, 1 in every task would make one class of several."""
    spaces = {frozenset(e.space.ids) for e in experiences}
    if len(experiences) > 1 and len(spaces) == 1 and scenario.answers != "all":
        raise UserError(
            f"All {len(experiences)} experiences have the same labels {_some(experiences[0].space.ids)}, which "
            f'answers="{scenario.answers}" takes for the same classes learned again and again: give the classes of every '
            'task ids of their own, or say answers="all" if they are the same classes in other domains.'
        )


def _one_sided(experiences: Sequence[Experience], learned: Sequence[set[int]], tests: Sequence[TestSet],
               tested: Sequence[set[int]]) -> list[str]:
    out = []
    sides = [("training", e.name, e.space, have) for e, have in zip(experiences, learned, strict=True)]
    sides += [("test", t.name, t.space, have) for t, have in zip(tests, tested, strict=True)]
    for kind, name, space, have in sides:
        absent = [label for label in space.ids if label not in have]
        if absent:
            out.append(f'{len(absent)} of the {len(space)} classes of "{name}" have no {kind} images: {_told(space, absent)}.')
    everything, measured = set().union(*learned), set().union(*tested)
    whole = LabelSpace()
    for space in [*(e.space for e in experiences), *(t.space for t in tests)]:
        whole = whole | space
    if experiences and tests:
        for what, labels in (("Learned and never measured", everything - measured),
                             ("Measured and never learned", measured - everything)):
            if labels:
                out.append(f"{what}: {_told(whole, sorted(labels))} ({len(labels)} of {len(whole)} classes).")
    return out


def _told(space: LabelSpace, labels: Sequence[int]) -> str:
    names = dict(zip(space.ids, space.names, strict=False))
    return _some([names.get(label, label) for label in labels])


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(str(v) for v in values[:_NAMED])
    return f"{shown} and {len(values) - _NAMED} more" if len(values) > _NAMED else shown
