"""Benchmarks from the user's own files: small folders of the published layouts, and what is said when one is wrong."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_bench.data.tensor import labels_of
from cl_bench.errors import UserError
from cl_bench.registry import entries, find
from cl_bench.scenario import Scenario

SHARED = Path(os.environ.get("CL_BENCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]


def make(name: str, **kwargs) -> Scenario:
    return find("cl_bench.scenarios", name)(**kwargs)


def picture(path: Path, value: int, size: tuple[int, int] = (240, 232)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path, quality=95)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """One severity, 20 images; a corruption's pixels are its number."""
    names = find("cl_bench.scenarios", "cifar10c").lists["standard"]
    for k, corruption in enumerate([*names, "original"]):
        np.save(tmp_path / f"{corruption}.npy", np.full((20, 32, 32, 3), k, np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    return tmp_path


def test_cifar_c_folder(cifar: Path) -> None:
    scenario = make("cifar10c", root=str(cifar))
    tests = scenario.stream()
    assert len(tests) == 15 and scenario.test_batch_size == 200 and scenario.gives == {"names"}
    assert scenario._shelf._kept == {}, "pixels were read before anyone looked"
    assert [int(t.data.x[0, 0, 0, 0]) for t in tests] == list(range(15))
    assert all(t.data.x.shape == (20, 3, 32, 32) and labels_of(t.data).tolist() == [*range(10)] * 2 for t in tests)
    assert int(scenario.test_sets()[0].data.x[0, 0, 0, 0]) == 15 and scenario.source is None
    assert len(make("cifar10c", root=str(cifar), limit=7).stream()[3].data) == 7
    assert make("cifar10c", root=str(cifar), limit=7).protocol() != scenario.protocol()
    assert len(make("cifar100c", root=str(cifar)).space) == 100
    assert len(make("mixed", of=scenario).stream()[0].data) == 300


def test_cifar_c_full_archive_takes_the_rows_of_a_severity(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(1, 6, dtype=np.uint8), 10_000)
    x = np.lib.format.open_memmap(tmp_path / "fog.npy", mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3))
    x[:, 0, 0, 0] = rows  # the rest stays a hole in the file
    x.flush()
    del x
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10_000) % 10, 5))
    scenario = make("cifar10c", root=str(tmp_path), corruptions="fog", severity=3, limit=50)
    assert scenario.stream()[0].data.x[:, 0, 0, 0].unique().tolist() == [3]
    assert [int(scenario.at(s)[0].data.x[0, 0, 0, 0]) for s in (1, 5)] == [1, 5]
    segments = make("gradual", of=scenario).stream()
    assert [int(t.data.x[0, 0, 0, 0]) for t in segments] == [1, 2, 3, 4, 5, 4, 3, 2, 1]


def test_cifar_c_mistakes(cifar: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        make("cifar10c", root=str(cifar / "missing"))
    (cifar / "fog.npy").unlink()
    with pytest.raises(UserError, match=r"fog\.npy"):
        make("cifar10c", root=str(cifar)).stream()
    np.save(cifar / "labels.npy", np.arange(9))
    with pytest.raises(UserError, match="labels"):
        _ = make("cifar10c", root=str(cifar), corruptions="snow").stream()[0].data.x
    (cifar / "labels.npy").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="web page"):
        make("cifar10c", root=str(cifar), corruptions="snow").stream()


def test_cifar10_1(tmp_path: Path) -> None:
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((12, 32, 32, 3), np.uint8))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(12, dtype=np.int32) % 10)
    (test,) = make("cifar10_1", root=str(tmp_path)).stream()
    assert test.data.x.shape == (12, 3, 32, 32) and test.name == "cifar10.1"
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(5))
    with pytest.raises(UserError, match="as published"):
        make("cifar10_1", root=str(tmp_path)).stream()
    with pytest.raises(UserError, match="v6 or v4"):
        make("cifar10_1", root=str(tmp_path), version="v5")


