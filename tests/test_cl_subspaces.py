"""Low-rank and subspace methods: what is protected, what is closed, what is shared."""

from __future__ import annotations

import pytest
import torch
from cl_bench_methods.continual import _dualgpm as dualgpm
from cl_vit_toys import CPU, build, experience, images, learned

from cl_bench.engine.fit import fit


def test_osft_updates_are_orthogonal_to_the_protected_directions() -> None:
    method = learned("osft", count=1)
    adapters = method.adapters
    method.begin(experience(1))
    before = {at: adapters.weight(at).clone() for at in adapters.sites}
    protected = {at: (a.U_high.clone(), a.V_high.clone()) for at, a in adapters.each()}
    method.learned -= 1  # begin() was called by hand: fit calls it again
    fit(method, experience(1), CPU, seed=5)
    for at, (u, v) in protected.items():
        delta = adapters.weight(at) - before[at]
        assert delta.norm() > 1e-3, "nothing was learned"
        assert (u.T @ delta).abs().max() < 1e-6 * max(1.0, float(delta.norm())) and u.shape[1] > 0, at
        assert (delta @ v.T).abs().max() < 1e-6 * max(1.0, float(delta.norm())), at


def test_inflora_moves_only_within_the_new_inputs_and_outside_the_old() -> None:
    method = learned("inflora", count=1, r=3, lamda=0.5)
    assert method.bases and not any(method.complement.values())
    fresh = method.covariances(experience(1))
    basis = {k: v.clone() for k, v in method.bases.items()}
    before = {at: method.adapters.weight(at).clone() for at in method.adapters.sites}
    fit(method, experience(1), CPU, seed=1)
    for at, m in basis.items():
        delta = (method.adapters.weight(at) - before[at]).double()
        assert delta[:24].abs().max() == 0, "queries are not adapted"
        assert delta[24:].norm() > 1e-6
        assert (delta @ m).abs().max() < 1e-6, "the update meets the old inputs' space"
        span = fresh[at] - m @ (m.T @ fresh[at])
        left = torch.linalg.svd(span)[0][:, :3]
        assert (delta - delta @ left @ left.T).abs().max() < 1e-6, "the update leaves the new inputs' span"
        keys, values = delta[24:48], delta[48:]
        assert torch.linalg.matrix_rank(torch.cat([keys, values]), atol=1e-7) <= 3, "keys and values share A"


def test_inflora_keeps_the_complement_once_the_space_is_large() -> None:
    method = learned("inflora", count=2, lamda=0.9999999)
    assert any(method.complement.values())
    for at, basis in method.bases.items():
        eye = torch.eye(basis.shape[1], dtype=basis.dtype)
        assert torch.allclose(basis.T @ basis, eye, atol=1e-8)
        assert basis.shape[1] <= 12, at


@pytest.mark.parametrize("released, kept", [(True, 1), (False, 2)])
def test_infloras_first_basis_stops_one_direction_short_as_released(released: bool, kept: int) -> None:
    """Singular values 3, 2, 1 and four of 0 have energies 9, 4, 1: two directions hold nine tenths."""
    c = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    basis, complement = dualgpm.remember(c, None, False, 0.9, released)
    assert basis.shape == (7, kept) and not complement
    assert torch.equal(basis.abs(), torch.eye(7, dtype=torch.float64)[:, :kept])


def test_olora_penalty_is_zero_at_orthogonality_and_counts_overlap() -> None:
    method = learned("olora", count=1)
    method.begin(experience(1))
    groups = [[a for _, a in method.adapters.each(n)] for n in method.adapters.names]
    with torch.no_grad():
        for old, new in zip(*groups, strict=True):
            rows = torch.linalg.qr(torch.randn(24, 6))[0].T
            old.A.copy_(rows[:3])
            new.A.copy_(rows[3:])
        assert method.overlap() < 1e-4
        for old, new in zip(*groups, strict=True):
            new.A.copy_(old.A)
        by_hand = sum((o.A @ n.A.T).abs().sum() for o, n in zip(*groups, strict=True))
    assert torch.allclose(method.overlap(), by_hand) and by_hand > 1
    assert [p.requires_grad for p in (groups[0][0].A, groups[1][0].A)] == [False, True]


