"""Labels are checked where data enter: in every loader, in data sets of one's own, and in a scenario before its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_loaders import encoded, idx_bytes, pictures, write_parquet
from torch.utils.data import ConcatDataset, Dataset, Subset

from cl_bench import Experience, LabelSpace, Scenario, TensorData, TestSet, UserError
from cl_bench.data.cifar_c import cifar_c
from cl_bench.data.entry import check_data
from cl_bench.data.idx import read_idx_pair
from cl_bench.data.labels import labels_of, whole_labels
from cl_bench.data.parquet import read_parquet
from cl_bench.registry import find

BAD: dict[str, tuple[Any, str]] = {
    "negative": ([0, -1], r"Label -1 \(row 1"),
    "not a number": ([0.0, float("nan")], r"Label nan \(row 1.*no number"),
    "infinite": ([0.0, float("inf")], r"Label inf \(row 1.*no number"),
    "fractional": ([0.0, 0.5], r"Label 0.5 \(row 1.*not a whole number"),
    "one-hot": ([[0, 1], [1, 0]], "one-hot"),
    "of shape (N, 1, 1)": (np.zeros((2, 1, 1)), r"shape \(2, 1, 1\)"),
    "ragged": ([[0], [1, 2]], "one number per image"),
    "words": (["cat", "dog"], "not whole numbers"),
    "objects": ([None, {}], "not whole numbers"),
    "complex": (np.zeros(2, dtype=np.complex64), "complex64, not whole"),
    "huge": ([0, 2**40], "too large"),
    "beyond int64": (np.array([0, 2**63 + 5], dtype=np.uint64), "too large"),
    "a single number": (7, "shape"),
}


@pytest.mark.parametrize("kind", BAD)
def test_labels_that_cannot_be_right_are_refused(kind: str) -> None:
    values, told = BAD[kind]
    with pytest.raises(UserError, match=told) as error:
        whole_labels(values, '"file.npy"')
    assert "file.npy" in str(error.value), "the file must be named"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 12), max_size=9), st.sampled_from(["list", "int32", "float64", "tensor", "tensors"]),
       st.integers(0, 11))
def test_whole_labels_come_through_or_name_the_first_bad_row(values: list[int], form: str, classes: int) -> None:
    given_as: Any = values
    if form in ("int32", "float64"):
        given_as = np.array(values, dtype=form)
    elif form != "list":
        given_as = torch.tensor(values, dtype=torch.int64) if form == "tensor" else [torch.tensor(v) for v in values]
    bad = [k for k, v in enumerate(values) if v < 0] or [k for k, v in enumerate(values) if classes and v >= classes]
    if bad:
        with pytest.raises(UserError, match=rf"\(row {bad[0]} of x\)"):
            whole_labels(given_as, "x", classes)
    else:
        out = whole_labels(given_as, "x", classes)
        assert out.dtype == torch.int64 and out.tolist() == values


def test_data_held_as_tensors_refuse_them_too() -> None:
    for y in (torch.tensor([0, -1]), torch.tensor([0.0, float("nan")]), torch.eye(2), torch.tensor([0.5, 1.0])):
        with pytest.raises(UserError, match="TensorData"):
            TensorData(torch.zeros(2, 3, 4, 4), y)
    assert TensorData(torch.zeros(2, 3), torch.tensor([0.0, 4.0])).y.tolist() == [0, 4]


# ---------------------------------------------------------------------------------------------- every loader
def images() -> list[bytes]:
    return [encoded(p) for p in pictures(4)]


def test_parquet_names_file_column_and_row(tmp_path: Path) -> None:
    for labels, told in (([0, 1, -1, 0], r"Label -1 \(row 2"), ([0.0, 1.5, 0.0, 0.0], r"Label 1.5 \(row 1"),
                         ([0.0, float("nan"), 0.0, 0.0], "Label nan"), ([[0, 1]] * 4, "list")):
        with pytest.raises(UserError, match=rf'(?s)(?=.*{told})(?=.*a\.parquet)'):
            read_parquet(write_parquet(tmp_path / "a.parquet", images(), labels))
    file = write_parquet(tmp_path / "b.parquet", images(), [0, 1, 2, 57])
    with pytest.raises(UserError, match=r"Label 57 \(row 3.*classes 0 to 9"):
        read_parquet(file, classes=10)
    with pytest.raises(UserError, match="classes 0 to 1"):  # more labels than the file has names
        read_parquet(write_parquet(tmp_path / "c.parquet", images(), [0, 1, 2, 0], ("cat", "dog")))
    assert read_parquet(write_parquet(tmp_path / "d.parquet", images(), [0.0, 1.0, 2.0, 0.0])).data.y.tolist() == [0, 1, 2, 0]


def test_the_hubs_own_columns_are_found(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(write_parquet(tmp_path / "a.parquet", images(), [3, 1, 4, 1]))
    for image, label in (("img", "label"), ("img", "fine_label"), ("image", "labels")):
        pq.write_table(table.rename_columns([image, label]), tmp_path / "b.parquet")
        assert read_parquet(tmp_path / "b.parquet").data.y.tolist() == [3, 1, 4, 1]
    pq.write_table(table.rename_columns(["photo", "kind"]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r'no column "image" or "img" or .* but photo, kind'):
        read_parquet(tmp_path / "b.parquet")
    assert len(read_parquet(tmp_path / "b.parquet", image="photo", label="kind").data) == 4


def test_images_as_bare_bytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": pa.array(images(), pa.binary()), "cls": [0, 1, 2, 3]}), tmp_path / "a.parquet")
    assert np.array_equal(read_parquet(tmp_path / "a.parquet").data.x.permute(0, 2, 3, 1).numpy(), pictures(4))


def test_idx_labels_of_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx_bytes(pictures(3)[..., 0]))
    (tmp_path / "y").write_bytes(idx_bytes(np.array([1, 2, 25], np.uint8)))
    with pytest.raises(UserError, match=r'Label 25 \(row 2 of ".*y"\).*classes 0 to 9'):
        read_idx_pair(tmp_path / "x", tmp_path / "y", classes=10)
    assert read_idx_pair(tmp_path / "x", tmp_path / "y").y.tolist() == [1, 2, 25]
    (tmp_path / "y").write_bytes(idx_bytes(np.array([1.0, 0.5, 2.0], np.float32)))
    with pytest.raises(UserError, match=r"Label 0\.5"):
        read_idx_pair(tmp_path / "x", tmp_path / "y")


def corrupted(root: Path, labels: np.ndarray) -> Path:
    np.save(root / "fog.npy", np.zeros((len(labels), 32, 32, 3), np.uint8))
    np.save(root / "labels.npy", labels)
    return root


def test_cifar_100_c_is_not_cifar_10_c_and_the_reverse(tmp_path: Path) -> None:
    root = corrupted(tmp_path, np.arange(1000) % 100)
    with pytest.raises(UserError, match=r'Label 10 \(row 10 of ".*labels\.npy"\).*classes 0 to 9'):
        find("cl_bench.scenarios", "cifar10c")(root=str(root), corruptions="fog").stream()
    assert len(find("cl_bench.scenarios", "cifar100c")(root=str(root), corruptions="fog").stream()[0].data) == 1000
    corrupted(tmp_path, np.arange(1000) % 10)
    with pytest.raises(UserError, match=r"labels\.npy.* 10 of 100 classes"):
        find("cl_bench.scenarios", "cifar100c")(root=str(root), corruptions="fog").stream()


@pytest.mark.parametrize("labels", [np.eye(4), np.array([0.5] * 4), np.array([0, 1, -7, 0]), np.array(["a"] * 4)],
                         ids=["one-hot", "fractional", "negative", "words"])  # fmt: skip
def test_cifar_c_labels_are_checked(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"labels\.npy"):
        cifar_c(corrupted(tmp_path, labels), "fog")


@pytest.mark.parametrize(("scenario", "column"), [("split_cifar10", "label"), ("split_cifar100", "fine_label")])
def test_split_cifar_takes_the_hubs_columns_and_refuses_other_classes(tmp_path: Path, scenario: str, column: str) -> None:
    import pyarrow.parquet as pq

    classes = 10 if scenario == "split_cifar10" else 100
    blobs = [encoded(p) for p in pictures(1, 32, 32)] * classes
    for part in ("train", "test"):
        table = pq.read_table(write_parquet(tmp_path / "x.parquet", blobs, list(range(classes))))
        pq.write_table(table.rename_columns(["img", column]), tmp_path / f"{part}-0.parquet")
    s = find("cl_bench.scenarios", scenario)(root=str(tmp_path), order=None)
    assert [len(e.data) for e in s.experiences()] == [len(e.space) for e in s.experiences()] and check_data(s) == []
    write_parquet(tmp_path / "train-0.parquet", blobs[:3], [0, 1, classes])
    with pytest.raises(UserError, match=rf"Label {classes} \(row 2.*train-0"):
        find("cl_bench.scenarios", scenario)(root=str(tmp_path)).experiences()
    write_parquet(tmp_path / "train-0.parquet", blobs[:2], [0, 1])  # the other classes have no image at all
    with pytest.raises(UserError, match='Experience "step 2" holds no images'):
        check_data(find("cl_bench.scenarios", scenario)(root=str(tmp_path), order=None))


# ---------------------------------------------------------------------------------------------- data sets of one's own
class Mapped(Dataset):
    """torchvision's way: ``targets`` are raw, items carry what ``target_transform`` makes of them."""

    def __init__(self, labels: list[Any], shift: int = 0, says: bool = True) -> None:
        if says:
            self.targets = labels
        self.labels, self.shift, self.reads = labels, shift, 0
        self.target_transform = (lambda y: y + shift) if shift else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> Any:
        self.reads += 1
        y = self.labels[k]
        return torch.zeros(3, 4, 4), y if self.target_transform is None else self.target_transform(y)


