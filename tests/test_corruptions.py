"""The corruptions: contract, randomness, and pixel equality with the authors' arrays where these are at hand."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import cl_bench_ops
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cl_bench.corruptions import EXTRA, NAMES, STANDARD, corrupt
from cl_bench.corruptions.blur import glass_blur
from cl_bench.corruptions.frost_texture import generated
from cl_bench.corruptions.parameters import PARAMETERS
from cl_bench.corruptions.replay import REPLAYED, replay
from cl_bench.corruptions.tools import Draws, floor_steps, streak, zoom_matrix
from cl_bench.errors import UserError

RANDOM = (
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform", "speckle_noise", "spatter",
)  # fmt: skip
FIXED = tuple(name for name in NAMES if name not in RANDOM)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, size: int = 32) -> Tensor:
    """Coloured waves with a bright disk and a dark bar: structure at several scales, in whole steps of 1/255."""
    line = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    made = []
    for i in range(count):
        waves = [0.5 + 0.3 * torch.sin(6.28 * ((c + 1 + i % 3) * x + (2 + i % 4 - c) * y + i)) for c in range(3)]
        image = torch.stack(waves)
        image[:, (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.04] = torch.tensor([0.9, 0.8, 0.3 + 0.05 * i])[:, None]
        image[:, :, size // 8 : size // 6 + 1] *= 0.3
        made.append(image)
    return torch.stack(made).clamp(0, 1).mul(255).round().div(255)


def test_the_names_are_the_published_ones_in_the_published_order() -> None:
    assert len(STANDARD) == 15 and len(EXTRA) == 4 and len(set(NAMES)) == 19
    assert STANDARD[:4] == ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur")
    assert STANDARD[-1] == "jpeg_compression"
    for table in PARAMETERS.values():
        assert set(table) == set(NAMES)
        assert all(len(settings) == 5 for settings in table.values())


@pytest.mark.parametrize("name", NAMES)
def test_shape_range_steps_and_determinism(name: str) -> None:
    x = pictures(3)
    before = x.clone()
    for severity in (1, 5):
        out = corrupt(x, name, severity, generator=seeded())
        assert out.shape == x.shape and out.dtype == torch.float32
        assert float(out.min()) >= 0 and float(out.max()) <= 1
        steps = out * 255
        assert torch.allclose(steps, steps.round(), atol=1e-3), "not whole steps of 1/255"
        assert torch.equal(out, corrupt(x, name, severity, generator=seeded())), "same generator, other result"
        if severity == 5:
            assert not torch.equal(out, x)
    assert torch.equal(x, before), "the input was changed"


@pytest.mark.parametrize("name", NAMES)
def test_larger_images_use_the_other_table(name: str) -> None:
    x = pictures(2, 224)
    out = corrupt(x, name, 3, generator=seeded())
    assert out.shape == x.shape and bool(out.isfinite().all())
    assert 0.002 < float((out - x).abs().mean()) < 0.6
    assert torch.equal(out, corrupt(x, name, 3, generator=seeded(), resolution="imagenet"))
    if name != "frost":  # would want textures of 1,120 pixels: the small table reduces them to a fifth
        assert not torch.equal(out, corrupt(x, name, 3, generator=seeded(), resolution="cifar"))


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (33, 31)])
def test_odd_sizes_and_batches_of_one(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size, generator=seeded(5))
    for name in NAMES:
        for severity in range(1, 6):
            out = corrupt(x, name, severity, generator=seeded())
            assert out.shape == x.shape and bool(out.isfinite().all()), (name, severity)


def test_an_empty_batch_stays_empty() -> None:
    for name in NAMES:
        assert corrupt(torch.zeros(0, 3, 32, 32), name, 5, generator=seeded()).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", RANDOM)
def test_each_image_has_its_own_randomness(name: str) -> None:
    one = pictures(1)
    out = corrupt(one.expand(6, -1, -1, -1), name, 5, generator=seeded())
    different = {tuple(image.flatten().tolist()) for image in out}
    assert len(different) == 6
    assert not torch.equal(out, corrupt(one.expand(6, -1, -1, -1), name, 5, generator=seeded(1)))


@pytest.mark.parametrize("name", FIXED)
def test_corruptions_without_randomness_do_not_depend_on_the_batch(name: str) -> None:
    x = pictures(4)
    generator = seeded()
    state = generator.get_state()
    together = corrupt(x, name, 4, generator=generator)
    assert torch.equal(generator.get_state(), state), "drew random numbers"
    alone = torch.cat([corrupt(x[i : i + 1], name, 4, generator=seeded()) for i in (2, 0)])
    assert float((alone - together[[2, 0]]).abs().max()) <= 1.01 / 255  # a rounding may fall either way


@pytest.mark.parametrize("name", RANDOM)
def test_the_strength_on_an_image_does_not_depend_on_its_company(name: str) -> None:
    x = pictures(2)
    clean = x[:1]
    alone = torch.stack(
        [(corrupt(clean, name, 5, generator=seeded(s)) - clean).abs().mean() for s in range(24)]
    )
    batch = torch.cat([clean, x[1:].expand(5, -1, -1, -1)])
    mixed = torch.stack(
        [(corrupt(batch, name, 5, generator=seeded(100 + s))[:1] - clean).abs().mean() for s in range(24)]
    )
    spread = float((alone.var() / 24 + mixed.var() / 24).sqrt())
    assert abs(float(alone.mean() - mixed.mean())) < 5 * spread + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_is_neither_read_nor_changed(name: str) -> None:
    x = pictures(2)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 - the legacy global state is what is looked at
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = corrupt(x, name, 5, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
    torch.manual_seed(8)
    assert torch.equal(first, corrupt(x, name, 5, generator=seeded()))


# As published, not every table is a ladder: spatter turns from water to mud and saturate from less to more; the elastic
# table trades shift for waves; glass blur's fourth sigma is below its third; frost dims as it whitens; how much of a
# picture pixelate changes depends on where its blocks fall.
NO_LADDER = ("spatter", "saturate", "elastic_transform", "glass_blur", "frost", "pixelate")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_LADDER])
def test_severity_grows(name: str) -> None:
    x = pictures(16)
    strength = [float((corrupt(x, name, s, generator=seeded()) - x).abs().mean()) for s in range(1, 6)]
    assert all(b > 0.98 * a for a, b in pairwise(strength)), strength
    assert strength[4] > 1.2 * strength[0], strength


@pytest.mark.parametrize("name", ["glass_blur", "frost", "pixelate"])
def test_the_worst_severity_is_worse_than_the_mildest(name: str) -> None:
    x = pictures(16) * 0.5
    first, last = (float((corrupt(x, name, s, generator=seeded()) - x).abs().mean()) for s in (1, 5))
    assert last > 1.2 * first


def test_bad_requests_say_what_to_do() -> None:
    x = pictures(1)
    with pytest.raises(UserError, match="did you mean 'gaussian_noise'"):
        corrupt(x, "gausian_noise", 5, generator=seeded())
    with pytest.raises(UserError, match="choose one of gaussian_noise"):
        corrupt(x, "qqqq", 5, generator=seeded())
    for severity in (0, 6, 2.5, True, "5"):
        with pytest.raises(UserError, match="1, 2, 3, 4, 5"):
            corrupt(x, "fog", severity, generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="divide uint8"):
        corrupt((x * 255).to(torch.uint8), "fog", 1, generator=seeded())
    with pytest.raises(UserError, match=r"\(N, 3, H, W\)"):
        corrupt(x[0], "fog", 1, generator=seeded())
    with pytest.raises(UserError, match="'cifar', 'imagenet'"):
        corrupt(x, "fog", 1, generator=seeded(), resolution="tiny")


def test_frost_takes_pictures_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No frost pictures"):
        corrupt(pictures(1), "frost", 5, generator=seeded(), frost_textures=tmp_path / "none")
    for i in range(6):  # the sixth must never be drawn
        Image.new("RGB", (200, 180), (40 * i, 40 * i, 40 * i)).save(tmp_path / f"frost{i + 1}.png")
    black = torch.zeros(200, 3, 32, 32)
    out = corrupt(black, "frost", 5, generator=seeded(), frost_textures=tmp_path)
    levels = set((out[:, 0, 0, 0] * 255).round().int().tolist())
    assert levels == {int(0.45 * 40 * i + 1e-3) for i in range(5)}
    given = [torch.full((3, 170, 170), 100.0)]
    assert float(corrupt(black, "frost", 5, generator=seeded(), frost_textures=given).mean()) == pytest.approx(45 / 255)
    with pytest.raises(UserError, match="smaller than the images"):
        corrupt(black, "frost", 5, generator=seeded(), frost_textures=[torch.zeros(3, 100, 100)])
    (tmp_path / "frost1.png").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be decoded: it is a web page"):
        other = tmp_path.rename(tmp_path.with_name("broken"))
        corrupt(black, "frost", 5, generator=seeded(), frost_textures=other)


def test_the_generated_frost_resembles_the_photographs_in_numbers() -> None:
    textures = generated()
    assert len(textures) == 5 and torch.equal(textures[1], textures[2])
    greys = torch.stack([t.mean(0) for t in textures])
    # mean grey, spread, and share of the variance that five pixels (one, at the reduced size) leave correlated
    for grey, mean, spread in zip(greys, (131, 207, 207, 152, 124), (18, 22, 22, 29, 43), strict=True):
        assert float(grey.mean()) == pytest.approx(mean, abs=3)
        assert float(grey.std()) == pytest.approx(spread, abs=1.5)
        step = float((grey[:, 5:] - grey[:, :-5]).var() / 2 / grey.var())
        assert 0.2 < step < 0.7, "neither white noise nor a flat ground"
    assert all(float(t.min()) >= 0 and float(t.max()) <= 255 for t in textures)


@pytest.mark.parametrize("delta", [1, 2, 3, 4])
def test_the_glass_shuffle_equals_the_walk_pixel_by_pixel(delta: int) -> None:
    height, width, rng = 13, 15, np.random.default_rng(delta)
    values = rng.integers(0, 1000, (3, height, width))
    steps = rng.integers(-delta, delta, (3, height - 2 * delta, width - 2 * delta, 2))
    walked = values.copy()
    for n in range(3):
        for i, h in enumerate(range(height - delta, delta, -1)):
            for j, w in enumerate(range(width - delta, delta, -1)):
                right, down = steps[n, i, j]
                walked[n, h, w] = walked[n, h + down, w + right]
    origin = cl_bench_ops.glass_origin(*torch.from_numpy(steps).float()[:, None].unbind(-1), height, width, delta)
    shuffled = torch.from_numpy(values).flatten(1).gather(1, origin).numpy().reshape(values.shape)
    assert np.array_equal(shuffled, walked)


@pytest.mark.parametrize("delta", [1, 3])
def test_steps_are_uniform(delta: int) -> None:
    right, down = Draws(seeded(), torch.device("cpu")).steps((60000,), delta)
    joint = torch.bincount(((right + delta) * 2 * delta + down + delta).long(), minlength=4 * delta * delta)
    expected = 60000 / (4 * delta * delta)
    assert float(((joint - expected) ** 2 / expected).sum()) < 4 * delta * delta + 8 * (2 * delta)


@pytest.mark.parametrize(("resolution", "severity"), [("cifar", 1), ("cifar", 5), ("imagenet", 5)])
def test_shot_noise_has_poisson_counts(resolution: str, severity: int) -> None:
    photons = PARAMETERS[resolution]["shot_noise"][severity - 1]
    level = 102 / 255
    x = torch.full((40, 3, 32, 32), level)
    counts = corrupt(x, "shot_noise", severity, generator=seeded(), resolution=resolution).double() * photons
    if photons > 3:
        # Cutting to whole steps takes half a step off on average where the counts do not fall on whole steps.
        assert float(counts.mean()) == pytest.approx(level * photons, rel=0.01, abs=0.5 * photons / 255)
        assert float(counts.var()) == pytest.approx(level * photons, rel=0.03)
        return
    counts = counts.round()  # the top count, 3, also holds the larger ones, which are clipped
    rate = torch.tensor(level * photons, dtype=torch.float64)
    for k in range(3):
        chance = float(torch.exp(k * rate.log() - rate - torch.lgamma(torch.tensor(k + 1.0))))
        assert float((counts == k).double().mean()) == pytest.approx(chance, abs=0.006)


def test_impulse_noise_hits_the_published_share() -> None:
    x = torch.full((40, 3, 32, 32), 128 / 255)
    out = corrupt(x, "impulse_noise", 5, generator=seeded())
    assert float((out == 0).double().mean()) == pytest.approx(0.035, abs=0.002)
    assert float((out == 1).double().mean()) == pytest.approx(0.035, abs=0.002)


def test_streaks_follow_their_own_direction_and_keep_flat_images() -> None:
    x = torch.zeros(3, 1, 33, 33)
    x[:, :, 16, 16] = 255.0
    out = streak(x, torch.tensor([45.0, 0.0, -45.0]), radius=6, sigma=3)
    trails = [set(map(tuple, (image[0] > 0).nonzero().tolist())) for image in out]
    assert all(column < 16 or (row, column) == (16, 16) for row, column in trails[1])
    assert {row for row, _ in trails[1]} == {16}
    assert trails[0] == {(row, row) for row, _ in trails[0]} and len(trails[0]) > 3
    assert trails[2] == {(row, 32 - row) for row, _ in trails[2]} and len(trails[2]) > 3
    flat = torch.full((2, 3, 16, 16), 77.0)
    assert torch.equal(streak(flat, torch.tensor([10.0, -100.0]), radius=9, sigma=2.5), flat)


def test_zooming_keeps_the_middle_and_a_flat_line() -> None:
    matrix = zoom_matrix(32, 1.25)
    assert torch.allclose(matrix.sum(1), torch.ones(32), atol=1e-6)
    assert torch.equal(zoom_matrix(32, 1.0), torch.eye(32))
    assert abs(float(matrix[0] @ torch.arange(32.0)) - 3) < 1.0


@pytest.mark.parametrize("name", REPLAYED)
def test_the_authors_random_numbers_give_the_authors_pixels(name: str) -> None:
    folder = Path(os.environ.get("CL_BENCH_SHARED", Path(__file__).parents[1] / ".." / "shared")) / "data/cifar10c_1k"
    if not (folder / f"{name}.npy").is_file():
        pytest.skip(f"needs the authors' arrays in {folder} (set CL_BENCH_SHARED)")
    clean, wanted = (
        torch.from_numpy(np.load(folder / f"{file}.npy")[:20]).permute(0, 3, 1, 2).float() for file in ("original", name)
    )
    off = (replay(clean / 255, name, 5) * 255 - wanted).abs().round()
    assert float((off > 0).float().mean()) < 0.015, "more than rounding apart"
    assert float(off.max()) <= 2.0


def test_replay_draws_afresh_and_refuses_what_it_cannot_draw() -> None:
    x = pictures(3)
    assert torch.equal(replay(x, "fog", 5), replay(x, "fog", 5))
    assert not torch.equal(replay(x, "fog", 5), replay(x, "fog", 5, seed=1))
    assert not torch.equal(*replay(x[:1].repeat(2, 1, 1, 1), "snow", 5))
    with pytest.raises(ValueError, match="cannot be replayed"):
        replay(x, "frost", 5)


def test_glass_blur_of_a_flat_image_is_flat() -> None:
    flat = torch.full((2, 3, 24, 24), 90.0)
    out = floor_steps(glass_blur(flat, (1.1, 3, 2), Draws(seeded(), torch.device("cpu"))))
    assert torch.equal(out, flat)
