"""The loaders on the real files, where they are (CL_BENCH_SHARED, or ../shared)."""

from __future__ import annotations

import torch

from cl_bench.backbones.cifar_resnet import cifar_resnet
from cl_bench.data.cifar_c import CIFAR_C_CORRUPTIONS, cifar_c, cifar_c_corruptions
from cl_bench.data.classes import CIFAR10
from cl_bench.data.idx import read_idx_pair
from cl_bench.data.parquet import read_parquet
from cl_bench.data.tensor import batches


def test_cifar10_and_the_published_accuracy_of_resnet20(shared):
    loaded = read_parquet(shared / "data/cifar10_5k/test-*.parquet")
    assert loaded.names == CIFAR10 and loaded.data.y[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
    model = cifar_resnet(depth=20, folder=str(shared / "weights/resnet20"))
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(loaded.data, 200))
    assert right == 915


def test_cifar10_c_is_made_of_the_same_test_images(shared):
    folder = shared / "data/cifar10c_1k"
    assert cifar_c_corruptions(folder) == CIFAR_C_CORRUPTIONS
    clean = read_parquet(shared / "data/cifar10_5k/test-*.parquet").data
    assert torch.equal(cifar_c(folder, "original").x, clean.x)
    fog = cifar_c(folder, "fog")
    assert torch.equal(fog.y, clean.y) and not torch.equal(fog.x, clean.x)


def test_jpeg_parquet(shared):
    loaded = read_parquet(shared / "data/cifar10_jpeg/test-*.parquet", limit=500)
    assert loaded.data.x.shape == (500, 3, 32, 32) and set(loaded.data.y.tolist()) == set(range(10))


def test_mnist_with_the_official_digests(shared):
    data = read_idx_pair(
        shared / "data/mnist/t10k-images-idx3-ubyte.gz",
        shared / "data/mnist/t10k-labels-idx1-ubyte.gz",
        images_md5="9fb629c4189551a2d022fa330f9573f3",
        labels_md5="ec29112dd5afa0611ce80d1b7f02629c",
    )
    assert data.x.shape == (10_000, 3, 28, 28) and data.y[:5].tolist() == [7, 2, 1, 0, 4]
