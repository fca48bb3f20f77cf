"""Memories: reservoir statistics, draws from explicit generators, copies, data of any kind."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench import TensorData
from cl_bench.memory import Archive, Reservoir, as_uint8


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


@pytest.mark.parametrize("size", [1, 3])
def test_the_first_image_that_comes_late_is_kept_with_its_share(size: int) -> None:
    """``size / (size + 1)``: the image at hand is one of those that the draw is over."""
    g, kept = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        memory = Reservoir(size)
        memory.add(images(size + 1), torch.arange(size + 1), g)
        kept += size in memory.y.tolist()
    assert abs(kept - 300 * size / (size + 1)) < 35, "four standard deviations"


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


@pytest.mark.parametrize("x", [
    torch.randn(6, 5), torch.randn(6, 5, dtype=torch.float64), torch.randint(-99, 99, (6, 4)), torch.randn(6, 4, 3),
    torch.randint(0, 9, (6, 5), dtype=torch.uint8), torch.randn(6) * 9, torch.rand(6, 2) > 0.5,
], ids=lambda x: f"{str(x.dtype)[6:]}{tuple(x.shape)}")  # fmt: skip
def test_data_that_are_no_images_are_kept_as_they_are(x: torch.Tensor) -> None:
    memory, archive = Reservoir(9, extras=("z",)), Archive()
    for rows in (slice(0, 2), slice(2, 6)):
        memory.add(x[rows], torch.arange(6)[rows], torch.Generator().manual_seed(0), z=torch.ones(6)[rows])
        archive.add(TensorData(x[rows], torch.arange(6)[rows]))
    for kept in (memory.read(torch.arange(6)), archive.all()):
        assert kept.x.dtype == x.dtype and torch.equal(kept.x, x) and kept.y.tolist() == list(range(6))


def test_images_are_kept_as_uint8_and_read_as_float() -> None:
    memory = Reservoir(4)
    memory.add(images(3).float() / 255, torch.arange(3), torch.Generator().manual_seed(0))
    assert memory.x.dtype == torch.uint8 and torch.equal(memory.x, images(3))
    assert torch.equal(memory.read(torch.arange(3)).x, images(3).float() / 255)


def test_answers_in_double_precision_stay_in_it() -> None:
    memory, g = Reservoir(4, extras=("logits",)), torch.Generator().manual_seed(0)
    third = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    memory.add(torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, 1]), g, logits=third)
    assert torch.equal(memory.extra("logits", torch.arange(2)), third)


def test_what_is_no_whole_step_is_rounded_to_the_nearest() -> None:
    x = torch.tensor([0.0, 100.4, 100.6, 254.9, 300.0, -9.0]).view(6, 1, 1, 1) / 255
    assert as_uint8(x).flatten().tolist() == [0, 100, 101, 255, 255, 0]
