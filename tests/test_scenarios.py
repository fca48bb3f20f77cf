"""Class-incremental splits: groups, orders, views, and data sets read in their published layouts."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cl_toys import mnist_files, promised
from PIL import Image

from cl_bench import Scenario, UserError
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find


def make(name: str, **kw: Any) -> Scenario:
    return find("cl_bench.scenarios", name)(**kw)


def groups(s: Scenario) -> list[tuple[int, ...]]:
    return [e.space.ids for e in s.experiences()]


@pytest.mark.parametrize(("base", "increment", "sizes"), [
    (0, 2, [2] * 5), (4, 3, [4, 3, 3]), (0, 3, [3, 3, 3, 1]), (5, 5, [5, 5]), (0, 10, [10]), (8, 1, [8, 1, 1]),
])  # fmt: skip
def test_groups_cover_every_class_once(base: int, increment: int, sizes: list[int]) -> None:
    s = make("split_digits", base=base, increment=increment)
    assert [len(g) for g in groups(s)] == sizes, "a smaller last group must be kept"
    assert sorted(i for g in groups(s) for i in g) == list(range(10))
    assert s.protocol()["increments"] == sizes
    tests = s.test_sets()
    assert sum(len(t.data) for t in tests) == 359 and sum(len(e.data) for e in s.experiences()) == 1438  # type: ignore[arg-type]
    for part in [*s.experiences(), *tests]:
        assert set(labels_of(part.data).tolist()) == set(part.space.ids)


def test_impossible_groups_are_refused() -> None:
    for kw in ({"base": 11}, {"increment": 0}, {"base": -1}):
        with pytest.raises(UserError):
            make("split_digits", **kw).experiences()


def test_class_orders() -> None:
    assert groups(make("split_digits"))[0] == (0, 1)
    seeded = [i for g in groups(make("split_digits", order=1993)) for i in g]
    # the legacy generator's stream is frozen, so these are the digits of every paper that says "seed 1993"
    assert seeded == np.random.RandomState(1993).permutation(10).tolist()
    listed = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert groups(make("split_digits", order=listed))[0] == (9, 8)
    with pytest.raises(UserError, match="once"):
        make("split_digits", order=[0, 1]).experiences()


def test_protocol_holds_the_policy_of_the_order_and_not_its_draw() -> None:
    a, b, natural = (make("split_digits", order=o).protocol() for o in (1, 2, None))
    assert a == b and a != natural
    assert json.loads(json.dumps(a)) == a
    assert make("split_digits", per_class=5).protocol() != natural
    assert make("split_digits", answers="task").protocol() != natural


def test_runs_over_drawn_orders_share_a_name_and_the_natural_order_has_its_own() -> None:
    from cl_bench.command.config import parse, plan_from

    def name(*args: str) -> str:
        return plan_from(parse(["--scenario", *args, "--method", "ncm"])).names["scenario"]["name"]

    drawn = [name("split_digits", "--scenario.order", o) for o in ("1993", "1996")]
    assert drawn == ["split_digits(order=drawn)"] * 2 and name("split_digits") == "split_digits"
    assert name("online", "--scenario.of", "split_digits", "--scenario.of.order", "3").count("order=drawn") == 1
    assert name("split_cifar100", "--scenario.order", "1996") == name("split_cifar100") == "split_cifar100"
    assert "9" in name("split_digits", "--scenario.order", "[9,8,7,6,5,4,3,2,1,0]"), "a listed order is told"


def test_task_incremental_is_a_label_space() -> None:
    class_view, task_view = make("split_digits"), make("split_digits", answers="task")
    assert "task_id" in task_view.gives and "task_id" not in class_view.gives
    test, seen = task_view.test_sets()[1], task_view.space
    assert task_view.space_for(test, seen).ids == (2, 3)
    assert class_view.space_for(test, seen).ids == tuple(range(10))
    for a, b in zip(class_view.experiences(), task_view.experiences(), strict=True):
        assert torch.equal(a.data.x, b.data.x) and a.space == b.space  # type: ignore[attr-defined]


def test_few_images_per_class() -> None:
    s = make("split_digits", per_class=7)
    assert [torch.bincount(labels_of(e.data)).max().item() for e in s.experiences()] == [7] * 5
    assert sum(len(t.data) for t in s.test_sets()) == 359, "the test sets stay whole"  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- files
def test_split_mnist_reads_the_idx_files(tmp_path: Path) -> None:
    mnist_files(tmp_path)
    s = promised(lambda: make("split_mnist", root=str(tmp_path)))
    assert [len(e.data) for e in s.experiences()] == [8] * 5 and [len(t.data) for t in s.test_sets()] == [4] * 5  # type: ignore[arg-type]
    assert s.experiences()[0].data[0][0].shape == (3, 28, 28)


def test_split_mnist_makes_do_with_the_test_files(tmp_path: Path) -> None:
    mnist_files(tmp_path, ("t10k",))
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        make("split_mnist", root=str(tmp_path)).experiences()
    s = promised(lambda: make("split_mnist", root=str(tmp_path), files="t10k"))
    assert sum(len(e.data) for e in s.experiences()) == 16 and sum(len(t.data) for t in s.test_sets()) == 4  # type: ignore[arg-type]


def cifar_pickles(root: Path, name: str) -> None:
    """The published layout, small: torchvision checks digests, so this goes by parquet where it must be read."""
    folder = root / name
    folder.mkdir(parents=True)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "fine_labels": [0, 1]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))


def parquet_files(root: Path, classes: int, label: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, n in (("train", 2), ("test", 1)):
        rows = []
        for c in range(classes):
            for k in range(n):
                out = io.BytesIO()
                Image.new("RGB", (32, 32), (c, 10 * k, 128 if part == "test" else 0)).save(out, "PNG")
                rows.append({"image": {"bytes": out.getvalue(), "path": ""}, label: c})
        pq.write_table(pa.Table.from_pylist(rows), root / f"{part}-00000-of-00001.parquet")


@pytest.mark.parametrize(("name", "classes", "label"), [("split_cifar10", 10, "label"), ("split_cifar100", 100, "fine_label")])
def test_split_cifar_reads_parquet(tmp_path: Path, name: str, classes: int, label: str) -> None:
    parquet_files(tmp_path, classes, label)
    s = promised(lambda: make(name, root=str(tmp_path), order=None))
    first = s.experiences()[0]
    assert len(s.experiences()) == classes // len(first.space) and len(first.data) == 2 * len(first.space)  # type: ignore[arg-type]
    assert first.data[0][0].shape == (3, 32, 32) and first.augment is not None
    x = torch.rand(4, 3, 32, 32)
    twice = [first.augment(x, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*twice) and twice[0].shape == x.shape and not torch.equal(twice[0], x)
    assert make(name, root=str(tmp_path), augmented=False).experiences()[0].augment is None


def test_missing_cifar_says_what_to_put_where(tmp_path: Path) -> None:
    for name, folder in (("split_cifar10", "cifar-10-batches-py"), ("split_cifar100", "cifar-100-python")):
        with pytest.raises(UserError, match=folder):
            make(name, root=str(tmp_path)).experiences()
    cifar_pickles(tmp_path, "cifar-10-batches-py")
    with pytest.raises(UserError, match="cifar-10"):  # there, but torchvision finds it incomplete
        make("split_cifar10", root=str(tmp_path)).experiences()


def picture(path: Path, value: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side + 4), (value % 256, value // 256, 30)).save(path)


FOLDERS = ["split_imagenet_r", "split_imagenet_a", "split_cub200", "split_objectnet", "split_omnibenchmark", "split_vtab"]


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_splits(tmp_path: Path, name: str) -> None:
    for c in range(5):
        for k in range(3):
            picture(tmp_path / "train" / f"{c:03d}.Bird_{c}" / f"{k}.png", 10 * c + k)
        picture(tmp_path / "test" / f"{c:03d}.Bird_{c}" / "0.png", 300 + c)
    s = promised(lambda: make(name, root=str(tmp_path), increment=2, size=16, resize=20, order=None))
    assert groups(s) == [(0, 1), (2, 3), (4,)]
    x, y = s.experiences()[2].data[0]
    assert x.shape == (3, 16, 16) and x.dtype == torch.uint8 and int(y) == 4
    assert [len(t.data) for t in s.test_sets()] == [2, 2, 1]  # type: ignore[arg-type]
    facts = s.protocol()
    picture(tmp_path / "train" / "000.Bird_0" / "9.png", 7)
    assert make(name, root=str(tmp_path), increment=2, size=16, resize=20, order=None).protocol() != facts
    if name == "split_cub200":
        assert s.experiences()[0].space.names == ("Bird 0", "Bird 1") and "names" in s.gives
    batch = torch.rand(3, 3, 16, 16)
    assert s.experiences()[0].augment(batch, torch.Generator().manual_seed(0)).shape == batch.shape  # type: ignore[misc]


@pytest.mark.parametrize("name", [*FOLDERS, "split_tiny_imagenet"])
def test_missing_folders_say_the_layout(tmp_path: Path, name: str) -> None:
    for root in ("", str(tmp_path)):
        with pytest.raises(UserError, match="train/<"):
            make(name, root=root).experiences()


def test_tiny_imagenet_validation_is_the_test_set(tmp_path: Path) -> None:
    wnids, lines = ("n01", "n02", "n03"), []
    for c, wnid in enumerate(wnids):
        for k in range(2):
            picture(tmp_path / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 40 * c + k, 64)
        picture(tmp_path / "val" / "images" / f"val_{c}.JPEG", 200 + c, 64)
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t62")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    s = promised(lambda: make("split_tiny_imagenet", root=str(tmp_path), increment=2, order=None))
    assert [len(e.data) for e in s.experiences()] == [4, 2]  # type: ignore[arg-type]
    assert [labels_of(t.data).tolist() for t in s.test_sets()] == [[0, 1], [2]]
    assert s.test_sets()[1].data[0][0].shape == (3, 64, 64)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG n99")
    with pytest.raises(UserError, match="line 1"):
        make("split_tiny_imagenet", root=str(tmp_path), increment=2).test_sets()


def test_computed_corruptions_are_computed_once_a_process_and_kept_within_a_limit() -> None:
    import cl_bench_scenarios._domains as domains

    make = find("cl_bench.scenarios", "digits_c")
    first, again, other = (make(corruptions=["fog"], noise_seed=seed).stream()[0].data for seed in (7, 7, 8))
    assert first.x is again.x and not torch.equal(first.x, other.x)
    assert torch.equal(first.x, make(corruptions=["fog"], noise_seed=7)._compute("fog", 5)), "as it is computed anew"
    kept, made = domains._Computed(limit=25), []

    def x(k: int, size: int = 10) -> torch.Tensor:
        return kept.get((k,), lambda: made.append(k) or torch.zeros(size, dtype=torch.uint8))  # type: ignore[func-returns-value]

    for k in (1, 2, 1, 3, 1, 2):
        x(k)
    assert made == [1, 2, 3, 2], "the one that was used longest ago went, to keep within two of three"
    assert x(9, size=26) is not x(9, size=26) and kept.size == 20, "what is larger than the limit is not kept"
