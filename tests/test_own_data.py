"""Data of one's own: folders of classes or domains, lists; ImageNet's clean images, and sources for its streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folder_toys import WNIDS, class_folders, imagenet_list, picture

from cl_bench import UserError
from cl_bench.cli import main
from cl_bench.data.tensor import labels_of
from cl_bench.registry import GROUPS, find

ClassFolders = find(GROUPS["scenarios"], "class_folders")
ImageList = find(GROUPS["scenarios"], "image_list")
ImageNet = find(GROUPS["scenarios"], "imagenet")
ImageNetC = find(GROUPS["scenarios"], "imagenet_c")
Corrupted = find(GROUPS["scenarios"], "corrupted")


def rows(parts) -> list[tuple[str, list[int]]]:
    return [(p.name, labels_of(p.data).tolist()) for p in parts]


def test_class_folders_are_split_by_class_with_the_parts_that_are_there(tmp_path):
    class_folders(tmp_path, "train", n=3)
    class_folders(tmp_path, "val", n=2)
    scenario = ClassFolders(root=str(tmp_path), name="mine", increment=2)
    assert rows(scenario.experiences()) == [("step 1", [0, 0, 0, 1, 1, 1]), ("step 2", [2, 2, 2])]
    assert rows(scenario.test_sets()) == [("step 1", [0, 0, 1, 1]), ("step 2", [2, 2])]
    assert scenario.space.names == WNIDS and scenario.answers == "seen" and "task_id" not in scenario.gives
    assert scenario.protocol()["increments"] == [2, 1]
    task = ClassFolders(root=str(tmp_path), answers="task")
    assert "task_id" in task.gives


def test_class_folders_without_parts_are_split_80_to_20_for_everyone(tmp_path):
    class_folders(tmp_path, "", n=10)
    picture(tmp_path / "stray.png", 3)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    first, again = (ClassFolders(root=str(tmp_path), increment=3) for _ in range(2))
    learned, tested = first.experiences()[0].data, first.test_sets()[0].data
    names = [[f.relative_to(tmp_path).as_posix() for f in _files(d)] for d in (learned, tested)]
    assert len(names[0]) == 24 and len(names[1]) == 6 and not set(names[0]) & set(names[1])
    assert [f.relative_to(tmp_path).as_posix() for f in _files(again.test_sets()[0].data)] == names[1]
    assert any("1 images" in note for note in first.notes())


def _files(data) -> list[Path]:
    return [data.data.files[int(row)] for row in data.rows]


def test_class_folders_are_split_by_domain(tmp_path):
    class_folders(tmp_path / "plain", "photo", "sketch", n=5)
    scenario = ClassFolders(root=str(tmp_path / "plain"), split="domain")
    assert [e.name for e in scenario.experiences()] == ["photo", "sketch"] and scenario.answers == "all"
    assert rows(scenario.test_sets()) == [("photo", [0, 1, 2]), ("sketch", [0, 1, 2])]
    class_folders(tmp_path / "parts", "train/photo", "train/sketch", "test/photo", "test/sketch", n=2)
    parted = ClassFolders(root=str(tmp_path / "parts"), split="domain", order=[1, 0], answers="task")
    assert rows(parted.experiences()) == [("sketch", [3, 3, 4, 4, 5, 5]), ("photo", [0, 0, 1, 1, 2, 2])]
    assert rows(parted.test_sets()) == [("sketch", [3, 3, 4, 4, 5, 5]), ("photo", [0, 0, 1, 1, 2, 2])]


@pytest.mark.parametrize(("options", "message"), [
    ({}, "set root to a folder"),
    ({"root": "nowhere"}, "no folder"),
    ({"root": "only_train"}, 'neither "test" nor "val"'),
    ({"root": "plain", "split": "domain", "increment": 2}, "increment belongs to split=class"),
    ({"root": "plain", "split": "domain", "answers": "seen"}, "use all or task"),
])  # fmt: skip
def test_class_folders_refuse_what_does_not_fit(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "only_train", "train")
    class_folders(tmp_path / "plain", "photo", n=3)
    with pytest.raises(UserError, match=message):
        ClassFolders(**options).experiences()


def lists(root: Path, **named: list[str]) -> Path:
    class_folders(root, "images", n=3)
    (root / "lists").mkdir()
    for name, lines in named.items():
        (root / "lists" / f"{name}.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    return root


TRAIN = [f"{w}\\{i}.png {k}" for k, w in enumerate(WNIDS) for i in (0, 1)]
TEST = [f"{w}/2.png\t{k}" for k, w in enumerate(WNIDS)]


def test_image_lists_are_split_by_class_and_by_domain(tmp_path):
    where = lists(tmp_path, train=TRAIN, test=TEST, a_train=TRAIN, a_test=TEST, b_train=TRAIN[::-1], b_test=TEST)
    named = {"root": str(where / "images"), "lists": str(where / "lists")}
    scenario = ImageList(**named, increment=2)
    assert rows(scenario.experiences()) == [("step 1", [0, 0, 1, 1]), ("step 2", [2, 2])]
    assert scenario.space.names == () and "names" not in scenario.gives
    called = ImageList(**named, split="domain", class_list=str(imagenet_list(tmp_path)))
    assert rows(called.experiences()) == [("a", [0, 0, 1, 1, 2, 2]), ("b", [2, 2, 1, 1, 0, 0])]
    assert called.space.names[0] == f"name of {WNIDS[0]}" and "names" in called.gives
    assert ImageList(**named, split="domain").space.names == ()


@pytest.mark.parametrize(("named", "message"), [
    ({"train": TRAIN}, "test.txt"),
    ({"train": [*TRAIN, f"{WNIDS[0]}/2.png 4"], "test": TEST}, "leave out the classes"),
    ({"train": [*TRAIN, f"{WNIDS[0]}/2.png 999999999"], "test": TEST}, '"7" and 999999991 more below 999999999'),
    ({"train": [*TRAIN, "../secret.png 0"], "test": TEST}, "leaves the folder"),
    ({"train": [*TRAIN, f"{WNIDS[0]}/0.png -1"], "test": TEST}, "expected an image's path and its label"),
    ({"train": [*TRAIN, f"{WNIDS[0]}/9.png 0"], "test": TEST}, "is not there"),
])  # fmt: skip
def test_image_lists_refuse_what_does_not_fit(named, message, tmp_path):
    where = lists(tmp_path, **named)
    with pytest.raises(UserError, match=message):
        scenario = ImageList(root=str(where / "images"), lists=str(where / "lists"), increment=1)
        [len(part.data) for part in (*scenario.experiences(), *scenario.test_sets())]


def test_a_folder_of_one_s_own_runs_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "data", "photo", "sketch", n=5)
    assert main(["run", "--scenario", "class_folders", "--scenario.root", "data", "--scenario.split", "domain",
                 "--scenario.name", "drawn", "--scenario.size", "16", "--scenario.resize", "16", "--method", "ncm",
                 "--threads", "1", "--tracking", "none"]) == 0
    record = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert record["scenario"]["name"].startswith("class_folders(name=drawn") and "data" not in record["scenario"]["name"]
    assert any("images of your own" in sentence for sentence in record["warnings"])


# --- ImageNet


def test_imagenet_s_clean_images_are_a_stream_and_a_test_set(tmp_path):
    class_folders(tmp_path, "val", n=2)
    with pytest.raises(UserError, match="set class_list"):
        ImageNet(root=str(tmp_path / "val")).space  # noqa: B018
    (tmp_path / "only.txt").write_text("\n".join((WNIDS[2], WNIDS[0])))
    known = {"root": str(tmp_path / "val"), "class_list": str(imagenet_list(tmp_path))}
    scenario = ImageNet(**known, only=str(tmp_path / "only.txt"))
    assert scenario.space.ids == (0, 2) and scenario.known_as == (WNIDS[0], WNIDS[2])
    assert sorted(labels_of(scenario.stream()[0].data).tolist()) == [0, 0, 2, 2]
    assert sorted(rows(scenario.test_sets())[0][1]) == [0, 0, 2, 2]
    assert rows(ImageNet(**known, shuffle=False).test_sets()) == [("clean", [0, 0, 1, 1, 2, 2])]
    (name, labels), = rows(ImageNet(**known).test_sets())
    assert name == "clean" and sorted(labels) == [0, 0, 1, 1, 2, 2] != labels, "batches of one class after another"
    (tmp_path / "only.txt").write_text("n99999999")
    with pytest.raises(UserError, match="n99999999"):
        ImageNet(**known, only=str(tmp_path / "only.txt")).space  # noqa: B018


def test_corrupted_imagenet_is_computed_image_by_image(tmp_path):
    """An image's noise follows from its row alone, so that neither order nor what was looked at before changes it."""
    class_folders(tmp_path, "val", "train", n=2)
    clean = ImageNet(root=str(tmp_path / "val"), class_list=str(imagenet_list(tmp_path)), clean_root=str(tmp_path / "train"))
    stream, again = (Corrupted(clean, corruptions="gaussian_noise,fog", severity=3) for _ in range(2))
    data = stream.stream()[0].data
    late, early = data[4], data[0]
    assert torch.equal(again.stream()[0].data[0][0], early[0]) and torch.equal(data[4][0], late[0])
    assert early[0].dtype == torch.uint8 and early[0].shape == (3, 224, 224)
    noise = (early[0].float() - clean.test_sets()[0].data[0][0].float()) / 255
    inside = clean.test_sets()[0].data[0][0][1].float().mean() / 255  # the channel of value 90 is not clipped often
    assert 0.1 < float(noise[1].std()) < 0.2 and abs(float(noise[1].mean())) < 0.01 and 0.3 < float(inside) < 0.4
    fog = stream.stream()[1].data[0][0]
    assert not torch.equal(fog, early[0]) and stream.stream()[0].data.digest() != stream.stream()[1].data.digest()
    assert stream.known_as == WNIDS and "source" in stream.gives and stream.source is not None
    assert labels_of(stream.source.data).tolist() == [0, 0, 1, 1, 2, 2]


