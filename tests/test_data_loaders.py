"""The formats that this field publishes in, on small files of the same form; and files that are not what they say."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cl_bench.data.cifar_c import CIFAR_C_CORRUPTIONS, cifar_c, cifar_c_corruptions
from cl_bench.data.files import check_magic, existing_file, verify_digest
from cl_bench.data.folder import FolderData
from cl_bench.data.idx import read_idx, read_idx_pair
from cl_bench.data.parquet import decode_image, read_parquet
from cl_bench.data.vision import torchvision_data
from cl_bench.errors import UserError

HTML = b"<!DOCTYPE html><html><body>429 Too many requests</body></html>"


def pictures(n: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def write_parquet(
    path: Path, blobs: list, labels: list, names: tuple[str, ...] = (), paths: list | None = None
) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b, "path": p} for b, p in zip(blobs, paths or [None] * len(blobs), strict=True)]
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels)})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


# --- image parquet


def test_parquet_gives_the_pixels_labels_and_class_names(tmp_path):
    x = pictures(7)
    file = write_parquet(tmp_path / "a.parquet", [encoded(i) for i in x], list(range(7)), tuple("abcdefg"))
    loaded = read_parquet(file)
    assert loaded.names == tuple("abcdefg")
    assert np.array_equal(loaded.data.x.permute(0, 2, 3, 1).numpy(), x)
    assert loaded.data.y.tolist() == list(range(7)) and loaded.data.y.dtype == torch.int64


def test_parquet_reads_every_encoding_pillow_reads_in_order(tmp_path):
    x = pictures(4)
    blobs = [encoded(x[0], "PNG"), encoded(x[1], "BMP"), encoded(x[2], "JPEG"), encoded(x[3][..., 0], "PNG")]
    data = read_parquet(write_parquet(tmp_path / "a.parquet", blobs, [0, 1, 2, 3])).data
    for row, blob in enumerate(blobs):
        expected = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
        assert np.array_equal(data.x[row].permute(1, 2, 0).numpy(), expected), row


def test_parquet_joins_shards_in_order_of_name_and_stops_at_the_limit(tmp_path):
    x = pictures(8)
    write_parquet(tmp_path / "train-1.parquet", [encoded(i) for i in x[5:]], [5, 6, 7])
    write_parquet(tmp_path / "train-0.parquet", [encoded(i) for i in x[:5]], [0, 1, 2, 3, 4])
    assert read_parquet(tmp_path / "train-*.parquet").data.y.tolist() == list(range(8))
    assert read_parquet(tmp_path / "train-*.parquet", limit=6).data.y.tolist() == list(range(6))
    with pytest.raises(UserError, match="No file matches"):
        read_parquet(tmp_path / "test-*.parquet")


def test_parquet_reads_images_that_lie_beside_it(tmp_path):
    x = pictures(2)
    (tmp_path / "b.png").write_bytes(encoded(x[1]))
    file = write_parquet(tmp_path / "a.parquet", [encoded(x[0]), None], [0, 1], paths=[None, "b.png"])
    assert np.array_equal(read_parquet(file).data.x.permute(0, 2, 3, 1).numpy(), x)


def test_parquet_with_images_of_several_sizes_needs_a_size(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [encoded(pictures(1)[0]), encoded(pictures(1, 6, 12)[0])], [0, 1])
    with pytest.raises(UserError, match="size="):
        read_parquet(file)
    assert read_parquet(file, size=8).data.x.shape == (2, 3, 8, 8)


def test_parquet_columns_and_rows_that_are_wrong_are_named(tmp_path):
    good = [encoded(i) for i in pictures(4)]
    file = write_parquet(tmp_path / "a.parquet", good, [0, 1, 2, 3])
    with pytest.raises(UserError, match='no column "img" but image, label'):
        read_parquet(file, image="img")
    with pytest.raises(UserError, match="not whole numbers"):
        read_parquet(write_parquet(tmp_path / "b.parquet", good, ["a", "b", "c", "d"]))
    with pytest.raises(UserError, match="2 rows without"):
        read_parquet(write_parquet(tmp_path / "c.parquet", good, [0, None, None, 1]))
    with pytest.raises(UserError, match=r"row 2 of .*d\.parquet"):
        read_parquet(write_parquet(tmp_path / "d.parquet", [*good[:2], good[2][:40], good[3]], [0, 1, 2, 3]))
    with pytest.raises(UserError, match="neither bytes nor a path"):
        read_parquet(write_parquet(tmp_path / "e.parquet", [None], [0]))
    with pytest.raises(UserError, match="no rows"):
        read_parquet(write_parquet(tmp_path / "f.parquet", [], np.array([], dtype=np.int64)))


# --- files that are not what they say


def test_damaged_parquet_is_refused(tmp_path):
    whole = write_parquet(tmp_path / "a.parquet", [encoded(pictures(1)[0])], [0]).read_bytes()
    for content, message in (
        (HTML, "web page"),
        (whole[:-9], "cut short"),
        (b"", "empty"),
        (b"PK" * 9, "not a parquet"),
    ):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_parquet(tmp_path / "b.parquet")
    broken = whole[:4] + bytes(len(whole) - 12) + whole[-8:]  # both marks there, nothing between them
    (tmp_path / "b.parquet").write_bytes(broken)
    with pytest.raises(UserError, match="damaged"):
        read_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="sha256"):
        read_parquet(tmp_path / "a.parquet", sha256="0" * 64)
    assert len(read_parquet(tmp_path / "a.parquet", sha256=hashlib.sha256(whole).hexdigest()[:12]).data) == 1


def test_missing_pointer_and_digest_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no file .*put it there"):
        existing_file(tmp_path / "x", "put it there.")
    file = tmp_path / "a.npy"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="Git LFS"):
        check_magic(file, "npy")
    with pytest.raises(UserError, match="too short"):
        verify_digest(file, "ab")


# --- IDX


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
    head = bytes([0, 0, codes[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", ["uint8", "int32", "float32"])
def test_idx_arrays_come_back(tmp_path, kind):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    (tmp_path / "a-idx3").write_bytes(idx_bytes(array))
    (tmp_path / "a-idx3.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("a-idx3", "a-idx3.gz"):
        loaded = read_idx(tmp_path / name)
        assert loaded.dtype == array.dtype and np.array_equal(loaded, array)


def test_idx_pairs_become_three_equal_channels_and_their_digests_are_checked(tmp_path):
    x, y = pictures(5)[..., 0], np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    images, labels = tmp_path / "x.gz", tmp_path / "y.gz"
    images.write_bytes(gzip.compress(idx_bytes(x)))
    labels.write_bytes(gzip.compress(idx_bytes(y)))
    md5 = hashlib.md5(images.read_bytes()).hexdigest()
    data = read_idx_pair(images, labels, images_md5=md5)
    assert data.x.shape == (5, 3, 8, 8) and all(np.array_equal(data.x[:, c].numpy(), x) for c in range(3))
    assert data.y.tolist() == y.tolist()
    with pytest.raises(UserError, match="md5"):
        read_idx_pair(images, labels, labels_md5=md5)
    with pytest.raises(UserError, match="images first"):
        read_idx_pair(labels, images)


def test_damaged_idx_is_refused(tmp_path):
    good = idx_bytes(pictures(5)[..., 0])
    packed = gzip.compress(good)
    cases = {
        "a.gz": (HTML, "web page"), "b.gz": (packed[: len(packed) // 2], "cut short"), "c.gz": (b"no gzip", "not a gzip"),
        "d": (good[:-1], "where its header says"), "e": (good + b"x", "where its header says"), "f": (b"P5 8 8", "not an IDX"),
        "g": (good[:6], "where its header says"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_idx(tmp_path / name)


# --- CIFAR-C


def test_severities_are_blocks_of_the_full_archive(tmp_path):
    block = np.zeros((50_000, 1, 1, 3), dtype=np.uint8)
    block[..., 0, 0, 1] = np.repeat(np.arange(1, 6), 10_000)
    np.save(tmp_path / "fog.npy", block)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10_000) % 10, 5).astype(np.uint8))
    for severity in (1, 3, 5):
        data = cifar_c(tmp_path, "fog", severity=severity)
        assert data.x.shape == (10_000, 3, 1, 1) and (data.x[:, 1] == severity).all()
        assert data.y[:12].tolist() == [*range(10), 0, 1]
    assert len(cifar_c(tmp_path, "fog", limit=7)) == 7


def test_one_severity_layout(tmp_path):
    x = pictures(6)
    for name in ("snow", "fog", "own_noise", "original"):
        np.save(tmp_path / f"{name}.npy", x)
    np.save(tmp_path / "labels.npy", np.arange(6))
    assert cifar_c_corruptions(tmp_path) == ("snow", "fog", "own_noise") and len(CIFAR_C_CORRUPTIONS) == 15
    assert np.array_equal(cifar_c(tmp_path, "snow").x.permute(0, 2, 3, 1).numpy(), x)
    assert len(cifar_c(tmp_path, "original", severity=1)) == 6
    with pytest.raises(UserError, match="one severity"):
        cifar_c(tmp_path, "snow", severity=3)
    with pytest.raises(UserError, match="it holds snow, fog, own_noise"):
        cifar_c(tmp_path, "frost")
    with pytest.raises(UserError, match="1 to 5"):
        cifar_c(tmp_path, "snow", severity=0)


def test_damaged_arrays_are_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(6))
    np.save(tmp_path / "fog.npy", pictures(6))
    whole = (tmp_path / "fog.npy").read_bytes()
    for content, message in ((HTML, "web page"), (whole[:-50], "cut short"), (b"PK\x03\x04zip", "not a npy")):
        (tmp_path / "fog.npy").write_bytes(content)
        with pytest.raises(UserError, match=message):
            cifar_c(tmp_path, "fog")
    np.save(tmp_path / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        cifar_c(tmp_path, "fog")
    np.save(tmp_path / "fog.npy", pictures(5))
    with pytest.raises(UserError, match="6 rows where"):
        cifar_c(tmp_path, "fog")


# --- folders


@pytest.fixture
def image_folder(tmp_path) -> Path:
    for name, count in (("cat", 2), ("dog", 3)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i, picture in enumerate(pictures(count, 20, 12)):
            (tmp_path / name / ("deeper" if i else "") / f"{i}.png").write_bytes(encoded(picture))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_are_classes_in_order_of_name(image_folder):
    lazy = FolderData(image_folder, size=8)
    assert lazy.names == ("cat", "dog") and lazy.y.tolist() == [0, 0, 1, 1, 1] and len(lazy) == 5
    assert lazy[4][0].shape == (3, 8, 8) and lazy[4][0].dtype == torch.uint8 and lazy[4][1] == 1
    assert FolderData(image_folder, size=8, names=["dog"]).y.tolist() == [0, 0, 0]


def test_folders_agree_with_torchvisions_resize_and_crop(image_folder):
    from torchvision.transforms import CenterCrop, Compose, Resize

    transform = Compose([Resize(10), CenterCrop(8)])
    lazy = FolderData(image_folder, size=8, resize=10)
    for i in range(5):
        expected = np.asarray(transform(Image.open(lazy.files[i]).convert("RGB")))
        assert np.array_equal(lazy[i][0].permute(1, 2, 0).numpy(), expected)


def test_folders_without_images_are_refused(tmp_path, image_folder):
    with pytest.raises(UserError, match="no folder"):
        FolderData(tmp_path / "missing")
    with pytest.raises(UserError, match='no folder "bird"'):
        FolderData(image_folder, names=["bird"])
    (image_folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        FolderData(image_folder)
    with pytest.raises(UserError, match="holds no folders"):
        FolderData(image_folder / "empty")
    (image_folder / "broken.jpg").write_bytes(HTML)
    with pytest.raises(UserError, match=r"broken\.jpg\" cannot be decoded: it is a web page"):
        decode_image(image_folder / "broken.jpg", 8)


# --- torchvision's classes


def test_torchvision_mnist_from_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x, y = pictures(5, 28, 28)[..., 0], np.array([7, 2, 1, 0, 4], dtype=np.uint8)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(x))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    loaded = torchvision_data("MNIST", tmp_path, "test")
    assert np.array_equal(loaded.data.x[:, 1].numpy(), x) and loaded.data.y.tolist() == y.tolist()
    assert loaded.names[7] == "7 - seven"


def test_torchvision_cifar_from_files(tmp_path, monkeypatch):
    """The real class on a small archive of the same form; its digests are those of the small files."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    x, digests = pictures(4, 32, 32), {}
    for name, content in {
        "test_batch": {"data": x.transpose(0, 3, 1, 2).reshape(4, -1), "labels": [3, 8, 8, 0]},
        "batches.meta": {"label_names": ["a", "b"]},
    }.items():
        (base / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    loaded = torchvision_data("CIFAR10", tmp_path, "test")
    assert np.array_equal(loaded.data.x.permute(0, 2, 3, 1).numpy(), x)
    assert loaded.data.y.tolist() == [3, 8, 8, 0] and loaded.names == ("a", "b")
    (base / "test_batch").write_bytes(HTML)
    with pytest.raises(UserError, match="cifar-10-batches-py"):
        torchvision_data("CIFAR10", tmp_path, "test")


def test_missing_torchvision_files_say_what_to_put_where(tmp_path):
    for name, wanted in (("CIFAR100", "cifar-100-python"), ("MNIST", "MNIST/raw")):
        with pytest.raises(UserError, match=wanted):
            torchvision_data(name, tmp_path)
    with pytest.raises(UserError, match="Unknown data set"):
        torchvision_data("SVHN", tmp_path)