@pytest.fixture
def imagenet_c(tmp_path: Path) -> Path:
    for c, corruption in enumerate(("fog", "snow")):
        for k, wnid in enumerate(WNIDS):
            for i in range(3):
                picture(tmp_path / corruption / "5" / wnid / f"val_{i}.JPEG", 60 * k + 20 * c, (224, 224))
    return tmp_path


@pytest.fixture
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ImageNet's list as it is published, cut after four classes."""
    file = tmp_path_factory.mktemp("lists") / "classes.txt"
    file.write_text("\n".join(f"{wnid} name of {wnid}, other name" for wnid in WNIDS))
    return str(file)


def test_imagenet_c_folder(imagenet_c: Path, classes: str) -> None:
    scenario = make("imagenet_c", root=str(imagenet_c), corruptions="fog,snow", class_list=classes)
    fog, snow = scenario.stream()
    assert [t.name for t in scenario.stream()] == ["fog", "snow"] and len(fog.data) == 12
    assert sorted(labels_of(fog.data).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert labels_of(fog.data).tolist() != sorted(labels_of(fog.data).tolist()), "one class follows another"
    for x, y in (fog.data[i] for i in range(12)):
        assert x.shape == (3, 224, 224) and abs(int(x[0, 0, 0]) - 60 * y) < 4
    assert abs(int(snow.data[0][0][0, 0, 0]) - 60 * int(snow.data[0][1]) - 20) < 4
    again = make("imagenet_c", root=str(imagenet_c), corruptions="fog,snow", seed=1, class_list=classes)
    assert scenario.protocol() == again.protocol()
    assert "4 classes of class_list" in scenario.notes()[0], "a classifier of 1,000 would answer by other rows"


def test_some_classes_of_imagenet_need_their_list(imagenet_c: Path, classes: str, tmp_path: Path) -> None:
    """Ranks 0 to 3 of four classes are not what a classifier of 1,000 calls 0 to 3."""
    for name in ("imagenet_c", "imagenet_v2", "imagenet_sketch"):
        root = imagenet_c if name == "imagenet_c" else imagenet_c / "fog/5"
        extra = {"corruptions": "fog"} if name == "imagenet_c" else {}
        with pytest.raises(UserError, match=r"4 classes where ImageNet.* set class_list"):
            _ = make(name, root=str(root), **extra).space
        assert make(name, root=str(root), class_list=classes, **extra).space.ids == (0, 1, 2, 3)
    whole = tmp_path / "whole"
    for k in range(1000):
        (whole / f"n{k:08d}").mkdir(parents=True)
    assert len(make("imagenet_sketch", root=str(whole)).space) == 1000


def test_corruptions_of_other_classes_are_refused(imagenet_c: Path, classes: str) -> None:
    """A class folder less, and every later rank would be another class."""
    (imagenet_c / "snow/5" / WNIDS[0]).rename(imagenet_c / "aside")
    with pytest.raises(UserError, match=f'snow.*differ in the class folders "{WNIDS[0]}"'):
        make("imagenet_c", root=str(imagenet_c), corruptions="fog,snow", class_list=classes).stream()


def test_imagenet_c_list_and_class_list(imagenet_c: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    notes = tmp_path_factory.mktemp("lists")
    (notes / "images.txt").write_text(f"{WNIDS[2]}/val_1.JPEG\n{WNIDS[0]}/val_0.JPEG\n")
    classes = ["n00000001 first", *(f"{w} name of {w}, other name" for w in WNIDS)]
    (notes / "classes.txt").write_text("\n".join(classes))
    lists = {"image_list": str(notes / "images.txt"), "class_list": str(notes / "classes.txt")}
    scenario = make("imagenet_c", root=str(imagenet_c), corruptions="fog", shuffle=False, names=True, **lists)
    assert labels_of(scenario.stream()[0].data).tolist() == [3, 1], "order of the list, labels of the class list"
    assert scenario.space.ids == (1, 2, 3, 4) and scenario.space.names[0] == f"name of {WNIDS[0]}"
    assert "names" in scenario.gives
    (notes / "images.txt").write_text(f"{WNIDS[2]}/val_9.JPEG\n")
    with pytest.raises(UserError, match="val_9"):
        make("imagenet_c", root=str(imagenet_c), corruptions="fog", **lists).stream()
    (notes / "classes.txt").write_text("n00000001\nn00000001\n")
    with pytest.raises(UserError, match="twice"):
        make("imagenet_c", root=str(imagenet_c), corruptions="fog", **lists).stream()
    with pytest.raises(UserError, match="frost"):
        make("imagenet_c", root=str(imagenet_c), corruptions="frost").stream()


def test_imagenet_3dcc_knows_its_own_corruptions(tmp_path: Path, classes: str) -> None:
    for corruption in find("cl_bench.scenarios", "imagenet_3dcc").known:
        picture(tmp_path / corruption / "5" / WNIDS[0] / "a.JPEG", 9)
    assert len(make("imagenet_3dcc", root=str(tmp_path), class_list=classes).stream()) == 12
    with pytest.raises(UserError, match="near_focus"):
        make("imagenet_3dcc", root=str(tmp_path), corruptions="gaussian_noise")


def test_natural_variants(tmp_path: Path) -> None:
    index = tmp_path / "imagenet_class_index.json"
    index.write_text('{"0": ["n00000001", "nothing"], ' + ", ".join(f'"{k + 1}": ["{w}", "thing_{k}"]' for k, w in
                                                                      enumerate(WNIDS)) + "}")
    data = tmp_path / "r"
    for k, wnid in enumerate(WNIDS[:2]):
        for i in range(4):
            picture(data / wnid / f"art_{i}.jpg", 50 * k, (300, 260))
    with pytest.raises(UserError, match="class_list"):
        make("imagenet_r", root=str(data))
    for name in ("imagenet_r", "imagenet_a", "imagenet_sketch"):
        scenario = make(name, root=str(data), class_list=str(index), names=True)
        assert scenario.space.ids == (1, 2) and scenario.space.names == ("thing_0", "thing_1")
        (test,) = scenario.stream()
        assert test.data[0][0].shape == (3, 224, 224) and sorted(labels_of(test.data).tolist()) == [1] * 4 + [2] * 4
    for label in ("0", "2", "10"):
        picture(tmp_path / "v2" / label / "x.jpeg", 7)
    v2 = make("imagenet_v2", root=str(tmp_path / "v2"))
    assert v2.space.ids == (0, 2, 10), "folders of V2 are called by their label, and 10 is not after 1"
    index.write_text("[1, 2")
    with pytest.raises(UserError, match="class index"):
        make("imagenet_a", root=str(data), class_list=str(index)).stream()
    index.write_text(json.dumps([*WNIDS, "n99999999"]))
    (data / "n99999999").mkdir()
    with pytest.raises(UserError, match="no images"):
        labels_of(make("imagenet_sketch", root=str(data), class_list=str(index)).stream()[0].data)


def test_domainnet_and_d109_lists(tmp_path: Path) -> None:
    for domain in ("real", "clipart", "painting", "sketch", "infograph"):
        lines = []
        for label, name in enumerate(("ant", "bee")):
            for i in range(3):
                picture(tmp_path / domain / name / f"{i}.jpg", 100 * label)
                lines.append(f"{domain}/{name}/{i}.jpg {label}")
        (tmp_path / f"{domain}_list.txt").write_text("\n".join(lines))
    scenario = make("domainnet126", root=str(tmp_path))
    assert [t.name for t in scenario.stream()] == ["clipart", "painting", "sketch"]
    assert len(scenario.source.data) == 6 and scenario.space.ids == (0, 1) and scenario.test_batch_size == 128
    assert [t.name for t in make("domainnet126", root=str(tmp_path), source_domain="sketch").stream()] == [
        "painting", "clipart", "real",
    ]  # fmt: skip
    (tmp_path / "map.txt").write_text("310\n309\n")
    d109 = make("imagenet_d109", root=str(tmp_path), label_map=str(tmp_path / "map.txt"))
    assert len(d109.stream()) == 5 and d109.space.ids == (309, 310) and d109.source is None
    x, y = d109.stream()[0].data[0]
    assert abs(int(x[0, 0, 0]) - {310: 0, 309: 100}[int(y)]) < 4
    (tmp_path / "clipart_list.txt").write_text("clipart/ant/0.jpg ant\n")
    with pytest.raises(UserError, match="line 1"):
        make("domainnet126", root=str(tmp_path)).stream()
    (tmp_path / "clipart_list.txt").unlink()
    with pytest.raises(UserError, match=r"clipart_list\.txt"):
        make("domainnet126", root=str(tmp_path)).stream()
    with pytest.raises(UserError, match="source_domain"):
        make("domainnet126", root=str(tmp_path), source_domain="quickdraw")


def test_ccc_tars(tmp_path: Path) -> None:
    folder = tmp_path / "baseline_20_transition+speed_2000_seed_43"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"serial_{number:05d}.tar", "w") as tar:
            for i in range(3):
                buffer = io.BytesIO()
                Image.fromarray(np.full((224, 224, 3), 40 * i + number, np.uint8)).save(buffer, "JPEG", quality=95)
                for name, content in ((f"{i:06d}.input.jpg", buffer.getvalue()), (f"{i:06d}.output.cls", b"%d" % (i * 7))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    scenario = make("ccc", root=str(tmp_path))
    tests = scenario.stream()
    assert [t.name for t in tests] == ["serial_00000", "serial_00001"]
    assert labels_of(tests[1].data).tolist() == [0, 7, 14]
    assert abs(int(tests[1].data[2][0][0, 0, 0]) - 81) < 3
    assert len(make("ccc", root=str(tmp_path), images=2).stream()[0].data) == 2
    assert make("ccc", root=str(tmp_path), images=2).protocol() != scenario.protocol()
    with pytest.raises(UserError, match="speed_5000"):
        make("ccc", root=str(tmp_path), speed=5000).stream()
    (folder / "serial_00001.tar").write_bytes(b"<html>")
    with pytest.raises(UserError, match="not a tar"):
        len(make("ccc", root=str(tmp_path)).stream()[1].data)
    (folder / "serial_00000.tar").unlink()
    with pytest.raises(UserError, match="without a gap"):
        make("ccc", root=str(tmp_path)).stream()


FILES = ["cifar10c", "cifar100c", "cifar10_1", "imagenet_c", "imagenet_3dcc", "imagenet_r", "imagenet_a", "imagenet_v2",
         "imagenet_sketch", "imagenet_d109", "domainnet126", "ccc"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_without_a_folder_it_says_what_it_needs(name: str) -> None:
    assert len(entries("cl_bench.scenarios")[name].summary) > 30
    with pytest.raises(UserError, match="set root to a folder with"):
        make(name)


@pytest.mark.skipif(not (SHARED / "data/cifar10c_1k").is_dir(), reason="shared data (cifar10c_1k) is not here")
def test_cifar10c_1k_of_the_shared_data() -> None:
    scenario = make("cifar10c", root=str(SHARED / "data/cifar10c_1k"), clean_root=str(SHARED / "data/cifar10_5k"))
    assert scenario.gives == {"names", "source"} and len(scenario.source.data) == 5000
    assert [len(t.data) for t in scenario.stream()] == [1000] * 15
    assert torch.equal(labels_of(scenario.stream()[0].data)[:8], torch.tensor([3, 8, 8, 0, 6, 6, 1, 6]))
    assert torch.equal(scenario.test_sets()[0].data.y, labels_of(scenario.stream()[0].data))
