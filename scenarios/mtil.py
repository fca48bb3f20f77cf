"""MTIL: eleven data sets through torchvision's classes, each answered among its own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from cl_bench import UserError
from cl_bench.data.folder import ImageFiles, stay_inside
from cl_bench.data.vision import torchvision_data
from cl_bench.ranges import LegacySeed, Pixels, Seed, Whole

from ._vlm_sets import Loaded, NamedSets
from ._vlm_words import CALTECH101, EUROSAT, TEMPLATES
from .split import Answers

__all__ = ["Mtil"]

FOLDERS = {  # of torchvision's classes, below the root
    "FGVCAircraft": "fgvc-aircraft-2013b", "Caltech101": "caltech101", "DTD": "dtd", "EuroSAT": "eurosat",
    "Flowers102": "flowers-102", "Food101": "food-101", "OxfordIIITPet": "oxford-iiit-pet", "StanfordCars": "stanford_cars",
    "SUN397": "SUN397",
}  # fmt: skip
# torchvision's class, the keyword that names a part, its training and test values; None = split 80 to 20 by seed 42.
SETS: dict[str, tuple[str, str, tuple[str, str] | None]] = {
    "aircraft": ("FGVCAircraft", "split", ("train", "test")),
    "caltech101": ("Caltech101", "", None),
    "cifar100": ("CIFAR100", "", None),
    "dtd": ("DTD", "split", ("train", "test")),
    "eurosat": ("EuroSAT", "", None),
    "flowers": ("Flowers102", "split", ("train", "test")),
    "food": ("Food101", "split", ("train", "test")),
    "mnist": ("MNIST", "", None),
    "pets": ("OxfordIIITPet", "split", ("trainval", "test")),
    "cars": ("StanfordCars", "split", ("train", "test")),
    "sun397": ("SUN397", "", None),
}
SECOND = ("cars", "food", "mnist", "pets", "flowers", "sun397", "aircraft", "caltech101", "dtd", "eurosat", "cifar100")
SPLIT_SEED = 42


class Mtil(NamedSets):
    """Multi-domain task-incremental learning: 11 data sets, 1,201 classes; the set of a test image is known.

    Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models", ICCV 2023
    (Thunderbeee/ZSCL): the training parts named there (no validation part), an 80/20 split with torch's generator and seed
    42 for Caltech101, EuroSAT and SUN397; training reads a set's first template, evaluation the mean over all. SUN397's
    files are sorted first: the released split depends on the file system's order.

    Args:
        root: torchvision's root of all sets (``fgvc-aircraft-2013b/``, ``caltech101/``, ``cifar-100-python/``, ``dtd/``,
            ``eurosat/``, ``flowers-102/``, ``food-101/``, ``MNIST/``, ``oxford-iiit-pet/``, ``stanford_cars/``, ``SUN397/``).
        shots: training images of a class; 0 = all, 5 = the few-shot setting of Yu et al., CVPR 2024.
        seed: of the few-shot draw.
        order: "I" or "II" as published, a number, or a list of positions.
        answers: ``task`` as published; ``all`` answers among all classes.
        sets: some of the sets; None = all.
        held_out: those of them that nothing teaches, measured among their own classes.
        size: side of the images in pixels.
    """

    name: ClassVar[str] = "mtil"
    paper: ClassVar[str] = "Zheng et al. (ZSCL), ICCV 2023"
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {"I": tuple(SETS), "II": SECOND}
    layout: ClassVar[str] = "the eleven data sets as torchvision lays them out"

    def __init__(
        self,
        *,
        root: str = "",
        shots: Whole = 0,
        seed: Seed = 0,
        order: str | LegacySeed | list[int] | None = "I",
        answers: Answers = "task",
        sets: list[str] | None = None,
        held_out: list[str] | None = None,
        size: Pixels = 224,
    ) -> None:
        super().__init__(root, shots, seed, order, answers, sets, held_out, size)

    def templates(self, name: str) -> tuple[str, ...]:
        return TEMPLATES[name]

    def load(self, name: str, root: Path) -> Loaded:
        kind, keyword, parts = SETS[name]
        if kind in ("CIFAR100", "MNIST"):
            train, test = (torchvision_data(kind, root, part) for part in ("train", "test"))  # type: ignore[arg-type]
            return Loaded(train.data, test.data, tuple(n.replace("_", " ") for n in train.names))
        if parts is not None:
            found = [listing(opened(kind, root, **{keyword: part})) for part in parts]
            train_files, test_files = (self._files(f[0], f[1], root) for f in found)
            return Loaded(train_files, test_files, names_of(name, found[0][2]))
        files, labels, classes = listing(opened(kind, root))
        ranked = sorted(range(len(files)), key=lambda k: str(files[k])) if kind == "SUN397" else list(range(len(files)))
        sizes = [int(0.8 * len(files)), len(files) - int(0.8 * len(files))]
        split = torch.utils.data.random_split(ranked, sizes, torch.Generator().manual_seed(SPLIT_SEED))  # type: ignore[arg-type]
        halves = [[ranked[i] for i in half.indices] for half in split]
        first, second = (self._files([files[k] for k in half], [labels[k] for k in half], root) for half in halves)
        return Loaded(first, second, names_of(name, classes))

    def _files(self, files: list[Path], labels: list[int], root: Path) -> ImageFiles:
        return ImageFiles(lambda: (files, labels), root, self.size, self.size)


def opened(kind: str, root: Path, **options: str) -> Any:
    """torchvision's data set.

    Raises:
        UserError: its files are not all there, or a link among them leads elsewhere.
    """
    from torchvision import datasets

    stay_inside(root / FOLDERS[kind], root)
    try:
        return getattr(datasets, kind)(str(root), **options)
    except Exception as error:  # what damaged lists raise (IndexError, scipy's own) is nowhere promised
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f'{kind} is not complete in "{root}" ({reason}): unpack it there as torchvision does.') from error


def listing(data: Any) -> tuple[list[Path], list[int], list[str]]:
    """Files, labels and class names of one of torchvision's data sets of files."""
    if hasattr(data, "samples"):  # ImageFolder
        files, labels = zip(*data.samples, strict=True)
    elif hasattr(data, "_samples"):
        files, labels = zip(*data._samples, strict=True)
    elif hasattr(data, "categories"):  # Caltech101
        labels = tuple(data.y)
        files = tuple(
            Path(data.root) / "101_ObjectCategories" / data.categories[y] / f"image_{i:04d}.jpg"
            for i, y in zip(data.index, data.y, strict=True)
        )
        return [Path(f) for f in files], [int(y) for y in labels], [str(c) for c in data.categories]
    else:
        files, labels = getattr(data, "_image_files", None) or data._images, data._labels
    return [Path(f) for f in files], [int(y) for y in labels], [str(c) for c in data.classes]


def names_of(name: str, classes: list[str]) -> tuple[str, ...]:
    """Published names: those of torchvision without underscores, but for two sets that have names of their own."""
    known = {"caltech101": CALTECH101, "eurosat": EUROSAT}.get(name, {})
    return tuple(known.get(c, c.replace("_", " ")) for c in classes)
