"""What the classes of published data sets are called, where neither files nor weights spell it out alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["CIFAR10", "CIFAR100", "called", "numbered"]

# Fine labels of CIFAR-100 in label order, as its authors' meta file names them.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


def numbered(ids: Iterable[int]) -> tuple[str, ...]:
    """ImageNet's 1,000 classes by their published numbers: "imagenet-1k 0" is the tench."""
    return tuple(f"imagenet-1k {i}" for i in ids)


def called(folders: Mapping[str, int]) -> tuple[str, ...]:
    """Names of ImageNet's classes in ascending order of label, from their folders: the folder's own (a WordNet id), or
    the number that it is called by, as in ImageNet-V2."""
    names = sorted(folders, key=folders.__getitem__)
    return numbered(int(n) for n in names) if all(n.isdigit() for n in names) else tuple(names)
