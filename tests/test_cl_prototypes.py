"""Prototypes, ridge regression and aligned classifiers, against their closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cl_vit_toys import CPU, backbone, build, experience, features, images, learned

from cl_bench import LabelSpace
from cl_bench.engine.fit import fit


def test_ncm_is_cosine_to_raw_class_means() -> None:
    method, x = learned("ncm"), images(1)
    means = []
    for k in range(2):
        f, y = features(method, images(k)), experience(k).data.y  # type: ignore[attr-defined]
        means += [f[y == c].mean(0) for c in (2 * k, 2 * k + 1)]
    expected = F.cosine_similarity(features(method, x)[:, None], torch.stack(means)[None], dim=2)
    assert torch.allclose(method.predict(x, method.seen), expected, atol=1e-6)


def test_ranpac_is_the_ridge_regression_of_all_data_at_once() -> None:
    method = learned("ranpac", count=3)
    x = torch.cat([images(k) for k in range(3)])
    y = torch.cat([experience(k).data.y for k in range(3)])  # type: ignore[attr-defined]
    h = torch.relu(features(method, x) @ method.project).double()
    at_once = torch.linalg.solve(h.T @ h + method.ridge * torch.eye(60).double(), h.T @ F.one_hot(y, 6).double())
    assert torch.allclose(h @ method.weight, h @ at_once, atol=1e-5)
    assert torch.allclose(method.root.T @ method.root, h.T @ h, atol=1e-6 * float(h.square().sum()))
    assert method.ridge in [10.0**p for p in range(-8, 9)]


def test_ranpac_and_aper_train_in_the_first_experience_only() -> None:
    for name in ("ranpac", "aper"):
        method = learned(name, count=1)
        before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
        assert not torch.equal(features(method, images()), backbone().forward_features(images()))
        fit(method, experience(1), CPU, seed=1)
        assert all(torch.equal(before[k], v) for k, v in method.backbone.state_dict().items()), name


@pytest.mark.parametrize("pet", ["adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune"])
def test_aper_joins_frozen_and_tuned_features(pet: str) -> None:
    method = learned("aper", pet=pet, lr=0.1)
    both = method.features(images())
    assert torch.allclose(both[:, :24], backbone().forward_features(images()), atol=1e-5), (
        "the first half is not frozen"
    )
    assert (both[:, 24:] - both[:, :24]).abs().max() > 1e-4, "the second half was not tuned"


def test_slca_freezes_old_rows_and_answers_with_an_aligned_copy() -> None:
    method = learned("slca", count=1)
    rows = method.head.weight.detach().clone(), method.head.bias.detach().clone()
    fit(method, experience(1), CPU, seed=1)
    assert torch.equal(method.head.weight[:2], rows[0]) and torch.equal(method.head.bias[:2], rows[1])
    assert not torch.equal(method.aligned.weight, method.head.weight)
    f = features(method, images())
    assert torch.allclose(method.predict(images(), method.seen), method.aligned(f))
    groups = method.configure_optimizers()[0][0].param_groups
    assert [g["lr"] for g in groups] == [1e-4, 0.01]
    drawn, labels = method.gaussians.sample(4000, torch.Generator().manual_seed(0))
    own = drawn[labels == 3]
    assert torch.allclose(own.mean(0), method.gaussians.means[3], atol=0.1)
    root = method.gaussians.roots[3]
    assert torch.allclose(torch.cov(own.T), root @ root.T, atol=0.15 * float((root @ root.T).abs().max()))


@pytest.mark.parametrize("name", ["aper", "ranpac", "ease", "mos", "sema"])
def test_schedules_of_the_prototype_papers_step_once_per_epoch(name: str) -> None:
    """RevisitingCIL's aper_adapter, RanPAC, EASE, MOS, SEMA-CL: scheduler.step() after each epoch, T_max = epochs."""
    method, used = build(name, epochs=4, lr=0.5), []
    step = method.training_step

    def watch(batch, batch_idx):
        used.append(method.trainer.optimizers[0].param_groups[0]["lr"])
        return step(batch, batch_idx)

    method.__dict__["training_step"] = watch
    method.batch_size = 8  # three steps an epoch
    fit(method, experience(0), CPU, seed=0)
    assert used == pytest.approx([0.5] * 3 + [0.4267767] * 3 + [0.25] * 3 + [0.0732233] * 3, abs=1e-6)


@pytest.mark.parametrize("name", ["inflora", "coda_prompt"])
@pytest.mark.parametrize("variant, second, third", [("released", 1.0, 0.7126385), ("paper", 0.7126385, 0.0157073)])
def test_the_released_cosine_stays_at_full_rate_for_two_epochs(name: str, variant: str, second: float, third: float) -> None:
    """f(1) = cos(99 pi / 400), f(2) = cos(99 pi / 200)."""
    method, used = build(name, epochs=3, lr=0.5, variant=variant), []
    step = method.training_step

    def watch(batch, batch_idx):
        used.append(method.trainer.optimizers[0].param_groups[0]["lr"])
        return step(batch, batch_idx)

    method.__dict__["training_step"] = watch
    fit(method, experience(0), CPU, seed=0)
    assert used == pytest.approx([0.5, 0.5 * second, 0.5 * third], abs=1e-6)


@pytest.mark.parametrize("name, low, high", [("slca", 0.0, 0.1), ("mos", 0.0, 0.1), ("sema", 0.15, 24**-0.5),
                                             ("sdlora", 0.25, (3 / 24) ** 0.5)])
def test_heads_start_as_published(name: str, low: float, high: float) -> None:
    """SLCA (linears.py): truncated normal 0.02; MOS: timm's, the same; SEMA: U(+-1/sqrt(d)); SD-LoRA: U(+-sqrt(3/d))."""
    method = build(name)
    method.head.grow(LabelSpace(tuple(range(200))))
    assert not method.head.bias.any() and low < float(method.head.weight.detach().abs().max()) <= high
    if name in ("slca", "mos"):
        assert float(method.head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    else:
        assert float(method.head.weight.detach().std()) == pytest.approx(high / 3**0.5, rel=0.05)


def test_ranpac_selects_its_ridge_in_float32() -> None:
    """As RanPAC.py's optimise_ridge_parameter: 17 float32 solutions; on data almost without noise the small ones are noise."""
    import sys

    from cl_bench.registry import find

    m = sys.modules[find("cl_bench.methods", "ranpac").__module__]
    g = torch.Generator().manual_seed(0)
    h = torch.relu(torch.randn(48, 8, generator=g) @ torch.randn(8, 400, generator=g)).double()
    truth = torch.randn(400, 3, generator=g).double() / 400
    y = h @ truth
    parts = h[:38], y[:38], h[38:], y[38:]
    exact, single = m.best(m.losses_exact(*parts)), m.best(m.losses_as_released(*(p.float() for p in parts)))
    assert exact < 1e-4 < single, (exact, single)
    least = 6e-8 * float(torch.linalg.svdvals(h[:38])[0]) ** 2
    assert m.best(m.losses_exact(*parts, single=True)) >= least


@pytest.mark.parametrize("name", ["ncm", "ranpac", "ease", "slca"])
def test_single_precision_images_are_answered_by_a_method_in_double(name: str) -> None:
    method = learned(name).double()
    assert method.predict(images().float(), method.seen).dtype == torch.float64
