"""Cores of test-time vision-language methods against vectors that the authors' own code made, and worked examples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import core, draws, same

from cl_bench.registry import find

KIND = "vision_language"


def bare(name: str, text: torch.Tensor, **options: Any) -> Any:
    """A method without a model: its settings, and the texts of its classes."""
    cls = find("cl_bench.methods", name)

    class Bare(cls):  # type: ignore[misc, valid-type]
        scale = torch.tensor(100.0, dtype=torch.float64)

    method = Bare.__new__(Bare)
    torch.nn.Module.__init__(method)
    method.__dict__.update(counts={"steps": 0}, **options)
    method.restart_memory()
    return method


def unit(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_zero_votes_as_released(shared: Path) -> None:
    m = core("zero")
    for v in draws(shared, "ZERO", KIND):
        for k, f in enumerate(v.image_features):
            got = m.votes(f @ v.text_features.T, 100.0, v.number("gamma"))
            if not int(v.last_resort_float64[k]):  # there the released code counts a class that is not tied
                same(got, v.votes_float64[k], 1e-6)
                assert int(got.argmax()) == int(v.votes_float64[k].argmax())


def test_zero_breaks_ties_by_the_next_view() -> None:
    m = core("zero")
    cosines = torch.tensor([[5.0, 0, 0], [0, 4, 0], [0, 0, 3], [0, 2, 0], [1, 0, 0.5]])
    assert m.votes(cosines, 1.0, 0.4).tolist() == [1, 2, 0]
    two = torch.tensor([[0.300, 0.298], [0.250, 0.280]])
    assert m.votes(two, 100.0, 1.0).tolist() == [1, 1]
    torch.testing.assert_close(m.votes(two, 100.0, 1.0, "soft"), torch.tensor([0.885745, 1.114255]), atol=1e-4, rtol=0)


def test_mta_finds_the_released_mode(shared: Path) -> None:
    m = core("mta")
    for v in draws(shared, "MTA", KIND):
        for size in (16, 64):
            for k, f in enumerate(v[f"image_features_{size}"]):
                got = m.shift(f, v.text_features, 100.0, 0.2, 4.0)
                same(100.0 * got.mode @ v.text_features.T, v[f"logits_{size}"][k], 1e-7)
                same(got.mode, v[f"mode_{size}"][k], 1e-9)
                same(got.inlierness, v[f"inlierness_{size}"][k], 1e-9)
                same(got.bandwidth, v[f"bandwidth_{size}"][k], 1e-9)


def test_mta_by_hand() -> None:
    got = core("mta").shift(unit(0, 2, -3, 5, 8, 10, 60, 70), unit(0, 65), 10.0, 0.2, 4.0)
    same(10 * got.mode @ unit(0, 65).T, torch.tensor([9.999921, 4.190205], dtype=torch.float64), 1e-6)


@pytest.mark.parametrize(("kind", "steps", "shared_shift"), [("perclass_1step", 1, False), ("perclass_3step", 3, False),
                                                           ("shared_1step", 1, True)])  # fmt: skip
def test_tps_shifts_as_released(kind: str, steps: int, shared_shift: bool, shared: Path) -> None:
    m = core("tps")
    for v in draws(shared, "TPS", KIND):
        for k, f in enumerate(v.view_features):
            moved, losses = m.shifted(f, v.text_features, 100.0, v.number("lr"), steps, v.number("selection_p"), shared_shift)
            same(moved, v[f"{kind}_shift"][k], 1e-8)
            same(torch.tensor(losses, dtype=torch.float64), v[f"{kind}_loss"][k], rtol=1e-9)
            same(100 * f[0] @ F.normalize(v.text_features + moved, dim=-1).T, v[f"{kind}_logits"][k], 1e-6)


def check_cache(held: dict[int, Any], v: Any, prefix: str) -> None:
    for c in range(7):
        items = held.get(c, [])
        assert len(items) == int(v[f"{prefix}_cache_count"][c])
        for k, item in enumerate(items):
            same(item[0], v[f"{prefix}_cache_features"][c, k])
            assert item[1] == pytest.approx(float(v[f"{prefix}_cache_entropy"][c, k]), abs=1e-9) or item[2] is not None
            if item[2] is not None:
                same(item[2], v[f"{prefix}_cache_prob"][c, k])


@pytest.mark.parametrize("prefix", ["", "views_"])
def test_tda_answers_as_released(prefix: str, shared: Path) -> None:
    for v in draws(shared, "TDA", KIND):
        method = bare("tda", v.text_features, alpha=2.0, beta=5.0, shots=3, negatives=2, share=0.1)
        shown = v.view_features if prefix else v.image_features[:, None]
        got = torch.stack([method.score(f, v.text_features) for f in shown])
        same(got, v[f"{prefix}logits"], rtol=1e-9)
        check_cache(method.positive, v, f"{prefix}pos")
        check_cache(method.negative, v, f"{prefix}neg")


@pytest.mark.parametrize(("prefix", "query", "delta"), [("row0_delta0", "image", 0), ("row0_delta2", "image", 2),
                                                       ("mean_delta3", "mean", 3)])  # fmt: skip
def test_boostadapter_answers_as_released(prefix: str, query: str, delta: int, shared: Path) -> None:
    for v in draws(shared, "BoostAdapter", KIND):
        method = bare("boostadapter", v.text_features, alpha=2.0, beta=5.0, shots=3, negatives=2, share=0.1, query=query,
                      delta=delta)  # fmt: skip
        got = torch.stack([method.score(f, v.text_features) for f in v.view_features])
        same(got, v[f"{prefix}_logits"], rtol=1e-9)
        check_cache(method.positive, v, f"{prefix}_pos")
        check_cache(method.negative, v, f"{prefix}_neg")


@pytest.mark.parametrize(("file", "form"), [("DMN_full", "full"), ("DMN_full_ttavlm", "tta_vlm"), ("DMN_weak", "weak")])
def test_dmn_remembers_as_released(file: str, form: str, shared: Path) -> None:
    for v in draws(shared, file, KIND):
        method = bare("dmn", v.text_features, form=form, memory=4, beta=5.5, weight=1.0, share=0.1)
        shown = v.image_features[:, None] if form == "weak" else v.view_features
        found = [method.answers(f, v.text_features) for f in shown]
        want = v.output_weight1 if form == "full" else v.output
        same(torch.stack([p + d for p, d, _ in found]), want, rtol=1e-9)
        assert [c for _, _, c in found] == v.write_class.tolist()
        for c in range(7):
            for k, (feature, entropy) in enumerate(method.slots.get(c, [])):
                same(feature, v.memory[c, k])
                assert entropy == pytest.approx(float(v.memory_entropy[c, k]), abs=1e-9)


@pytest.mark.parametrize(("prefix", "alpha", "beta"), [("", 1.0, 0.8), ("alpha0_", 0.0, 0.4)])
def test_onzeta_answers_as_released(prefix: str, alpha: float, beta: float, shared: Path) -> None:
    for v in draws(shared, "OnZeta", KIND):
        method = bare("onzeta", v.text_features, length=40, tau_text=0.01, tau_image=0.04, c_w=0.5, c_r=20.0, alpha=alpha,
                      beta=beta)  # fmt: skip
        for k, f in enumerate(v.image_features):
            same(method.score(f[None], v.text_features), v[f"{prefix}output"][k], 1e-8)
            same(method.rho, v[f"{prefix}rho"][k], 1e-8)
        same(method.proxies, v[f"{prefix}w_final"], 1e-8)


def test_dispersion_by_hand() -> None:
    m = core("c_tpt")
    for c, want in ((2, 0.707107), (4, 0.866025), (10, 0.948683)):
        assert float(m.dispersion(torch.eye(c))) == pytest.approx(want, abs=1e-6)
    assert float(m.dispersion(unit(0, 60))) == pytest.approx(0.5)
    assert float(m.dispersion(unit(0, 60, 120))) == pytest.approx(0.699056, abs=1e-6)


def test_reliability_by_hand() -> None:
    weights = core("r_tpt").reliability(unit(0, 10, 20, 80), 2, 0.01)
    same(weights, torch.tensor([0.086636, 0.826727, 0.086636, 0.0], dtype=torch.float64), 1e-6)
    logits = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 9]], dtype=torch.float64)
    same(weights @ logits, torch.tensor([1.740091, 0.086636], dtype=torch.float64), 1e-6)


def test_entropies_of_views_by_hand() -> None:
    m = core("zero", "_views")
    z = torch.tensor([[2.0, 0, 0], [0, 2, 0], [1, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(m.entropies(z), torch.tensor([0.665573, 0.665573, 1.017357, math.log(3)]), atol=1e-6, rtol=0)
    assert float(m.marginal_entropy(z[:2])) == pytest.approx(0.958472, abs=1e-6)
    assert [len(m.confident(torch.rand(n), q)) for n, q in ((64, 0.1), (64, 0.3), (32, 0.1), (1, 0.1))] == [6, 19, 3, 1]


def test_sts_moves_every_coordinate_by_its_rate_and_not_by_the_penalty() -> None:
    m = core("sts")
    gen = torch.Generator().manual_seed(0)
    text, f = (F.normalize(torch.randn(n, 16, generator=gen, dtype=torch.float64), dim=-1) for n in (6, 20))
    basis = m.principal(text)
    s = torch.linalg.svdvals(text)
    omega = 0.56 * 0.375**3 - 0.95 * 0.375**2 + 1.82 * 0.375 + 1.43
    assert basis.shape == (16, max(1, int((s > omega * s.median()).sum())))
    one, two = (m.steered(f, text, torch.eye(16, dtype=torch.float64), 100.0, 5e-3, 1, 0.3, p) for p in (0.0, 100.0))
    assert torch.equal(one, two)
    still = m.steered(f, text, basis, 100.0, 0.0, 1, 0.3, 0.1)
    kept = f[core("zero", "_views").confident(core("zero", "_views").entropies(100 * f @ text.T), 0.3)]
    same(still, (100 * kept @ text.T).softmax(1).mean(0))




def test_augmix_stays_between_the_image_and_its_changes_and_follows_its_seed() -> None:
    from cl_bench import Rng

    m = core("tpt", "_augmix")
    grey = torch.full((2, 3, 30, 30), 0.502)  # 128 of 255, on which every change but those of place leaves 128 or makes it 0
    x = torch.rand(4, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    one, two, other = (m.mixed(x, Rng(s)) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other) and one.shape == x.shape
    assert float(m.mixed(grey, Rng(0)).max()) <= 0.503 and float(one.min()) >= 0 and float(one.max()) <= 1
    line = torch.zeros(3, 30, 30, dtype=torch.uint8)
    line[:, :, 10] = 255
    assert bool((m.CHANGES[7](line, 1.0, 1)[:, :, 11] == 255).all())  # a thirtieth of the side to the right
    assert int(m.CHANGES[4](torch.full((3, 2, 2), 250, dtype=torch.uint8), 1.0, 1).max()) == 5  # over 231: inverted


def test_ecalp_propagates_as_released(shared: Path) -> None:
    for v in draws(shared, "ECALP", KIND):
        method = bare("ecalp", v.text_features, k_image=8, k_text=3, gamma=10.0, alpha=1.0, iterations=3, sharpness=1e4)
        rows = torch.stack([method.row(f, v.text_features) for f in v.image_features])
        same(rows, v.row_stable, 1e-8 * float(v.row_stable.abs().max()))
        same((1e4 * rows).softmax(1), v.output_stable, 1e-6)
        assert torch.equal(rows.argmax(1), v.row_float64.argmax(1))
        assert torch.equal(method.near[:, :8], v.knn_image_final) and torch.equal(method.near_text, v.knn_text_final)
        same(method.likeness[:, :8], v.sim_image_final)
        same(method.labels, v.y0_final, 1e-9)


def test_ecalp_by_hand_and_of_what_came_before_alone() -> None:
    options = dict(k_image=8, k_text=3, gamma=10.0, alpha=1.0, iterations=3, sharpness=1e4)
    text = unit(10, 50)
    method = bare("ecalp", text, **options)
    same(method.row(unit(20)[0], text), torch.tensor([0.776575, 0.408393], dtype=torch.float64), 1e-6)
    method = bare("ecalp", text, **options)
    same(method.row(unit(20)[0], text.flip(0)), torch.tensor([0.408393, 0.776575], dtype=torch.float64), 1e-6)


def test_tfup_selects_and_answers_as_released(shared: Path) -> None:
    m = core("tfup")
    for v in draws(shared, "TFUP", KIND):
        text, pool = (F.normalize(t, dim=-1) for t in (v.class_embeddings, v.pool_features))
        assert m.published_shots(len(pool), len(text), v.number("cache_proportion")) == int(v.number("shots"))
        chosen = m.select(pool, text, int(v.number("shots")))
        assert torch.equal(chosen.rows.reshape(v.cache_index.shape), v.cache_index)
        assert torch.equal(chosen.of, v.cache_labels)
        same(m.nearness(pool, pool[chosen.rows], text), v.similarity, 1e-8)
        logits = 100 * pool @ text.T
        same(logits, v.logits_clip, 1e-9)
        same(logits + v.number("alpha") * m.cached(pool, pool[chosen.rows], chosen.of, text, v.number("beta")), v.logits, 1e-6)


def test_tfup_by_hand() -> None:
    m = core("tfup")
    text, keys, f = unit(0, 90), unit(0, 80), unit(10)
    same(m.divergence((10 * f @ text.T).softmax(1), (10 * keys @ text.T).softmax(1)),
         torch.tensor([[0.000312, 8.10673]], dtype=torch.float64), 1e-5)  # fmt: skip
    got = 100 * f @ text.T + 0.3 * m.cached(f, keys, torch.tensor([0, 1]), text, 1.0)
    same(got, torch.tensor([[99.271854, 17.475182]], dtype=torch.float64), 1e-5)
    assert m.published_shots(20_000, 345, 0.3) == 16 and m.published_shots(2427, 65, 0.3) == 11
