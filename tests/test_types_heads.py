"""Label spaces, heads and random numbers."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from cl_bench import CosineHead, LabelSpace, LinearHead, PrototypeHead, Rng, columns_of, select
from cl_bench.heads import FixedHead

ids = st.lists(st.integers(0, 40), unique=True, max_size=8).map(tuple)


@given(ids, ids)
def test_union_keeps_order_and_appends_what_is_new(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    whole = LabelSpace(a) | LabelSpace(b)
    assert whole.ids[: len(a)] == a
    assert set(whole.ids) == set(a) | set(b)
    assert list(whole.ids[len(a):]) == [i for i in b if i not in a]


def test_union_of_names() -> None:
    whole = LabelSpace((3, 1), ("three", "one")) | LabelSpace((1, 2), ("one", "two"))
    assert whole == LabelSpace((3, 1, 2), ("three", "one", "two"))
    assert (LabelSpace((1,)) | LabelSpace((2,), ("two",))).names == ()


@pytest.mark.parametrize(("i", "n"), [((1, 1), ()), ((1, 2), ("a",))])
def test_bad_spaces_are_refused(i: tuple[int, ...], n: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"twice|names"):
        LabelSpace(i, n)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=8), st.data())
def test_columns_are_positions(space: list[int], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from(space), min_size=1, max_size=10))
    assert columns_of(torch.tensor(labels), LabelSpace(tuple(space))).tolist() == [space.index(x) for x in labels]


def test_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[5\]"):
        columns_of(torch.tensor([1, 5]), LabelSpace((1, 2)))


@settings(max_examples=100, deadline=None)
@given(ids.filter(bool), st.lists(st.one_of(st.integers(-50, 50), st.integers(-2**62, 2**62)), min_size=1, max_size=6))
def test_a_label_is_found_or_refused(space: tuple[int, ...], labels: list[int]) -> None:
    """Never another class's column: -1 and -5 were once column 0."""
    if set(labels) <= set(space):
        assert columns_of(torch.tensor(labels), LabelSpace(space)).tolist() == [space.index(x) for x in labels]
    else:
        with pytest.raises(ValueError, match="not in the label space"):
            columns_of(torch.tensor(labels), LabelSpace(space))


@pytest.mark.parametrize("labels", [[-1, -5, 2], [2, -1], [3], [0.5, 1.0], [float("nan"), 0.0]])
def test_labels_that_are_no_classes_are_refused(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="not in the label space"):
        columns_of(torch.tensor(labels), LabelSpace((0, 1, 2)))


def test_select_reorders_and_marks_unknown() -> None:
    out = select(torch.tensor([[1.0, 2.0, 3.0]]), LabelSpace((7, 8, 9)), LabelSpace((9, 4, 7)))
    assert out.tolist() == [[3.0, -torch.inf, 1.0]]


@pytest.mark.parametrize("make", [LinearHead, CosineHead, PrototypeHead])
def test_growing_keeps_what_was_learned(make: type) -> None:
    torch.manual_seed(0)
    head = make(6)
    head.grow(LabelSpace((5, 3)))
    if isinstance(head, PrototypeHead):
        head.add(torch.randn(10, 6), torch.tensor([5, 3] * 5))
    x = torch.randn(4, 6)
    before = head(x).detach()
    head.grow(LabelSpace((3, 9)))
    assert head.space.ids == (5, 3, 9)
    assert head(x).shape == (4, 3)
    torch.testing.assert_close(head(x)[:, :2].detach(), before, rtol=0, atol=0)


def test_prototypes_do_not_depend_on_how_data_come() -> None:
    x, y = torch.randn(20, 4), torch.tensor([0, 1] * 10)
    whole, parts = PrototypeHead(4), PrototypeHead(4)
    for head in (whole, parts):
        head.grow(LabelSpace((0, 1)))
    whole.add(x, y)
    for k in range(0, 20, 5):
        parts.add(x[k:k + 5], y[k:k + 5])
    torch.testing.assert_close(whole.prototypes, parts.prototypes)
    torch.testing.assert_close(whole.prototypes[1], x[y == 1].mean(0))


def test_fixed_head_says_that_it_cannot_grow() -> None:
    head = FixedHead(torch.nn.Linear(4, 2), LabelSpace((0, 1)), 4)
    head.grow(LabelSpace((1,)))
    with pytest.raises(ValueError, match="cannot grow"):
        head.grow(LabelSpace((2,)))


def test_rng_copies_go_on_alone() -> None:
    rng = Rng(3)
    torch.rand(2, generator=rng.on("cpu"))
    twin = copy.deepcopy(rng)
    a, b = torch.rand(5, generator=rng.on()), torch.rand(5, generator=twin.on())
    assert torch.equal(a, b)
    torch.rand(5, generator=twin.on())
    assert not torch.equal(torch.rand(5, generator=rng.on()), torch.rand(5, generator=twin.on()))
