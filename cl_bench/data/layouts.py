"""Small synthetic copies of data sets in the layouts in which they are published, to try a configuration without its data."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .classes import CIFAR10, CIFAR100
from .drawn import CLASSES, PER_CLASS, class_folders, pixels
from .layouts_named import c3box, mtil, x_tail

__all__ = ["LAYOUTS", "WNIDS", "classes_of", "heads_of", "synthetic"]

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")  # the first of ImageNet, for heads that know classes by name

Options = Mapping[str, Any]


def synthetic(scenario: str, root: Path, options: Options) -> dict[str, Any]:
    """Write a small copy of a scenario's data below ``root``.

    Args:
        scenario: its registered name.
        options: the scenario's own, of which a layout may need some (corruptions, severity).

    Returns:
        The options that name the copy.

    Raises:
        UserError: a scenario whose layout is not known here.
    """
    if scenario not in LAYOUTS:
        raise UserError(f"there is no synthetic copy of the data of {scenario}: a dry run knows {', '.join(sorted(LAYOUTS))}.")
    root.mkdir(parents=True, exist_ok=True)
    return LAYOUTS[scenario](root, options)


def classes_of(scenario: str) -> int:
    """How many classes the copy of a scenario's data has."""
    return 100 if scenario == "split_cifar100" else CLASSES


def heads_of(scenario: str) -> tuple[str, ...]:
    """The classes by name of a head that answers for the copy of a stream."""
    return {"cifar10c": CIFAR10, "cifar100c": CIFAR100}.get(scenario, WNIDS)


def _split(root: Path, options: Options) -> dict[str, Any]:
    for part, count in zip(("train", "test"), PER_CLASS, strict=True):
        class_folders(root / part, count)
    return {"root": str(root)}


def _cifar(root: Path, options: Options) -> dict[str, Any]:
    """Parquet files as on the hub, every class of the data set: its number is not an option."""
    _parquet(root, 100)
    return {"root": str(root)}


def _parquet(root: Path, classes: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    for part, count in (("train", 2), ("test", 1)):
        rows, labels = [], []
        for label in range(classes):
            for number in range(count):
                buffer = io.BytesIO()
                Image.fromarray(pixels(label, number, count)).save(buffer, "PNG")
                rows.append({"bytes": buffer.getvalue(), "path": None})
                labels.append(label)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = "fine_label" if classes == 100 else "label"
        pq.write_table(pa.table({"img": pa.array(rows, kind), column: pa.array(labels, pa.int64())}),
                       root / f"{part}-00000.parquet")


def _cifar_c(classes: int) -> Callable[[Path, Options], dict[str, Any]]:
    """Arrays of one severity with every class, and the clean data set beside them."""
    def make(root: Path, options: Options) -> dict[str, Any]:
        (root / "corrupted").mkdir()
        for k, corruption in enumerate(options["corruptions"]):
            images = [pixels(label, n, 2, k) for n in range(2) for label in range(classes)]
            np.save(root / "corrupted" / f"{corruption}.npy", np.stack(images))
        np.save(root / "corrupted/labels.npy", np.tile(np.arange(classes), 2))
        _parquet(root, classes)
        return {"root": str(root / "corrupted"), "clean_root": str(root)}

    return make


def _core50(root: Path, options: Options) -> dict[str, Any]:
    for session in range(1, 12):
        class_folders(root / f"s{session}", PER_CLASS[1], [f"o{k}" for k in range(1, CLASSES + 1)], session)
    return {"root": str(root)}


def _domains(*names: str) -> Callable[[Path, Options], dict[str, Any]]:
    def make(root: Path, options: Options) -> dict[str, Any]:
        for k, name in enumerate(names):
            class_folders(root / name, sum(PER_CLASS), domain=k)
        return {"root": str(root)}

    return make


def _own_folders(root: Path, options: Options) -> dict[str, Any]:
    """Folders of one's own; of domains as many as an order names, or two."""
    if options.get("split") != "domain":
        return _split(root, options)
    order = options.get("order")
    for part, count in zip(("train", "test"), PER_CLASS, strict=True):
        for k in range(len(order) if isinstance(order, list) else 2):
            class_folders(root / part / f"domain_{k}", count, domain=k)
    return {"root": str(root)}


def _domainnet(root: Path, options: Options) -> dict[str, Any]:
    for k, domain in enumerate(("real", "quickdraw", "painting", "sketch", "infograph", "clipart")):
        names = class_folders(root / domain, sum(PER_CLASS), domain=k)
        for part, numbers in (("train", range(PER_CLASS[0])), ("test", range(PER_CLASS[0], sum(PER_CLASS)))):
            lines = [f"{domain}/{name}/{n}.png {label}" for label, name in enumerate(names) for n in numbers]
            (root / f"{domain}_{part}.txt").write_text("\n".join(lines))
    return {"root": str(root)}


def _imagenet_c(root: Path, options: Options) -> dict[str, Any]:
    """The corruptions that are asked for, the list of classes and images, and a source."""
    for k, corruption in enumerate(options["corruptions"]):
        class_folders(root / "corrupted" / corruption / str(options["severity"]), PER_CLASS[1], WNIDS, k)
    (root / "classes.txt").write_text("\n".join(WNIDS))
    (root / "images.txt").write_text("\n".join(f"{name}/{n}.png" for name in WNIDS for n in range(PER_CLASS[1])))
    class_folders(root / "train", PER_CLASS[0], WNIDS, 99)
    return {"root": str(root / "corrupted"), "class_list": str(root / "classes.txt"),
            "image_list": str(root / "images.txt"), "clean_root": str(root / "train")}


LAYOUTS: dict[str, Callable[[Path, Options], dict[str, Any]]] = {
    "split_cifar100": _cifar,
    **dict.fromkeys(("split_imagenet_r", "split_imagenet_a", "split_cub200", "split_objectnet", "split_omnibenchmark",
                     "split_vtab"), _split),
    "c3box": c3box,
    "class_folders": _own_folders,
    "core50": _core50,
    "domainnet": _domainnet,
    "office_home": _domains("Art", "Clipart", "Product", "Real World"),
    "pacs": _domains("photo", "art_painting", "cartoon", "sketch"),
    "imagenet_c": _imagenet_c,
    "cifar10c": _cifar_c(10),
    "cifar100c": _cifar_c(100),
    "mtil": mtil,
    "x_tail": x_tail,
}
