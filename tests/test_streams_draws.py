"""Orders of arrival for any labels: nothing lost, nothing doubled, as correlated as published."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.registry import find

find("cl_bench.scenarios", "correlated")  # imports the package that the draws live in
draws = sys.modules[find("cl_bench.scenarios", "correlated").__module__.rpartition(".")[0] + "._draws"]

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda v: np.array(v, dtype=np.int64))
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


@settings(max_examples=60, deadline=None)
@given(LABELS, SEEDS, st.sampled_from([0.01, 0.1, 1.0, 100.0]))
def test_correlated_orders_are_permutations(labels: np.ndarray, seed: int, delta: float) -> None:
    for rows in (draws.sorted_by_class(labels), draws.rotta_slots(labels, delta, rng(seed))):
        assert sorted(rows.tolist()) == list(range(len(labels)))
    assert np.array_equal(draws.rotta_slots(labels, delta, rng(seed)), draws.rotta_slots(labels, delta, rng(seed)))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(10, 40), SEEDS, st.sampled_from([0.05, 0.5, 5.0]))
def test_note_chunks_are_permutations(classes: int, each: int, seed: int, delta: float) -> None:
    labels = np.arange(classes * each) % classes
    rows = draws.note_chunks(labels, delta, rng(seed))
    assert sorted(rows.tolist()) == list(range(len(labels)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=16), SEEDS, st.integers(1, 5), st.sampled_from([0.1, 1.0]))
def test_dynamic_change_spends_all_batches(batches: list[int], seed: int, slots: int, delta: float) -> None:
    for blocks in (draws.change_by_slots(batches, delta, slots, rng(seed)), draws.change_by_blocks(batches, rng(seed))):
        spent = np.zeros(len(batches), dtype=int)
        for domain, count in blocks:
            assert count > 0
            spent[domain] += count
        assert spent.tolist() == batches


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 60), SEEDS, st.floats(1, 200), st.sampled_from(["forward", "backward"]))
def test_long_tail_follows_its_formula(classes: int, each: int, seed: int, rho: float, direction: str) -> None:
    labels = np.arange(classes * each) % classes
    rows = draws.long_tail(labels, rho, direction, rng(seed))
    assert len(set(rows.tolist())) == len(rows)
    counts = np.bincount(labels[rows], minlength=classes)
    expected = [max(1, round(each * rho ** (-c / (classes - 1)))) for c in range(classes)]
    assert counts.tolist() == (expected if direction == "forward" else expected[::-1])


def test_label_shift_has_the_published_length_and_major_classes() -> None:
    labels = np.arange(5000) % 1000
    rows = draws.label_shift(labels, 500_000, rng(0))
    assert len(rows) == 100_000
    majority = [np.bincount(labels[rows[i : i + 100]], minlength=1000) for i in range(0, 100_000, 100)]
    assert sorted(int(m.argmax()) for m in majority) == list(range(1000)), "each class is the major one once"
    assert np.mean([m.max() for m in majority]) > 99.0  # 500000 / (500000 + 999) = 99.8 %
    flat = draws.label_shift(np.arange(40) % 4, 1, rng(0), steps=300)
    assert np.bincount(flat % 4).max() / len(flat) < 0.27, "ratio 1 is uniform"


def test_smaller_delta_is_more_correlated() -> None:
    assert draws.dirichlet(1e-300, 5, 40, rng(0)).max(1).tolist() == [1.0] * 40, "the limit is one part, not all alike"
    labels = rng(1).permutation(np.arange(2000) % 10)
    shuffled = draws.correlation(labels, 50)
    assert shuffled["classes_per_batch"] > 9.5 and shuffled["lag_1_agreement"] < 0.15
    for order in (draws.rotta_slots, draws.note_chunks):
        tight, loose = (draws.correlation(labels[order(labels, d, rng(2))], 50) for d in (0.1, 10.0))
        assert tight["classes_per_batch"] < loose["classes_per_batch"] < shuffled["classes_per_batch"], order.__name__
        assert tight["lag_1_agreement"] > 0.8
    assert draws.correlation(labels[draws.sorted_by_class(labels)], 50)["classes_per_batch"] == 1.0


def test_note_chunks_say_when_no_draw_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "ATTEMPTS", 2)
    sizes = [10] * 7 + [330]  # a chunk is full at 50 only, so small classes crowd into a few and leave others empty
    with pytest.raises(UserError, match="larger delta"):
        draws.note_chunks(np.repeat(np.arange(8), sizes), 1e-6, rng(4))