def test_labels_are_those_that_items_carry() -> None:
    labels = [0, 1, 2] * 40
    plain, mapped, silent = Mapped(labels), Mapped(labels, 5), Mapped(labels, says=False)
    assert labels_of(plain).tolist() == labels_of(silent).tolist() == labels
    assert labels_of(mapped).tolist() == [y + 5 for y in labels]
    assert plain.reads < 40, "labels that are right were read image by image"
    reads = mapped.reads, silent.reads
    assert labels_of(mapped).tolist() == [y + 5 for y in labels] and labels_of(silent).tolist() == labels
    assert (mapped.reads, silent.reads) == reads == (120, 120), "asked again and again"


def test_labels_of_an_unannounced_mapping_are_read() -> None:
    data = Mapped([0, 1, 2, 3])
    data.target_transform = None
    data.targets = [3, 2, 1, 0]
    assert labels_of(data).tolist() == [0, 1, 2, 3]


def test_labels_of_parts_and_wholes() -> None:
    data = TensorData(torch.zeros(4, 3), torch.tensor([3, 1, 4, 1]))
    assert labels_of(Subset(data, [2, 0])).tolist() == [4, 3]
    assert labels_of(ConcatDataset([data, Subset(data, [1])])).tolist() == [3, 1, 4, 1, 1]
    assert labels_of([(torch.zeros(3), 5), (torch.zeros(3), 0)]).tolist() == [5, 0]  # type: ignore[arg-type]
    for bad, told in ((Mapped([0, 1.5], says=False), "Label 1.5"), (Mapped([0, [0, 1]], says=False), "one number per image"),
                      (Mapped([[1, 0], [0, 1]]), "one-hot")):
        with pytest.raises(UserError, match=f"(?s){told}.*|.*{told}"):
            labels_of(bad)
    short = Mapped([0, 1, 2])
    short.targets = [0, 1]
    with pytest.raises(UserError, match="3 items and 2 labels"):
        labels_of(short)


