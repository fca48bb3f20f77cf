"""What scenarios over the user's own files share: the folder they need, the labels of its class folders, an order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cl_bench import Experience, LabelSpace, TestSet, UserError
from cl_bench.data.files import brief, existing_folder
from cl_bench.data.folder import ImageFiles, Listing, class_dirs, in_folders
from cl_bench.data.lists import read_class_list

from ._data import numbers, view

MOST = 5  # names that one sentence lists
IMAGENET = 1000


def need_root(root: str, what: str, layout: str) -> Path:
    """The data set's folder.

    Raises:
        UserError: if none is named or it does not exist, saying what it should hold.
    """
    if not root:
        raise UserError(f"{what} needs its data: set root to a folder with {layout}.")
    return existing_folder(root, f"it should hold {layout}.")


def class_folders(folder: Path, labels: dict[str, int] | None, root: Path) -> dict[str, int]:
    """Label of every class folder: from ``labels`` (folder name to label), the number that the folder is called, or
    the rank of its name.

    Raises:
        UserError: no folders, or one that the list does not know.
    """
    names = class_dirs(folder, root)
    if labels is not None:
        unknown = [n for n in names if n not in labels]
        if unknown:
            raise UserError(f'"{folder / unknown[0]}" is a class that class_list does not have: check both.')
        return {n: labels[n] for n in names}
    if all(n.isascii() and n.isdigit() for n in names):
        numbered = {n: int(n) for n in names}
        if len(set(numbered.values())) < len(names):
            raise UserError(f'"{folder}" has class folders of the same number ("1" and "01"): rename one of them.')
        return numbered
    return {n: k for k, n in enumerate(names)}


def imagenet_labels(folder: Path, class_list: str, what: str, root: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label of every class folder of ImageNet's kind, and the readable names of the list: from ``class_list``, from
    folders that are called by their label, or by rank where all 1,000 are there; ``root`` is the folder that the user names.

    Raises:
        UserError: some of the classes without a list: their ranks are not the labels that a classifier of 1,000 knows.
    """
    labels, names = read_class_list(class_list, class_dirs(folder, root)) if class_list else (None, ())
    here = class_folders(folder, labels, root)
    if labels is None and len(here) != IMAGENET and not all(n.isascii() and n.isdigit() for n in here):
        raise UserError(
            f'"{folder}" holds {len(here)} classes where {what} has ImageNet\'s 1,000: set class_list to a file with the '
            "1,000 in label order (LOC_synset_mapping.txt or imagenet_class_index.json), so that theirs are found."
        )
    return here, names


def imagenet_source(root: str, classes: Mapping[str, int], space: LabelSpace, size: int, resize: int) -> Experience | None:
    """The labelled images of ``<root>/<class>/``, for the classes that a stream has; None where no folder is named.

    Raises:
        UserError: a class of the stream that it lacks.
    """
    if not root:
        return None
    where = existing_folder(root, "it should hold one folder of ImageNet's training images per class.")
    if missing := sorted(set(classes) - set(class_dirs(where))):
        raise UserError(f'"{where}" lacks the class folders {listed(missing)} of the stream: name ImageNet\'s training images '
                        "with clean_root.")
    return Experience("ImageNet", space, ImageFiles(lambda: in_folders(where, classes, where), where, size, resize))


def given(names: object, source: object) -> frozenset[str]:
    """The words of ``gives`` for a stream that tells class names, and one that has labelled source data."""
    return frozenset(word for word, there in (("names", names), ("source", source)) if there)


def short_list(names: Sequence[str]) -> list[str]:
    """A note where a class list is not ImageNet's: labels are then no rows of a classifier of 1,000."""
    if not names or len(names) == IMAGENET:
        return []
    return [f"labels follow the {len(names)} classes of class_list, not ImageNet's 1,000: the classifier must be of these."]


def same_classes(first: Iterable[str], second: Iterable[str], where: str, other: str) -> tuple[list[str], list[str]]:
    """Class folders that ``other`` lacks, and those that it has beside them.

    Raises:
        UserError: if it has both: then a folder was renamed, or the two are not of one data set.
    """
    missing, extra = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    if missing and extra:
        raise UserError(
            f'"{other}" has class folders {listed(extra)} that "{where}" has not, and lacks {listed(missing)}: give both '
            "the same names."
        )
    return missing, extra


def drawn_part(folder: Path, classes: Mapping[str, int], part: Literal["train", "test"], *position: object,
               root: Path) -> Listing:
    """Every class split 80 / 20 by a draw that depends on the position and the class's name alone, for data that publish no
    split; ``root`` is the folder that the user names.

    Raises:
        UserError: a class of a single image, which cannot be in both parts.
    """
    files, labels = [], []
    for name, label in classes.items():
        every = in_folders(folder, {name: label}, root)[0]
        if len(every) < 2:
            raise UserError(f'"{folder / name}" holds one image, which cannot be split into training and test images: give two '
                            "or more.")
        order = numbers(*position, name).permutation(len(every))
        cut = max(1, len(every) // 5)
        files += [every[k] for k in sorted(order[:cut] if part == "test" else order[cut:])]
        labels += [label] * (cut if part == "test" else len(every) - cut)
    return files, labels


def one_folder_per_label(lists: Mapping[str, Listing]) -> dict[int, str]:
    """Name of the folder that every label's images lie in.

    Raises:
        UserError: a label of two folders: then lists of two splits were mixed up.
    """
    found: dict[int, tuple[str, str]] = {}
    for name, (files, labels) in lists.items():
        for file, label in zip(files, labels, strict=True):
            folder, first = found.setdefault(label, (file.parent.name, name))
            if folder != file.parent.name:
                raise UserError(f'label {label} is "{folder}" in {first} and "{file.parent.name}" in {name}: take lists of '
                                "one data set.")
    return {label: folder for label, (folder, _) in found.items()}


def listed(names: Iterable[object]) -> str:
    """Some names of many, in quotes."""
    every = [f'"{brief(str(name))}"' for name in names]
    return ", ".join(every[:MOST]) + (f" and {len(every) - MOST} more" if len(every) > MOST else "")


def shuffled(test: TestSet, seed: int, *position: object) -> TestSet:
    """``test`` in a random order that depends on the seed and the position alone."""
    return view(test, numbers("files", seed, *position).permutation(len(test.data)))  # type: ignore[arg-type]
