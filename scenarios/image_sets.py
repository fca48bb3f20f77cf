"""Image sets of one's own, one after another, each with classes that have names: MTIL's and X-TAIL's shape on any data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.data.files import existing_folder
from cl_bench.data.folder import ImageFiles, class_dirs, in_folders
from cl_bench.data.labels import labels_of
from cl_bench.data.parquet import read_parquet
from cl_bench.ranges import Count, LegacySeed, Pixels, Seed, Whole
from cl_bench.types import takes_name

from ._data import Deferred, Picked, digest_of, numbers
from ._files import drawn_part, listed, need_root, same_classes
from ._vlm_sets import Loaded
from .own_folders import parts_of
from .split import Answers, class_order, order_policy
from .split_cifar import Enlarged
from .split_mnist import mnist

__all__ = ["ImageSets", "ImageSetsStream"]

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
EMBEDDED = "embedded:digits"
KEYS = ("folder", "classes", "names", "test_shots")
HELD = 2**28  # bytes of images up to which a part of a set is kept in memory
LAYOUT = "the folders that sets names"
JOINT = ", of all"  # after the name of a set that is asked for a second time


@dataclass(frozen=True)
class _Set:
    """What the user says of one set."""

    folder: str
    classes: tuple[str, ...]
    names: Mapping[str, str]
    test_shots: int | None


class ImageSets(Scenario):
    """Any image sets with class names one after another, each with a label space of its own, and sets that nothing teaches.

    The shape of MTIL (``answers="task"``: each set among its own classes) and of X-TAIL (``answers="all"``: among those of
    all sets that are taught). Classes of the same name are one class, in whatever sets they occur. A set of ``held_out`` is
    measured and never taught, always among its own classes: zero-shot accuracy that learning may cost.

    Args:
        root: folder that the sets' folders lie below.
        sets: of every set by its name, in order: ``folder`` below ``root``, with ``train/<class>/`` and ``test/<class>/`` (or
            ``val``), or ``<class>/`` alone (80 % of each train), or ``train-*.parquet`` and ``test-*.parquet`` as on the
            hub, or MNIST's IDX files (its 10,000 test images alone are split 80 to 20), or "embedded:digits"; ``classes``,
            the names of some of its classes as the data have them, else all; ``names``, what a model reads in the place of
            a name; ``test_shots``, where it is another number than for the others.
        held_out: the names of those sets that are only measured.
        shots: training images of a class, drawn by ``seed``; 0 = all.
        test_shots: test images of a class, always the same ones; 0 = all.
        order: of the sets that are taught: None = as given, a number (RandomState) or a list of positions.
        answers: ``task``, ``all`` or ``seen``.
        joint: with ``task``, measure every set that is taught a second time, among the classes of all of them (test set "NAME,
            of all"): what was trained once is answered in both spaces. The record's means are then over both;
            ``benchmarks/tables_vlm.py`` tells them apart. A method is not told which set an image is of.
        templates: sentences with {} for a name; training reads the first.
        size: side of the images in pixels: short side resized, centre cropped.
        name: what tables call the data.
    """

    family: ClassVar[str] = "vision-language"
    paper: ClassVar[str] = "protocols of Zheng et al. (MTIL), ICCV 2023, and Xu et al. (X-TAIL), NeurIPS 2024"
    places: ClassVar[frozenset[str]] = frozenset({"sets"})  # what they hold is in the protocol
    gives: frozenset[str] = frozenset({"boundaries", "names"})
    backbone: str = "open_clip_model"
    test_batch_size = 128
    teaches: ClassVar[bool] = True

    def __init__(
        self,
        *,
        root: str = "",
        sets: dict[str, dict[str, Any]] | None = None,
        held_out: list[str] | None = None,
        shots: Whole = 16,
        test_shots: Whole = 0,
        seed: Seed = 0,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "task",
        templates: list[str] | None = None,
        size: Pixels = 224,
        name: str = "",
        joint: bool = False,
    ) -> None:
        self.root, self.sets, self.held_out, self.shots, self.test_shots = root, sets, held_out, shots, test_shots
        self.seed, self.order, self.answers, self.templates, self.size = seed, order, answers, templates, size
        self.name, self.joint = name, joint
        self._where = need_root(root, "ImageSets", LAYOUT)
        self._said = {key: _said(key, value, self._where) for key, value in (sets or {}).items()}
        if unknown := [n for n in held_out or () if n not in self._said]:
            raise UserError(f"held_out names {unknown[0]!r}, which is none of the sets {listed(self._said) or '(none)'}.")
        self.taught = tuple(n for n in self._said if n not in (held_out or ()))
        if not self.taught:
            raise UserError("ImageSets teaches nothing: give sets a name and a folder for each, not all of them held_out.")
        if odd := [t for t in templates or () if not takes_name(t)]:
            raise UserError(f"a template has {{}} where the name goes, once and no other brace; {odd[0]!r} has not.")
        if joint and answers != "task":
            raise UserError(f"joint asks for answers among all classes beside those of each set, and answers is {answers}; "
                            "leave one of them out.")
        if joint and (clash := [n for n in self._said if n.endswith(JOINT)]):
            raise UserError(f'with joint no set may be called "{clash[0]}": a name that ends in "{JOINT}" is taken.')
        if answers == "task" and not joint:
            self.gives = type(self).gives | {"task_id"}
        class_order(order, len(self.taught))

    # ------------------------------------------------------------------ what it is made of
    @property
    def ordered(self) -> tuple[str, ...]:
        """The sets that are taught, in the order of arrival."""
        return tuple(self.taught[k] for k in class_order(self.order, len(self.taught)))

    @cached_property
    def _loaded(self) -> dict[str, Loaded]:
        taught = {self._said[name].folder: name for name in self.taught if self.teaches}
        folders = {said.folder for said in self._said.values()}  # several sets may be classes of one
        read = {f: _load(taught.get(f, ""), f, self._where, self.size) for f in sorted(folders)}
        return {name: read[said.folder] for name, said in self._said.items()}

    @cached_property
    def _spaces(self) -> dict[str, LabelSpace]:
        ids: dict[str, int] = {}
        shown = {}
        for name, said in self._said.items():
            there = self._loaded[name].names
            if missing := [c for c in said.classes if c not in there]:
                raise UserError(f'"{name}" has no class {missing[0]!r}: it has {listed(there)}.')
            shown[name] = [said.names.get(c, c.replace("_", " ")) for c in said.classes or there]
            for c in shown[name]:
                ids.setdefault(c, len(ids))
        sentences = tuple(self.templates or ("a photo of a {}.",))
        return {n: LabelSpace(tuple(ids[c] for c in names), tuple(names), sentences) for n, names in shown.items()}

    def _data(self, name: str, part: str) -> Dataset:
        """Images of a set whose labels are ids: a part of it, so many of each class."""
        loaded, space = self._loaded[name], self._spaces[name]
        whole = loaded.train if part == "train" else loaded.test
        own = self._said[name].test_shots
        count = self.shots if part == "train" else self.test_shots if own is None else own
        y, kept = labels_of(whole), self._said[name].classes or loaded.names
        draw = ("shots", self.seed, name) if part == "train" else ("tested", name)
        rows, ids = [], []
        for c, label in zip(kept, space.ids, strict=True):
            here = (y == loaded.names.index(c)).nonzero().flatten()
            if not len(here):
                told = "training" if part == "train" else "test"
                raise UserError(f'"{name}" has no {told} image of {c!r}: leave the class out.')
            if count:
                here = here[torch.as_tensor(numbers(*draw, c).permutation(len(here))[:count], dtype=torch.int64)]
            rows.append(here)
            ids.append(torch.full((len(here),), label))
        return _shown(Called(whole, torch.cat(rows), torch.cat(ids)), self.size)

    # ------------------------------------------------------------------ the contract
    @property
    def space(self) -> LabelSpace:
        whole = LabelSpace()
        for name in (*self.ordered, *(self.held_out or ())):
            whole = whole | self._spaces[name]
        return whole

    def experiences(self) -> Sequence[Experience]:
        return [Experience(n, self._spaces[n], self._part(n, "train")) for n in self.ordered]

    def test_sets(self) -> Sequence[TestSet]:
        asked = [TestSet(n, self._spaces[n], self._part(n, "test"), of=n if n in self.taught else "")
                 for n in (*self.ordered, *(self.held_out or ()))]
        return [*asked, *(replace(t, name=t.name + JOINT) for t in asked if t.of and self.joint)]

    def space_for(self, test: TestSet, seen: LabelSpace) -> LabelSpace:
        if not test.of or (self.answers == "task" and not (self.joint and test.name.endswith(JOINT))):
            return test.space
        joint = LabelSpace()
        for name in self.ordered:
            joint = joint | self._spaces[name]
        return seen if self.answers == "seen" else joint

    def protocol(self) -> Mapping[str, Any]:
        tested = sorted((*self.taught, *(self.held_out or ())))
        return {
            "data": {n: digest_of(self._part(n, "test")) for n in tested},
            "source": {n: digest_of(self._loaded[n].train) for n in sorted(self.taught)},
            "held_out": sorted(self.held_out or ()), "shots": self.shots, "test_shots": self.test_shots, "size": self.size,
            "draw": "few-shot by seed", "order_policy": order_policy(self.order),
            "names": {n: [*self._spaces[n].names] for n in tested}, "templates": [*self._spaces[tested[0]].templates],
            **({"joint": True} if self.joint else {}),
        }  # fmt: skip

    @cached_property
    def _kept(self) -> dict[tuple[str, str], Dataset]:
        return {}

    def _part(self, name: str, part: str) -> Dataset:
        if (name, part) not in self._kept:
            self._kept[name, part] = self._data(name, part)
        return self._kept[name, part]


class _Tested(ImageSets):
    """The same where nothing is taught: no set needs a training part."""

    teaches: ClassVar[bool] = False


class ImageSetsStream(Scenario):
    """The test sets of :class:`ImageSets` one after another, unlabelled: for test-time methods that read class names.

    Args:
        root, sets, test_shots, order, templates, size, name: as in ``image_sets``.
        seed: of the order of the images of a set.
        answers: ``task``: each set among its own classes; ``all``: among those of all.
        test_batch_size: images that arrive at once.
    """

    family: ClassVar[str] = "test-time stream"
    paper: ClassVar[str] = ""
    places: ClassVar[frozenset[str]] = frozenset({"sets"})
    gives: frozenset[str] = frozenset({"names"})
    backbone: str = "open_clip_model"

    def __init__(
        self,
        *,
        root: str = "",
        sets: dict[str, dict[str, Any]] | None = None,
        test_shots: Whole = 0,
        seed: Seed = 0,
        order: LegacySeed | list[int] | None = None,
        answers: Answers = "task",
        templates: list[str] | None = None,
        size: Pixels = 224,
        name: str = "",
        test_batch_size: Count = 64,
    ) -> None:
        if answers == "seen":
            raise UserError("a stream has seen nothing: answers must be task or all.")
        self._of = _Tested(root=root, sets=sets, test_shots=test_shots, order=order, answers=answers, templates=templates,
                           size=size, name=name)
        self.root, self.sets, self.test_shots, self.seed, self.order = root, sets, test_shots, seed, order
        self.answers, self.templates, self.size, self.name = answers, templates, size, name
        self.test_batch_size = test_batch_size

    @property
    def space(self) -> LabelSpace:
        return self._of.space

    def stream(self) -> Sequence[TestSet]:
        found = []
        for t in self._of.test_sets():
            rows = torch.as_tensor(numbers("stream", self.seed, t.name).permutation(len(labels_of(t.data))), dtype=torch.int64)
            found.append(TestSet(t.name, t.space, Called(t.data, rows, labels_of(t.data)[rows]), t.name))
        return found

    def protocol(self) -> Mapping[str, Any]:
        left = {k: v for k, v in self._of.protocol().items() if k not in ("source", "held_out", "shots", "draw")}
        return {**left, "stream": "shuffled once per set"}


class Called(Picked):
    """Rows of a data set under other labels."""

    def __init__(self, data: Dataset, rows: Tensor, y: Tensor) -> None:
        super().__init__(data, labels_of(data), rows)
        self.y = y

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0], int(self.y[index])

    def digest(self) -> str:
        return f"{super().digest()}-{digest_of(TensorData(torch.zeros(len(self.y), 1, 1, 1), self.y))}"


def _shown(data: Called, size: int) -> Dataset:
    """The same, read once and kept where it is small."""
    if 3 * size * size * len(data) > HELD:
        return data
    return Deferred(lambda: torch.stack([data[k][0] for k in range(len(data))]), data.y)


def _said(name: str, value: Any, root: Path) -> _Set:
    """What the user says of a set, with its folder found."""
    if not isinstance(value, Mapping) or not isinstance(value.get("folder"), str) or (odd := set(value) - set(KEYS)):
        told = f"; it has {listed(sorted(map(str, odd)))}" if isinstance(value, Mapping) and "folder" in value else ""
        raise UserError(f'the set "{name}" needs folder, and may have classes (a list), names (a mapping), test_shots{told}.')
    classes, names, count = value.get("classes") or (), value.get("names") or {}, value.get("test_shots")
    if not isinstance(classes, (list, tuple)) or not isinstance(names, Mapping):
        raise UserError(f'the set "{name}": classes is a list of names, names a mapping from one name to another.')
    if count is not None and (type(count) is not int or count < 0):
        raise UserError(f'the set "{name}": test_shots is a number of images, 0 for all, not {count!r}.')
    if value["folder"] != EMBEDDED:
        existing_folder(root / value["folder"], f'the set "{name}" names it', root)
    return _Set(value["folder"], tuple(map(str, classes)), {str(k): str(v) for k, v in names.items()}, count)


def _load(name: str, folder: str, root: Path, size: int) -> Loaded:
    """A folder's parts, labels from 0, and class names. Where no set (``name``) of it is taught, the training part may be
    missing, and the test part stands there."""
    if folder == EMBEDDED:
        return _both(lambda part: Enlarged(digits(part), size, size), DIGIT_NAMES)
    where = root / folder
    shards = {part: sorted(where.glob(f"{part}-*.parquet")) for part in PARTS}
    if shards["test"] and not shards["train"] and name:
        raise UserError(f'"{where}" has test-*.parquet and no train-*.parquet: add it, or put "{name}" among held_out.')
    if shards["test"]:
        read = {part: read_parquet([*map(str, shards[part] or shards["test"])]) for part in PARTS}
        count = int(max(r.data.y.max() for r in read.values())) + 1
        names = read["test"].names or tuple(map(str, range(count)))
        return _both(lambda part: Enlarged(read[part].data, size, size), names)
    if sorted(where.glob("t10k-images-idx3-ubyte*")):
        whole = bool(sorted(where.glob("train-images-idx3-ubyte*")))
        return _both(lambda part: Enlarged(mnist(str(where), part, "all" if whole else "t10k"), size, size), DIGIT_NAMES)
    apart = parts_of(where)
    names = tuple(class_dirs(apart[0] if apart else where, root))
    label = {n: k for k, n in enumerate(names)}
    if apart is None:
        return _both(lambda part: ImageFiles(lambda: drawn_part(where, label, part, "image sets", root=root), root, size, size),
                     names)
    same_classes(names, class_dirs(apart[1], root), "train", apart[1].name)
    at: dict[Part, Path] = {"train": apart[0], "test": apart[1]}
    return _both(lambda part: ImageFiles(lambda: in_folders(at[part], label, root), root, size, size), names)


def _both(make: Callable[[Part], Dataset], names: tuple[str, ...]) -> Loaded:
    return Loaded(make("train"), make("test"), names)