# ---------------------------------------------------------------------------------------------- a scenario before its run
def part(labels: Any, x: torch.Tensor | None = None) -> Dataset:
    return TensorData(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8) if x is None else x, torch.tensor(labels))


class Told(Scenario):
    """Parts as they are given: (name, space, data) of experiences, test sets and stream."""

    def __init__(self, learn: Any = (), test: Any = (), stream: Any = (), answers: Any = "seen") -> None:
        self.parts, self.answers = (learn, test, stream), answers

    def experiences(self) -> list[Experience]:
        return [Experience(n, s if isinstance(s, LabelSpace) else LabelSpace(s), d) for n, s, d in self.parts[0]]

    def test_sets(self) -> list[TestSet]:
        return [TestSet(n, s if isinstance(s, LabelSpace) else LabelSpace(s), d) for n, s, d in self.parts[1]]

    def stream(self) -> list[TestSet]:
        return [TestSet(n, LabelSpace(s), d) for n, s, d in self.parts[2]]


def test_what_is_right_passes_without_a_word() -> None:
    learn = [("a", (0, 1), part([0, 1])), ("b", (2, 3), part([2, 3]))]
    assert check_data(Told(learn, learn)) == []
    assert check_data(Told(learn[:1] * 2, learn[:1], answers="all")) == []  # the same classes in other domains
    repeat = [("a", (0, 1), part([0, 1])), ("b", (0, 1, 2), part([0, 1, 2]))]
    assert check_data(Told(repeat, repeat)) == []
    assert check_data(Told(stream=[("fog", (0, 1), part([1, 1]))])) == []