def test_imagenet_c_takes_a_source(tmp_path):
    class_folders(tmp_path, "c/fog/5", "train", n=2)
    class_folders(tmp_path / "less", "train", n=1)
    given = {"root": str(tmp_path / "c"), "corruptions": "fog", "class_list": str(imagenet_list(tmp_path))}
    assert ImageNetC(**given).source is None and "source" not in ImageNetC(**given).gives
    scenario = ImageNetC(**given, clean_root=str(tmp_path / "train"))
    assert "source" in scenario.gives and labels_of(scenario.source.data).tolist() == [0, 0, 1, 1, 2, 2]
    assert scenario.source.space == scenario.space and "source" in scenario.protocol()
    for file in (tmp_path / "train" / WNIDS[1]).iterdir():
        file.unlink()
    (tmp_path / "train" / WNIDS[1]).rmdir()
    with pytest.raises(UserError, match=f"lacks the class folders .*{WNIDS[1]}"):
        ImageNetC(**given, clean_root=str(tmp_path / "train")).source  # noqa: B018


# --- CIFAR at the size of the published tables


def test_enlarged_cifar_is_what_pilot_s_test_transform_makes(tmp_path):
    from torchvision.transforms import v2

    SplitCifar100 = find(GROUPS["scenarios"], "split_cifar100")
    from cl_bench.data.layouts import synthetic

    synthetic("split_cifar100", tmp_path, {})
    small, large = (SplitCifar100(root=str(tmp_path), increment=100, **size) for size in ({}, {"size": 28, "resize": 32 * 2}))
    x = small.test_sets()[0].data[7][0]
    pilot = v2.Compose([v2.Resize(64, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(28)])
    ours = large.test_sets()[0].data[7][0]
    assert ours.shape == (3, 28, 28) and (ours.int() - pilot(x).int()).abs().max() <= 1
    assert "ResizedCropFlip" in large.protocol()["augment"] and small.protocol()["augment"] == "CropFlip(padding=4)"
    with pytest.raises(UserError, match="smaller than the image size"):
        SplitCifar100(root=str(tmp_path), size=300)
