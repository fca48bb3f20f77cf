"""Small data sets in the layouts in which they are published, each with the command line that names it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cl_toys import mnist_files
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850")  # the first three of ImageNet

def picture(path: Path, value: int, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value % 256, 90, 30)).save(path, compress_level=0)  # every picture has one size in bytes


def class_folders(root: Path, *where: str, n: int = 2) -> None:
    for k, part in enumerate(where):
        for c, name in enumerate(WNIDS):
            for i in range(n):
                picture(root / part / name / f"{i}.png", 40 * c + 7 * i + k)


def cifar_c(root: Path) -> list[str]:
    for k, name in enumerate(("fog", "snow", "original")):
        np.save(root / f"{name}.npy", np.full((20, 32, 32, 3), k, np.uint8))
    np.save(root / "labels.npy", np.arange(20) % 10)
    return ["cifar10c", "--scenario.root", str(root), "--scenario.corruptions", "fog,snow"]


def cifar_101(root: Path) -> list[str]:
    np.save(root / "cifar10.1_v6_data.npy", np.zeros((12, 32, 32, 3), np.uint8))
    np.save(root / "cifar10.1_v6_labels.npy", np.arange(12, dtype=np.int32) % 10)
    return ["cifar10_1", "--scenario.root", str(root)]


def imagenet_list(root: Path) -> Path:
    (root / "classes.txt").write_text("\n".join(f"{w} name of {w}" for w in WNIDS))
    return root / "classes.txt"


def imagenet_c(root: Path) -> list[str]:
    class_folders(root / "c", "fog/5", "snow/5")
    (root / "images.txt").write_text("\n".join(f"{w}/{i}.png" for w in WNIDS for i in (1, 0)))
    return ["imagenet_c", "--scenario.root", str(root / "c"), "--scenario.corruptions", "fog,snow",
            "--scenario.class_list", str(imagenet_list(root)), "--scenario.image_list", str(root / "images.txt")]


def imagenet_r(root: Path) -> list[str]:
    class_folders(root / "r", "")
    return ["imagenet_r", "--scenario.root", str(root / "r"), "--scenario.class_list", str(imagenet_list(root))]


def domainnet_126(root: Path, name: str = "domainnet126") -> list[str]:
    for domain in ("real", "clipart", "painting", "sketch", "infograph"):
        class_folders(root, domain)
        lines = [f"{domain}/{w}/{i}.png {c}" for c, w in enumerate(WNIDS) for i in (0, 1)]
        (root / "lists").mkdir(exist_ok=True)
        (root / "lists" / f"{domain}_list.txt").write_text("\n".join(lines))
    return [name, "--scenario.root", str(root), "--scenario.lists", str(root / "lists")]


def imagenet_d109(root: Path) -> list[str]:
    (root / "map.txt").write_text("310\n309\n4")
    return [*domainnet_126(root, "imagenet_d109"), "--scenario.label_map", str(root / "map.txt")]


def ccc(root: Path) -> list[str]:
    folder = root / "baseline_20_transition+speed_2000_seed_43"
    folder.mkdir()
    with tarfile.open(folder / "serial_00000.tar", "w") as tar:
        for i in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (224, 224), (40 * i, 3, 3)).save(buffer, "JPEG")
            for name, content in ((f"{i:06d}.input.jpg", buffer.getvalue()), (f"{i:06d}.output.cls", b"%d" % i)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return ["ccc", "--scenario.root", str(root)]


def split_mnist(root: Path) -> list[str]:
    mnist_files(root)
    return ["split_mnist", "--scenario.root", str(root)]


def split_folders(root: Path) -> list[str]:
    class_folders(root, "train", "test", n=3)
    return ["split_imagenet_r", "--scenario.root", str(root), "--scenario.increment", "2"]


def office_home(root: Path) -> list[str]:
    class_folders(root, "Art", "Clipart", "Product", "Real World", n=5)
    return ["office_home", "--scenario.root", str(root)]


def domainnet(root: Path) -> list[str]:
    for domain in ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"):
        class_folders(root, domain)
        for i, part in enumerate(("train", "test")):
            (root / f"{domain}_{part}.txt").write_text("\n".join(f"{domain}/{w}/{i}.png {c}" for c, w in enumerate(WNIDS)))
    return ["domainnet", "--scenario.root", str(root)]


def c3box(root: Path) -> list[str]:
    class_folders(root, "train", "val", n=3)
    return ["c3box", "--scenario.data", "cub200", "--scenario.root", str(root), "--scenario.increment", "2",
            "--scenario.size", "16"]


def own_folders(root: Path) -> list[str]:
    class_folders(root, "", n=5)
    return ["class_folders", "--scenario.root", str(root), "--scenario.increment", "2"]


def own_lists(root: Path) -> list[str]:
    class_folders(root, "images", n=3)
    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        lines = [f"images/{w}/{i}.png {c}" for c, w in enumerate(WNIDS) for i in numbers]
        (root / f"{part}.txt").write_text("\n".join(lines))
    return ["image_list", "--scenario.root", str(root), "--scenario.lists", str(root), "--scenario.increment", "2"]


def imagenet(root: Path) -> list[str]:
    class_folders(root / "val", "")
    class_folders(root / "train", "")
    return ["imagenet", "--scenario.root", str(root / "val"), "--scenario.class_list", str(imagenet_list(root)),
            "--scenario.clean_root", str(root / "train")]


MAKERS: list[Callable[[Path], list[str]]] = [cifar_c, cifar_101, imagenet_c, imagenet_r, domainnet_126, imagenet_d109, ccc,
                                             split_mnist, split_folders, office_home, domainnet, c3box, own_folders,
                                             own_lists, imagenet]
