"""Memories: reservoir statistics, balance, herding, draws from explicit generators, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cl_bench import TensorData
from cl_bench.memory import Archive, ClassBalanced, Herding, Reservoir, as_uint8, herd


def images(n: int, start: int = 0) -> torch.Tensor:
    """n images whose first pixel is their number."""
    x = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(start, start + n) % 256
    return x


def test_reservoir_keeps_every_image_equally_often() -> None:
    n, size, trials = 24, 6, 400
    counts = torch.zeros(n)
    g = torch.Generator().manual_seed(0)
    for _ in range(trials):
        memory = Reservoir(size)
        for start in range(0, n, 8):
            memory.add(images(8, start), torch.arange(start, start + 8), g)
        assert memory.samples == size
        counts[memory.y] += 1
    expected = trials * size / n
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    # the draws are without replacement, so the statistic is below chi-square with 23 degrees of freedom (99.9 %: 50)
    assert chi2 < 50, f"chi-square {chi2:.1f}: some positions are stored more often than others"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 5))
def test_reservoir_holds_distinct_images_of_the_stream(batches: list[int], size: int, seed: int) -> None:
    g, memory, start = torch.Generator().manual_seed(seed), Reservoir(size, extras=("z",)), 0
    for n in batches:
        y = torch.arange(start, start + n)
        memory.add(images(n, start), y, g, z=y.float()[:, None])
        start += n
    assert memory.samples == min(size, start)
    assert len(memory.y.unique()) == memory.samples, "an image is stored twice"
    assert torch.equal(memory.x[:, 0, 0, 0].long(), memory.y), "image and label were separated"
    assert torch.equal(memory.extra_z[:, 0].long(), memory.y), "extra and label were separated"


def test_batch_size_does_not_matter_to_the_reservoir() -> None:
    """The sequential algorithm, one image at a time, as Vitter wrote it down."""
    whole, single = Reservoir(5), Reservoir(5)
    whole.add(images(30), torch.arange(30), torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    for k in range(30):
        single.add(images(1, k), torch.tensor([k]), g)
    assert torch.equal(whole.y, single.y)
    g, slots = torch.Generator().manual_seed(3), list(range(5))
    for k in range(5, 30):
        at = int(torch.rand(1, generator=g, dtype=torch.float64) * (k + 1))
        if at < 5:
            slots[at] = k
    assert whole.y.tolist() == slots


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(5, 20))
def test_class_balanced_memory_is_balanced(labels: list[int], size: int) -> None:
    memory, g = ClassBalanced(size), torch.Generator().manual_seed(0)
    y = torch.tensor(labels)
    for start in range(0, len(y), 7):
        memory.add(images(len(y[start : start + 7]), start), y[start : start + 7], g)
    assert memory.samples == min(size, len(labels))
    have = torch.bincount(memory.y, minlength=5)
    came = torch.bincount(y, minlength=5)
    for c in range(5):  # a class with fewer images than another must have run out of images, give or take one
        assert have[c] >= min(int(came[c]), int(have.max()) - 1)


def test_herding_is_greedy_towards_the_mean() -> None:
    f = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = herd(f, 5).tolist()
    unit = nn.functional.normalize(f, dim=1)
    mean, chosen = unit.mean(0), []
    for _ in range(5):
        rest = [k for k in range(12) if k not in chosen]
        best = min(rest, key=lambda k: float((mean - unit[[*chosen, k]].mean(0)).norm()))
        chosen.append(best)
    assert order == chosen


def test_herding_memory_shares_its_room_and_keeps_the_best() -> None:
    g = torch.Generator().manual_seed(0)
    memory = Herding(12)
    f = torch.randn(40, 6, generator=g)
    y = torch.arange(40) % 2
    memory.add(images(40), y, f)
    first = memory.x[memory.y == 0, 0, 0, 0].tolist()
    assert len(first) == 6
    memory.add(images(20, 100), torch.full((20,), 5), torch.randn(20, 6, generator=g))
    assert torch.bincount(memory.y).tolist() == [4, 4, 0, 0, 0, 4]
    assert memory.x[memory.y == 0, 0, 0, 0].tolist() == first[:4], "the first of the herding order stay"
    with pytest.raises(ValueError, match="cannot hold"):
        Herding(2).add(images(3), torch.arange(3), torch.randn(3, 6))


def test_draw_is_without_replacement_from_the_given_generator() -> None:
    memory = Reservoir(10)
    memory.add(images(6), torch.arange(6), torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    a, b = (memory.draw(4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a.y, b.y) and len(a.y.unique()) == 4
    assert sorted(memory.draw(99, torch.Generator().manual_seed(1)).y.tolist()) == list(range(6))
    assert a.x.dtype == torch.float32 and float(a.x.max()) <= 1
    assert torch.equal(state, torch.get_rng_state()), "a global generator moved"


def test_logits_of_a_growing_head_are_padded() -> None:
    memory, g = Reservoir(4, extras=("z",)), torch.Generator().manual_seed(0)
    memory.add(images(2), torch.zeros(2), g, z=torch.ones(2, 2))
    memory.add(images(2, 2), torch.ones(2), g, z=torch.full((2, 3), 2.0))
    assert memory.extra_z.isnan().tolist() == [[False, False, True]] * 2 + [[False] * 3] * 2
    with pytest.raises(ValueError, match="extras"):
        memory.add(images(1), torch.zeros(1), g)


def test_images_survive_as_uint8_and_copies_are_apart() -> None:
    x = images(256)
    assert torch.equal(as_uint8(x.float() / 255), x)
    memory = Reservoir(3)
    memory.add(x[:3], torch.arange(3), torch.Generator().manual_seed(0))
    twin = copy.deepcopy(memory)
    memory.add(x[100:180], torch.full((80,), 9), torch.Generator().manual_seed(0))
    assert twin.y.tolist() == [0, 1, 2] and twin.seen == 3 and 9 in memory.y.tolist()
    assert set(dict(memory.named_buffers())) == {"x", "y"}, "contents must be buffers, to be moved and counted"


def test_archive_keeps_everything() -> None:
    archive = Archive()
    archive.add(TensorData(images(3), torch.arange(3)))
    archive.add(TensorData(images(2, 3), torch.arange(3, 5)))
    assert archive.samples == 5 and archive.all().y.tolist() == [0, 1, 2, 3, 4]
