"""X-TAIL: ten data sets in CoOp's splits, few shots each, answered among all 1,100 classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Literal

from cl_bench import LabelSpace, UserError
from cl_bench.data.files import below, brief, existing_file, is_file
from cl_bench.data.folder import ImageFiles
from cl_bench.data.lists import lines_of, one_label
from cl_bench.data.vision import torchvision_data
from cl_bench.ranges import Count, LegacySeed, Pixels, Seed

from ._vlm_sets import Loaded, NamedSets
from .split import Answers

__all__ = ["XTail"]

# Folder under the root, split file in it, folder of images in it, template.
SETS: dict[str, tuple[str, str, str, str]] = {
    "aircraft": ("fgvc_aircraft", "", "images", "a photo of a {}, a type of aircraft."),
    "caltech101": ("caltech-101", "split_zhou_Caltech101.json", "101_ObjectCategories", "a photo of a {}."),
    "dtd": ("dtd", "split_zhou_DescribableTextures.json", "images", "{} texture."),
    "eurosat": ("eurosat", "split_zhou_EuroSAT.json", "2750", "a centered satellite photo of {}."),
    "oxford_flowers": ("oxford_flowers", "split_zhou_OxfordFlowers.json", "jpg", "a photo of a {}, a type of flower."),
    "food101": ("food-101", "split_zhou_Food101.json", "images", "a photo of {}, a type of food."),
    "mnist": ("", "", "MNIST", 'a photo of the number: "{}".'),
    "oxford_pets": ("oxford_pets", "split_zhou_OxfordPets.json", "images", "a photo of a {}, a type of pet."),
    "stanford_cars": ("stanford_cars", "split_zhou_StanfordCars.json", "", "a photo of a {}."),
    "sun397": ("sun397", "split_zhou_SUN397.json", "SUN397", "a photo of a {}."),
}
GENERIC = "a photo of a {}."


class XTail(NamedSets):
    """Cross-domain task-agnostic incremental learning: 10 data sets, 16 shots of a class, one label space of 1,100 names.

    Xu et al., "Advancing Cross-domain Discriminability in Continual Learning of Vision-Language Models", NeurIPS 2024. The
    splits are CoOp's files (``split_zhou_*.json``: the training part is drawn from, validation is unused), Aircraft's own
    lists, MNIST through torchvision. Few-shot rows are drawn per class by ``seed`` alone; the released draws depend on all
    that was drawn before them.

    Args:
        root: folder of the data sets' folders, as CoOp lays them out.
        prompts: ``sets``: each class in its set's own sentence (CoDyRA); ``generic``: "a photo of a {}." for all, satellite
            and digit classes named with their context (RAIL). The two differ in every zero-shot number.
        shots: training images of a class.
        seed: of the draw.
        order: "published", a number or a list of positions.
        answers: ``all`` as published; ``task`` answers each set among its own classes.
        sets: some of the sets; None = all.
        held_out: those of them that nothing teaches, measured among their own classes.
        size: side of the images in pixels.
    """

    name: ClassVar[str] = "x_tail"
    paper: ClassVar[str] = "Xu et al. (RAIL), NeurIPS 2024"
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {"published": tuple(SETS)}
    layout: ClassVar[str] = "one folder per data set, as CoOp lays them out"

    def __init__(
        self,
        *,
        root: str = "",
        prompts: Literal["sets", "generic"] = "sets",
        shots: Count = 16,
        seed: Seed = 0,
        order: str | LegacySeed | list[int] | None = "published",
        answers: Answers = "all",
        sets: list[str] | None = None,
        held_out: list[str] | None = None,
        size: Pixels = 224,
    ) -> None:
        self.prompts = prompts
        super().__init__(root, shots, seed, order, answers, sets, held_out, size)

    def templates(self, name: str) -> tuple[str, ...]:
        return (GENERIC,) if self.prompts == "generic" else (SETS[name][3],)

    def space_of(self, name: str, ids: Sequence[int], names: tuple[str, ...]) -> LabelSpace:
        if self.prompts == "generic":
            names = tuple(in_context(name, n) for n in names)
            return LabelSpace(tuple(ids), names, (GENERIC,))
        if self.answers == "task":
            return LabelSpace(tuple(ids), names, self.templates(name))
        # Sets share a label space and not their sentences: the sentence becomes the name.
        return LabelSpace(tuple(ids), tuple(self.templates(name)[0].format(n) for n in names), ("{}",))

    def load(self, name: str, root: Path) -> Loaded:
        folder, split, images, _ = SETS[name]
        if name == "mnist":
            train, test = (torchvision_data("MNIST", root, part) for part in ("train", "test"))  # type: ignore[arg-type]
            return Loaded(train.data, test.data, train.names)
        if name == "aircraft":
            return self._aircraft(root / folder, root)
        return read_split(root / folder / split, root / folder / images, self.size, root)

    def _aircraft(self, folder: Path, root: Path) -> Loaded:
        names = lines_of(folder / "variants.txt", root)

        def part(which: str) -> ImageFiles:
            listed = folder / f"images_variant_{which}.txt"
            pairs = [line.split(" ", 1) for line in lines_of(listed, root)]
            if unknown := [p for p in pairs if len(p) != 2 or p[1] not in names]:
                raise UserError(f'"{listed}" names "{" ".join(unknown[0])}", which variants.txt has '
                                "not: take both from one release.")
            files = [below(folder / "images", f"{image}.jpg", f'"{listed}"') for image, _ in pairs]
            return ImageFiles(lambda: (files, [names.index(n) for _, n in pairs]), root, self.size, self.size)

        return Loaded(part("train"), part("test"), tuple(names))


def in_context(name: str, label: str) -> str:
    """RAIL's name of a class, which carries what a generic sentence leaves out."""
    if name == "eurosat":
        return f"{label} satellite location"
    return f'number: "{label}"' if name == "mnist" else label


def read_split(file: Path, images: Path, size: int, root: Path) -> Loaded:
    """One of CoOp's split files: ``{"train": [[path, label, name], ...], "val": ..., "test": ...}``.

    Raises:
        UserError: it is missing or of another form, names a class twice, or names images that are not there.
    """
    where = existing_file(file, "it is one of the split files that CoOp publishes.", root)
    try:
        held: Any = json.loads(where.read_text(encoding="utf-8"))
        parts = {k: [(str(p), index(y), str(n)) for p, y, n in held[k]] for k in ("train", "test")}
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise UserError(f'"{where}" is no split file of CoOp ({fault}): it should hold lists "train" and "test" of '
                        "[path, label, name].") from fault
    names: dict[int, str] = {}
    given: dict[Path, int] = {}
    for path, label, name in (item for part in parts.values() for item in part):
        if names.setdefault(label, name) != name:
            raise UserError(f'"{where}" calls class {label} both "{names[label]}" and "{name}": take the published file.')
        one_label(given, image := below(images, path, f'"{where}"'), label, f'"{where}"')
        if not is_file(image):
            raise UserError(f'"{where}" names "{brief(path)}", which "{images}" does not hold: is it the split of this '
                            "data set?")
    if sorted(names) != list(range(len(names))):
        raise UserError(f'"{where}" has labels that are not 0 to {len(names) - 1}: take the published file.')

    def part(which: str) -> ImageFiles:
        items = parts[which]
        return ImageFiles(lambda: ([images / p for p, _, _ in items], [y for _, y, _ in items]), root, size, size)

    return Loaded(part("train"), part("test"), tuple(names[k].replace("_", " ") for k in range(len(names))))