def test_codyra_closed_ranks_can_be_removed_and_merged_without_change() -> None:
    method = build("codyra").double()
    method.begin(experience(0))
    g = torch.Generator().manual_seed(0)
    for _, adapter in method.adapters.each():
        with torch.no_grad():
            adapter.B += torch.randn(adapter.B.shape, generator=g).double()
            adapter.gate[torch.rand(adapter.r, generator=g) < 0.5] = 0
    x = images().double()
    expected = method(x)
    assert any(a.open_ranks < a.r for _, a in method.adapters.each())
    for _, adapter in method.adapters.each():
        keep = adapter.gate != 0
        adapter.A = torch.nn.Parameter(adapter.A.detach()[keep])
        adapter.B = torch.nn.Parameter(adapter.B.detach()[:, keep])
        adapter.gate = torch.nn.Parameter(adapter.gate.detach()[keep])
    assert (method(x) - expected).abs().max() < 1e-10, "removing closed ranks changed the output"
    method.adapters.merge_()
    assert (method(x) - expected).abs().max() < 1e-10, "merging changed the output"


@pytest.mark.parametrize("name", ["lora", "codyra", "osft"])
def test_the_head_may_learn_at_a_rate_of_its_own(name: str) -> None:
    for head_lr, expected in ((None, [0.01, 0.01]), (0.5, [0.01, 0.5]), (0.0, [0.01, 0.0])):
        method = build(name, lr=0.01, head_lr=head_lr)
        method.begin(experience(0))
        made = method.configure_optimizers()
        groups = (made["optimizer"] if isinstance(made, dict) else made).param_groups
        assert [g["initial_lr"] if "initial_lr" in g else g["lr"] for g in groups] == expected
        assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in method.trained()}, "something is not trained"


def test_codyra_threshold_is_dense_first_and_then_climbs_in_fifty_levels() -> None:
    method = build("codyra")
    method.total_steps = 500
    walk = [method.threshold(s) for s in range(1, 501)]
    assert walk[:251] == [0.0] * 251 and walk[-1] == pytest.approx(5e-3)
    assert walk == sorted(walk) and len(set(walk)) == 50
    assert sum(walk) == pytest.approx(0.6499, abs=1e-4) and walk[251] == pytest.approx(5e-3 / 49), "level 0 is never used"
    gate = torch.tensor([-0.5, 0.004, 0.006, 1.0])
    from cl_bench.adapters._prox import shrink

    shrink(gate, 0.005)
    assert torch.allclose(gate, torch.tensor([-0.495, 0.0, 0.001, 0.995]))
    released = torch.tensor([0.006, 0.011])
    shrink(released, 0.005, released=True)
    assert torch.allclose(released, torch.tensor([0.0, 0.006])), "the authors' statements close everything below 2k"


def test_codyra_makes_as_many_steps_as_it_says() -> None:
    method = build("codyra", epochs=0, iterations=7, batch_size=5)  # five steps an epoch: 24 images
    found = fit(method, experience(0), CPU, seed=0)
    assert (found.steps, method.total_steps) == (7, 7)


def test_codyra_closes_ranks_and_does_not_grow() -> None:
    method = build("codyra", kappa_max=0.05, epochs=40)
    count = sum(p.numel() for p in method.backbone.parameters())
    for k in range(2):
        fit(method, experience(k), CPU, seed=k)
    sites = len(method.adapters.sites)
    full = 16 * (2 * (3 + 3))  # two blocks: q, k, v and three more linears of rank 16
    assert sites == 8 and 0 < sum(method.open_ranks[0].values()) < full
    assert sum(p.numel() for p in method.backbone.parameters()) == count


def test_sdlora_has_one_magnitude_per_task_and_freezes_old_directions() -> None:
    method = learned("sdlora", count=1)
    old = [(a.A.clone(), a.B.clone()) for _, a in method.adapters.each("default")]
    fit(method, experience(1), CPU, seed=1)
    magnitudes = {id(a.magnitude) for n in method.adapters.names for _, a in method.adapters.each(n)}
    assert len(magnitudes) == 2, "one magnitude per task, shared by all layers"
    for (a, b), (at, adapter) in zip(old, method.adapters.each("default"), strict=True):
        assert torch.equal(a, adapter.A) and torch.equal(b, adapter.B)
        weight = method.adapters.weight(at)[:24]
        unit = (b @ a) / (b.norm() * a.norm())
        assert torch.allclose(adapter(weight) - weight, adapter.magnitude * unit, atol=1e-6), (
            "not magnitude x direction"
        )
    assert float(adapter.magnitude.detach()) != pytest.approx(0.8, abs=1e-9), "old magnitudes go on learning"