REFUSED: dict[str, tuple[Told, str]] = {
    "label outside": (Told([("a", (0, 1), part([0, 1, 7]))]), r'Experience "a" holds label 7 \(row 2; 1 of 3 rows\)'),
    "another split": (Told([("a", (0, 1), part([0, 1]))], [("a", (0, 1), part([0, 5]))]), r'Test set "a" holds label 5'),
    "in the stream": (Told(stream=[("fog", (0, 1), part([0, 9]))]), r'Stream segment "fog" holds label 9'),
    "empty": (Told([("a", (0,), part([]))]), 'Experience "a" holds no images'),
    "negative": (Told([("a", (0, 1), Mapped([0, -1]))]), r'Experience "a": Label -1 \(row 1 of a Mapped\)'),
    "one-hot": (Told([("a", (0, 1), Mapped([[1, 0], [0, 1]]))]), 'Experience "a": .*one-hot'),
    "fractional": (Told([("a", (0, 1), Mapped([0, 0.5], says=False))]), 'Experience "a": Label 0.5'),
    "folded": (Told([("a", (0, 1), part([0, 1])), ("b", (0, 1), part([0, 1]))]),
               "All 2 experiences have the same labels 0, 1"),
    "folded tasks": (Told([("a", (0, 1), part([0, 1])), ("b", (0, 1), part([0, 1]))], answers="task"), 'answers="all"'),
    "one id for two classes": (Told([("a", LabelSpace((0, 1), ("ant", "bee")), part([0, 1])),
                                     ("b", LabelSpace((1, 2), ("cow", "dog")), part([1, 2]))]),
                               'Label 1 is "bee" in "a" and "cow" in "b"'),
    "no length": (Told([("a", (0,), iter([]))]), "have no length"),
    "no pairs": (Told([("a", (0,), [torch.zeros(3)])]), r"no pairs \(x, y\)"),
    "normalised": (Told([("a", (0, 1), part([0, 1], torch.randn(2, 3, 4, 4) * 3))]), r"leave \[0, 1\]"),
    "NaN": (Told([("a", (0, 1), part([0, 1], torch.full((2, 7), float("nan"))))]), "holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_right_is_refused(kind: str) -> None:
    scenario, told = REFUSED[kind]
    with pytest.raises(UserError, match=told):
        check_data(scenario)


def test_what_is_odd_is_said_and_counted() -> None:
    learn = [("a", LabelSpace((0, 1), ("ant", "bee")), part([0, 0])), ("b", LabelSpace((2, 3), ("cow", "dog")), part([2, 3]))]
    test = [("a", LabelSpace((0, 1), ("ant", "bee")), part([0, 1])), ("b", LabelSpace((2, 3), ("cow", "dog")), part([3]))]
    assert check_data(Told(learn, test)) == [
        '1 of the 2 classes of "a" have no training images: bee.',
        '1 of the 2 classes of "b" have no test images: cow.',
        "Learned and never measured: cow (1 of 4 classes).",
        "Measured and never learned: bee (1 of 4 classes).",
    ]

    class Speaking(Told):
        def notes(self) -> list[str]:
            return ["My own words."]

    assert check_data(Speaking(learn[1:], learn[1:])) == ["My own words."]


def test_a_run_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cl_bench.cli import main

    (tmp_path / "folded.py").write_text("""
from cl_bench import *
from cl_bench.data.digits import digits

class Folded(Scenario):
    \"\"\"Two digits per task, called 0 and 1 in every task.\"\"\"
    def _part(self, split, k):
        d = digits(split)
        rows = (d.y == 2 * k) | (d.y == 2 * k + 1)
        return TensorData(d.x[rows], d.y[rows] - 2 * k)
    def experiences(self):
        return [Experience(f"task {k}", LabelSpace((0, 1)), self._part("train", k)) for k in range(2)]
    def test_sets(self):
        return [TestSet(f"task {k}", LabelSpace((0, 1)), self._part("test", k)) for k in range(2)]
    def protocol(self):
        return {"data": "digits"}
""")
    code = main(["run", "--scenario", f"{tmp_path}/folded.py:Folded", "--method", "ncm", "--runs", str(tmp_path / "runs"),
                 "--tracking", "none"])
    said = capsys.readouterr().err
    assert code == 2 and "same labels 0, 1" in said and "Traceback" not in said
    assert not list((tmp_path / "runs").glob("*/run.json")), "something was written before the refusal"


def test_notes_stand_among_the_records_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from cl_bench.cli import main

    for split, names in (("train", ("ant", "bee", "cat", "dog")), ("test", ("ant", "bee", "cat", "dog", "eel"))):
        for k, name in enumerate(names):
            for i in range(2):
                (tmp_path / "d" / split / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (50 * k, 20 * i, 90)).save(tmp_path / "d" / split / name / f"{i}.png")
    code = main(["run", "--scenario", "split_imagenet_r", "--scenario.root", str(tmp_path / "d"), "--scenario.increment", "2",
                 "--scenario.order", "null", "--scenario.size", "16", "--scenario.resize", "16", "--method", "ncm", "--runs",
                 str(tmp_path / "runs"), "--tracking", "none"])
    assert code == 0, capsys.readouterr().err
    (record,) = (tmp_path / "runs").glob("*/run.json")
    warnings = json.loads(record.read_text())["warnings"]
    assert warnings[0] == '2 images of classes that only the test folder has are left out: "eel".'
    assert len(warnings) == 2 and "letters alone, and these are photographs" in warnings[1]
