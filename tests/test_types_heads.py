"""Label spaces, heads and random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import cl_bench
from cl_bench import CosineHead, LabelSpace, LinearHead, PrototypeHead, Rng, TextHead, align_columns, columns_of, select
from cl_bench.heads import FixedHead

ids = st.lists(st.integers(0, 40), unique=True, max_size=8).map(tuple)


named = st.builds(
    lambda i, named, templates: LabelSpace(i, tuple(f"class {k}" for k in i) if named else (), templates),
    ids, st.booleans(), st.sampled_from([(), ("a {}.",), ("{}", "a {}.")]),
)  # fmt: skip


@settings(deadline=None)
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


@settings(deadline=None)
@given(named, named)
def test_difference_keeps_order_names_and_templates(a: LabelSpace, b: LabelSpace) -> None:
    left = a - b
    assert left.ids == tuple(i for i in a.ids if i not in b.ids) and left.templates == a.templates
    assert left.names == (tuple(f"class {i}" for i in left.ids) if a.names and left.ids else ())
    assert not set(left.ids) & set(b.ids) and (a - LabelSpace()) == a and len(a - a) == 0
    assert left - b == left and ((a | b) - b).ids == left.ids
    assert (b | left).ids == (b | a).ids and set((a - (a - b)).ids) == set(a.ids) & set(b.ids)


@settings(deadline=None)
@given(named, named, named)
def test_union_is_associative_and_keeps_names_with_their_ids(a: LabelSpace, b: LabelSpace, c: LabelSpace) -> None:
    assert ((a | b) | c).ids == (a | (b | c)).ids and (a | a).ids == a.ids
    whole = a | b
    assert all(name == f"class {i}" for i, name in zip(whole.ids, whole.names, strict=False))
    assert set(whole.templates) == set(a.templates) | set(b.templates)
    assert whole.templates[: len(a.templates)] == a.templates


@pytest.mark.parametrize("space", [((1, 1), ()), ((1, 2), ("a",)), ((1,), ("a",), ("a photo",))])
def test_bad_spaces_are_refused(space: tuple) -> None:
    with pytest.raises(ValueError, match=r"twice|names|template"):
        LabelSpace(*space)


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


def test_select_is_the_old_name_of_align_columns() -> None:
    assert select is align_columns is cl_bench.select is cl_bench.align_columns


def test_a_head_can_answer_for_its_classes_by_number_and_name() -> None:
    ab = LabelSpace((0, 1), ("a", "b"))
    linear = LinearHead(4)
    assert not linear.can_answer(ab) and linear.can_answer(LabelSpace())
    linear.grow(ab)
    assert linear.can_answer(ab) and linear.can_answer(LabelSpace((1,))) and linear.can_answer(LabelSpace((1,), ("b",)))
    assert not linear.can_answer(LabelSpace((1,), ("c",))) and not linear.can_answer(LabelSpace((1, 2), ("b", "c")))
    fixed = FixedHead(torch.nn.Linear(4, 2), ab, 4)
    with pytest.raises(ValueError, match="takes class 0 for 'a'"):
        fixed.grow(LabelSpace((0,), ("zero",)))
    prototypes = PrototypeHead(4)
    prototypes.grow(ab)
    assert not prototypes.can_answer(ab), "no image was counted yet"
    prototypes.add(torch.ones(1, 4), torch.tensor([1]))
    assert prototypes.can_answer(LabelSpace((1,), ("b",))) and not prototypes.can_answer(ab)


class Words(torch.nn.Module):
    """Embeddings that anybody can follow: letters counted, one dimension each of a, b, c, d."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def forward(self, names: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
        self.calls.append((names, templates))
        texts = [" ".join(t.format(n) for t in templates) for n in names]
        counts = torch.tensor([[float(t.count(letter)) for letter in "abcd"] for t in texts])
        return self.gain * counts


def text_head(encode: Callable[..., torch.Tensor] | None = None) -> TextHead:
    return TextHead(4, encode or Words(), templates=("{}",), scale=10.0)


