"""Small synthetic copies of the data sets that models with a text side are measured on: C3Box's, MTIL's and X-TAIL's."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drawn import CLASSES, PER_CLASS, class_folders, picture, pixels

__all__ = ["c3box", "mtil", "x_tail"]

Options = Mapping[str, Any]
NAMES = tuple(f"kind {k}" for k in range(CLASSES))


def c3box(root: Path, options: Options) -> dict[str, Any]:
    """Class folders in train and val, and the toolbox's file of names. Of CIFAR-100, whose number of classes is no option, a
    data set of folders stands in its place."""
    data = "cub200" if options.get("data", "cifar224") == "cifar224" else str(options["data"])
    for part, count in zip(("train", "val"), PER_CLASS, strict=True):
        class_folders(root / part, count)
    (root / "labels.json").write_text(json.dumps({data: list(NAMES)}))
    found: dict[str, Any] = {"root": str(root), "names": str(root / "labels.json"), "data": data}
    return {**found, "order": 1993} if isinstance(options.get("order"), list) else found  # a list is of all classes


def mtil(root: Path, options: Options) -> dict[str, Any]:
    """Those of MTIL's sets whose files torchvision takes as they are; it asks digests of those of CIFAR-100 and Flowers."""
    _aircraft(root / "fgvc-aircraft-2013b" / "data")
    _jpegs(root / "caltech101" / "101_ObjectCategories" / "{}" / "image_{:04d}.jpg", 1)
    (root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir()
    _textures(root / "dtd" / "dtd")
    _jpegs(root / "eurosat" / "2750" / "{}" / "{}_{}.jpg", 0, ("Forest", "Highway", "River", "SeaLake"))
    _food(root / "food-101")
    _mnist(root / "MNIST" / "raw")
    _pets(root / "oxford-iiit-pet")
    _cars(root / "stanford_cars")
    _jpegs(root / "SUN397" / "a" / "{}" / "sun_{}.jpg", 0)
    (root / "SUN397" / "ClassName.txt").write_text("".join(f"/a/kind_{k}\n" for k in range(CLASSES)))
    kept = ["aircraft", "caltech101", "dtd", "eurosat", "food", "mnist", "pets", "cars", "sun397"]
    return {"root": str(root), "sets": [s for s in options.get("sets") or kept if s in kept]}


def x_tail(root: Path, options: Options) -> dict[str, Any]:
    """All ten sets: CoOp's split files with the images they name, Aircraft's lists, MNIST."""
    _aircraft(root / "fgvc_aircraft")
    _mnist(root / "MNIST" / "raw")
    for folder, split, images in (
        ("caltech-101", "Caltech101", "101_ObjectCategories"), ("dtd", "DescribableTextures", "images"),
        ("eurosat", "EuroSAT", "2750"), ("oxford_flowers", "OxfordFlowers", "jpg"), ("food-101", "Food101", "images"),
        ("oxford_pets", "OxfordPets", "images"), ("stanford_cars", "StanfordCars", ""), ("sun397", "SUN397", "SUN397"),
    ):  # fmt: skip
        items = []
        for label, name in enumerate(NAMES):
            for number in range(sum(PER_CLASS)):
                picture(root / folder / images / name / f"{number}.jpg", label, number)
                items.append([f"{name}/{number}.jpg", label, name])
        cut = [k for k in range(len(items)) if k % sum(PER_CLASS) < PER_CLASS[0]]
        held = {"train": [items[k] for k in cut], "val": [], "test": [i for k, i in enumerate(items) if k not in cut]}
        (root / folder / f"split_zhou_{split}.json").write_text(json.dumps(held))
    return {"root": str(root)}


def _jpegs(pattern: Path, first: int, names: Sequence[str] = ()) -> None:
    """Images of each class under a path with {} for its name, as often as it stands there, and the last for a number."""
    for label, name in enumerate(names or [f"kind_{k}" for k in range(CLASSES)]):
        for number in range(first, first + sum(PER_CLASS) + 4):  # a fifth is drawn as a test part
            picture(Path(str(pattern).format(*[name] * (str(pattern).count("{") - 1), number)), label, number)


def _lists(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Images below ``folder`` under names of their own; (name without ending, label) of both parts."""
    found: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label in range(CLASSES):
        for number in range(sum(PER_CLASS)):
            name = f"kind_{label}_{number}"
            picture(folder / f"{name}.jpg", label, number)
            found["train" if number < PER_CLASS[0] else "test"].append((name, label))
    return found


def _aircraft(where: Path) -> None:
    for part, items in _lists(where / "images").items():
        (where / f"images_variant_{part}.txt").write_text("".join(f"{name} {NAMES[k]}\n" for name, k in items))
    (where / "variants.txt").write_text("\n".join(NAMES))


def _textures(where: Path) -> None:
    (where / "labels").mkdir(parents=True)
    for part, numbers in (("train", range(PER_CLASS[0])), ("test", range(PER_CLASS[0], sum(PER_CLASS)))):
        lines = []
        for label in range(CLASSES):
            for number in numbers:
                picture(where / "images" / f"kind_{label}" / f"{number}.jpg", label, number)
                lines.append(f"kind_{label}/{number}.jpg")
        (where / "labels" / f"{part}1.txt").write_text("\n".join(lines))


def _food(where: Path) -> None:
    (where / "meta").mkdir(parents=True)
    for part, items in _lists(where / "images").items():
        held = {name: [n for n, k in items if NAMES[k] == name] for name in NAMES}
        (where / "meta" / f"{part}.json").write_text(json.dumps(held))


def _pets(where: Path) -> None:
    (where / "annotations").mkdir(parents=True)
    for part, items in _lists(where / "images").items():
        lines = [f"{name} {label + 1} 1 1" for name, label in items]
        (where / "annotations" / f"{'trainval' if part == 'train' else part}.txt").write_text("\n".join(lines))


def _mat(file: Path, content: dict[str, Any]) -> None:
    """A MATLAB file without the time at which it was written, which scipy puts into its first 116 bytes."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, content)
    file.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:])


def _cars(where: Path) -> None:
    (where / "devkit").mkdir(parents=True)
    for part, numbers in (("train", range(PER_CLASS[0])), ("test", range(PER_CLASS[0], sum(PER_CLASS)))):
        items = [(f"{label}_{number}.jpg", label) for label in range(CLASSES) for number in numbers]
        for name, label in items:
            picture(where / f"cars_{part}" / name, label, int(name[2]))
        told = np.array([(name, label + 1) for name, label in items], dtype=[("fname", object), ("class", object)])
        file = where / "devkit" / "cars_train_annos.mat" if part == "train" else where / "cars_test_annos_withlabels.mat"
        _mat(file, {"annotations": told})
    _mat(where / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES, dtype=object)})


def _mnist(where: Path) -> None:
    """IDX files with all ten digits: their number is no option."""
    where.mkdir(parents=True)
    for part, count in (("train", 4), ("t10k", 1)):
        y = np.repeat(np.arange(10, dtype=np.uint8), count)
        x = np.stack([pixels(int(label), k)[2:30, 2:30, 0] for k, label in enumerate(y)])
        head = [(0x00000803).to_bytes(4, "big"), *(int(n).to_bytes(4, "big") for n in x.shape)]
        (where / f"{part}-images-idx3-ubyte").write_bytes(b"".join(head) + x.tobytes())
        (where / f"{part}-labels-idx1-ubyte").write_bytes(
            (0x00000801).to_bytes(4, "big") + len(y).to_bytes(4, "big") + y.tobytes())
