"""What a method is handed of a scenario's data: copies that lead nowhere; and loops over data of any kind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from cl_bench import TensorData, UserError
from cl_bench.data.tensor import as_float, batch_sizes, batches, images_for_method, labels_of, view_for_method


class Pairs(Dataset):
    """Somebody's own data set: holds everything, hands out views of it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.images, self.labels = x, y

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        return self.images[index], self.labels[index], "task 7"


def whole() -> TensorData:
    x = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 2, 2).contiguous() + 100
    return TensorData(x, torch.tensor([3, 1, 4, 1, 5, 0, 2, 6]))


def kinds() -> list[Dataset]:
    data = whole()
    pairs = Pairs(data.x, data.y)
    return [data, pairs, Subset(pairs, range(8)), ConcatDataset([Subset(pairs, range(3)), Subset(pairs, range(3, 8))])]


def reached(thing: Any, seen: dict[int, Any] | None = None) -> Iterator[Any]:
    """Everything that attributes (slots and mangled names too), items of containers and their like lead to."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, torch.dtype, torch.device)):
        return
    seen[id(thing)] = thing
    yield thing
    if isinstance(thing, (dict, list, tuple)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from reached(part, seen)
    if not isinstance(thing, Tensor):
        for name in dir(thing):
            if not name.startswith("__"):
                yield from reached(getattr(thing, name), seen)


@pytest.mark.parametrize("data", kinds(), ids=lambda d: type(d).__name__)
def test_nothing_written_reaches_the_scenario(data: Dataset) -> None:
    expected = [(x.clone(), int(y)) for x, y, *_ in data]  # type: ignore[attr-defined]
    for handed in (view_for_method(data), images_for_method(data)):
        handed[3][0].zero_()
        handed.y.zero_()  # type: ignore[attr-defined]
        for batch in batches(handed, 3):
            batch.x.zero_()
            batch.y.zero_()
        if isinstance(handed, TensorData):
            for tensor in (handed.x, *handed.take(torch.arange(8)), *handed.take(torch.ones(8, dtype=torch.bool)),
                           handed.subset([0, 1]).x, handed.to("cpu").x, handed.unlabelled().x, handed[0][1]):
                tensor.zero_()
            handed.x.numpy()[:] = 7
            assert torch.equal(handed[2][0], expected[2][0]), "a method's own copy reaches its next batches"
        assert [len(pair) for pair in handed] == [2] * 8, "what stands beside image and label was passed on"  # type: ignore[attr-defined]
    for (x, y, *_), (old, label) in zip(data, expected, strict=True):  # type: ignore[call-overload]
        assert torch.equal(x, old) and int(y) == label


@pytest.mark.parametrize("data", kinds(), ids=lambda d: type(d).__name__)
def test_nothing_that_is_handed_leads_to_what_it_comes_from(data: Dataset) -> None:
    storages = {t.untyped_storage().data_ptr() for t in reached(data) if isinstance(t, Tensor)}
    assert storages, "the walk finds no tensors where there are some"
    for handed in (view_for_method(data), images_for_method(data)):
        found = list(reached(handed))
        assert data not in [f for f in found if isinstance(f, Dataset)]
        assert not storages & {t.untyped_storage().data_ptr() for t in found if isinstance(t, Tensor)}
    labels = labels_of(data)
    for thing in reached(images_for_method(data)):
        assert not (isinstance(thing, Tensor) and thing.shape == labels.shape and torch.equal(thing, labels))


@pytest.mark.parametrize("data", kinds(), ids=lambda d: type(d).__name__)
def test_what_is_handed_is_the_same_data(data: Dataset) -> None:
    handed, images = view_for_method(data), images_for_method(data)
    assert len(handed) == len(images) == 8  # type: ignore[arg-type]
    assert view_for_method(handed) is handed
    assert labels_of(handed).tolist() == [3, 1, 4, 1, 5, 0, 2, 6] and labels_of(images).tolist() == list(range(8))
    for row in range(8):
        assert torch.equal(handed[row][0], data[row][0]) and int(handed[row][1]) == int(data[row][1])
        assert torch.equal(images[row][0], data[row][0]) and int(images[row][1]) == row
    assert int(handed[-1][1]) == 6 and int(images[-1][1]) == 7
    a, b = (torch.cat([x for x, _ in batches(d, 3)]) for d in (data if isinstance(data, TensorData) else handed, handed))
    assert torch.equal(a, b)
    for twin in (copy.deepcopy(handed), pickle.loads(pickle.dumps(handed))):
        assert torch.equal(twin[5][0], handed[5][0]) and labels_of(twin).tolist() == labels_of(handed).tolist()
    assert isinstance(handed, TensorData) == isinstance(data, TensorData)
    if isinstance(handed, TensorData):
        assert torch.equal(handed.x, whole().x) and handed.nbytes == whole().nbytes == 96
        assert handed.digest() == whole().digest()
        assert handed.subset(handed.y == 1).x[:, 0, 0, 0].tolist() == [101, 103]
        assert images.take(torch.tensor([4, 1]))[1].tolist() == [4, 1]  # type: ignore[attr-defined]


def test_a_copy_of_what_is_handed_keeps_its_own_writes_apart() -> None:
    handed = view_for_method(whole())
    handed.x[0] = 9  # type: ignore[attr-defined]
    twin = copy.deepcopy(handed)
    handed.x[0] = 1  # type: ignore[attr-defined]
    assert int(twin.x[0, 0, 0, 0]) == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("handed", [view_for_method(kinds()[0]), images_for_method(kinds()[1])],
                         ids=lambda d: type(d).__name__)
def test_handed_data_go_to_spawned_workers(handed: Dataset) -> None:
    import multiprocessing

    loader = DataLoader(handed, batch_size=5, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn"))
    x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(x, whole().x) and torch.equal(y, labels_of(handed))


# ---------------------------------------------------------------------------------------------- any dtype and shape
@pytest.mark.parametrize("x", [
    torch.randn(5, 7), torch.randn(5, 7, dtype=torch.float64), torch.randint(0, 255, (5, 7), dtype=torch.uint8),
    torch.randint(-9, 99, (5, 4, 3)), torch.rand(5, 3, 4, 4), torch.randint(0, 9, (5,)), torch.rand(5) > 0.5,
], ids=lambda x: f"{str(x.dtype)[6:]}{tuple(x.shape)}")  # fmt: skip
def test_data_that_are_no_images_pass_untouched(x: Tensor) -> None:
    data = TensorData(x, torch.arange(5))
    for d in (data, view_for_method(data)):
        batch = next(batches(d, 5))
        assert batch.x.dtype == x.dtype and torch.equal(batch.x, x)


def test_images_become_float() -> None:
    x = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert torch.equal(as_float(x), torch.tensor([[[[0.0, 0.2, 1.0]]]])) and torch.equal(as_float(x[0]), as_float(x)[0])


@given(st.integers(0, 300), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_batch_sizes_cover_all_images(n: int, size: int) -> None:
    assert batch_sizes(n, size) == [len(rows) for rows in torch.arange(n).split(size)] * (n > 0)
    if n == 1:
        with pytest.raises(UserError, match="too few to train on"):
            batch_sizes(n, size, least=2)
    elif size > 1:
        sizes = batch_sizes(n, size, least=2)
        assert sum(sizes) == n and all(2 <= s <= size + 1 for s in sizes)


def test_impossible_batches_and_unfit_labels_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size"):
        batch_sizes(3, 0)
    with pytest.raises(UserError, match="one label per row"):
        TensorData(torch.zeros(3, 2), torch.zeros(2))