def test_a_text_head_answers_for_any_named_space_by_cosine_and_scale() -> None:
    head, learned, other = text_head(), LabelSpace((5,), ("ab",)), LabelSpace((7, 9), ("a", "d"))
    head.grow(learned)
    assert head.can_answer(learned | other) and head.can_answer(other) and not head.can_answer(LabelSpace((1,)))
    f = torch.tensor([[3.0, 0.0, 0.0, 4.0]])
    root = 2**-0.5
    assert torch.allclose(head(f), torch.tensor([[10 * 0.6 * root]]))
    assert torch.allclose(head.over(f, other), torch.tensor([[6.0, 8.0]])), "classes never grown are answered for"
    assert torch.allclose(head.over(f, LabelSpace((9, 5), ("d", "ab"))), torch.tensor([[8.0, 10 * 0.6 * root]]))
    assert head.space == learned and head.over(f, LabelSpace()).shape == (1, 0)
    for nameless in (lambda: head.grow(LabelSpace((3,))), lambda: head.over(f, LabelSpace((3,)))):
        with pytest.raises(ValueError, match="reads class names"):
            nameless()
    linear = LinearHead(4)
    linear.grow(LabelSpace((0, 1)))
    assert torch.isinf(linear.over(f, LabelSpace((1, 2)))[0, 1]) and torch.equal(linear.over(f, linear.space), linear(f))


def test_a_text_head_answers_in_float32_whatever_the_precision() -> None:
    near = torch.tensor([[1.0, 0.0], [0.999, 0.0447]])
    head, space = TextHead(2, lambda names, templates: near, scale=5.0), LabelSpace((0, 1), ("a", "b"))
    f = torch.tensor([[1.0, 0.02], [1.0, 0.03]])
    plain = head.over(f, space)
    assert plain.argmax(1).tolist() == [0, 1], "their cosines differ by 0.0002 of themselves"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.over(f, space), plain)
    assert head.over(f.bfloat16(), space).dtype == torch.float32 and head.over(f.double(), space).dtype == torch.float64


def test_a_text_head_encodes_a_space_once_until_it_is_told() -> None:
    words = Words()
    head, space = text_head(words), LabelSpace((0, 1), ("a", "b"))
    head.grow(space)
    f = torch.eye(4)[:2]
    first = head(f)
    head(f)
    head.over(f, LabelSpace((3, 4), ("a", "b")))
    assert words.calls == [(("a", "b"), ("{}",))], "names and templates are the key, not ids"
    head.over(f, LabelSpace((0, 1), ("a", "b"), ("a {}", "{}")))
    assert words.calls[-1] == (("a", "b"), ("a {}", "{}")), "templates of the space come before the head's own"
    words.gain.data.mul_(-1)
    assert torch.equal(head(f), first)
    head.refresh()
    assert torch.allclose(head(f), -first)


def test_a_text_head_trains_its_encoder_and_copies_with_it() -> None:
    words = Words()
    head = text_head(words)
    head.grow(LabelSpace((0, 1), ("ab", "bcc")))
    words.gain.requires_grad_(True)
    for _ in range(2):  # a kept graph would fail at the second backward pass, a kept answer would teach nothing
        with torch.no_grad():
            head(torch.rand(3, 4))
        words.gain.grad = None
        head(torch.rand(3, 4)).sum().backward()
        assert words.gain.grad is not None
    assert "encode.gain" in dict(head.named_parameters()) and not head.kept
    with torch.no_grad():
        before = head(torch.eye(4))
    twin = copy.deepcopy(head)
    assert twin.encode is not words and torch.equal(twin(torch.eye(4)), before)
    assert twin.double()(torch.eye(4).double()).dtype == torch.float64
    with pytest.raises(ValueError, match="the encoder made"):
        text_head(lambda names, templates: torch.ones(1, 4)).over(torch.eye(4), LabelSpace((0, 1), ("a", "b")))
