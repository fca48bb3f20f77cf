"""Adapter kinds against vectors that the authors' own code made (float64, 1e-9)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import draws, same
from torch import nn

from cl_bench.adapters._prox import shrink
from cl_bench.adapters.adalora import AdaLoRA
from cl_bench.adapters.corda import CorDA
from cl_bench.adapters.kore import KORE
from cl_bench.adapters.soma import SoMA
from cl_bench.adapters.sora import SoRA
from cl_bench.adapters.svfit import SVFit
from cl_bench.registry import entries, find

D = torch.float64
MISSING = ("flylora", "nola", "dylora", "kasa", "sorsa", "compacter")


@pytest.mark.parametrize("kind", MISSING)
def test_kinds_that_are_not_here(kind: str) -> None:
    assert kind not in entries("cl_bench.adapters"), f"{kind} is a kind now: compare it with its vectors"
    pytest.skip(f"there is no adapter kind {kind}")


def test_adalora_budgets_closes_and_regularises(shared: Path) -> None:
    for v in draws(shared, "adalora"):
        sites = range(len([k for k in v.arrays if k.startswith("in_x_")]))
        hp = {k: int(v.number(f"hp_{k}")) for k in ("r", "target", "init", "final", "interval", "total")}
        adapters = []
        for site in sites:
            # The rank is clipped to a weight's smaller side here and not there: built wide, then given the vectors' factors.
            made = AdaLoRA(torch.zeros(64, 64, dtype=D), r=hp["r"], alpha=v.number("hp_alpha"), orth=0.1,
                           beta1=v.number("hp_beta"), beta2=v.number("hp_beta"))
            made.A, made.B = nn.Parameter(v[f"in_A0_{site}"].clone()), nn.Parameter(v[f"in_B0_{site}"].clone())
            made.gate = nn.Parameter(v[f"in_E0_{site}"].flatten().clone())
            made.smooth = torch.zeros(made.A.numel() + made.B.numel() + hp["r"], dtype=D)
            made.unsure = made.smooth.clone()
            adapters.append(made)
            same(F.linear(v[f"in_x_{site}"], made(v[f"in_W_{site}"])).detach(), v[f"out_y_{site}"], 1e-12)
        orth = torch.stack([a.aux_loss() for a in adapters]).mean()
        same(orth.detach(), v.out_orth, 1e-12)
        for t in range(hp["total"]):
            for site, a in zip(sites, adapters, strict=True):
                for p, g in ((a.A, "gA"), (a.B, "gB"), (a.gate, "gE")):
                    p.grad = v[f"in_{g}_{site}"][t].view_as(p)
                    p.data -= v.number("hp_lr") * p.grad
            asked, threshold = AdaLoRA.update(adapters, t + 1, hp["total"], hp["target"] * len(adapters), hp["init"],
                                              hp["final"], hp["interval"])
            assert asked == v.out_budget[t]
            assert (threshold is None) == bool(v.out_threshold[t].isnan())
            if threshold is not None:
                same(threshold, v.out_threshold[t], 1e-12)
            for site, a in zip(sites, adapters, strict=True):
                same(a.gate.detach(), v[f"out_E_{site}"][t], 1e-12)
                assert int((a.gate != 0).sum()) == v.out_active[t, site]
        for site, a in zip(sites, adapters, strict=True):
            same(a.scores(), v[f"out_scores_{site}"], 1e-12)


def test_soma_starts_at_the_minor_triplets(shared: Path) -> None:
    for v in draws(shared, "soma_init"):
        r = int(v.number("hp_r"))
        for alpha in (2, 4):
            a = SoMA(v.in_W, r=r, alpha=float(alpha))
            delta = a.scale * a.B0 @ a.A0
            same(delta, v[f"out_delta_{alpha}"], 1e-10)
            same(v.in_W - delta, v[f"out_res_{alpha}"], 1e-10)
            same(F.linear(v.in_x, a(v.in_W), v.in_b).detach(), v[f"out_y_{alpha}"], 1e-10)
            same((a.A @ a.A.T).detach(), v[f"out_A_gram_{alpha}"], 1e-10)
            same((a.B.T @ a.B).detach(), v[f"out_B_gram_{alpha}"], 1e-10)


def test_corda_starts_where_the_covariance_says(shared: Path) -> None:
    for v in draws(shared, "corda_init"):
        r, damp = int(v.number("hp_r")), v.number("hp_damp")
        for mode in ("kpm", "ipm"):
            a = CorDA(v.in_W, v.in_cov, r=r, mode=mode, damp=damp)  # type: ignore[arg-type]
            delta = a.scale * a.B0 @ a.A0
            same(delta, v[f"out_delta_{mode}"], 1e-8)
            same(v.in_W - delta, v[f"out_res_{mode}"], 1e-8)
            same(F.linear(v.in_x, a(v.in_W), v.in_b).detach(), v[f"out_y_{mode}"], 1e-8)
            bad = CorDA(v.in_W, v.in_cov_bad, r=r, mode=mode, damp=damp)  # type: ignore[arg-type]
            same(bad.scale * bad.B0 @ bad.A0, v[f"out_delta_bad_{mode}"], 1e-8)


def test_svfit_moves_singular_values(shared: Path) -> None:
    """CLIP-SVD rounds the rank down to a multiple of four and drops the rest; SVFit with that rank moves the same values."""
    for v in draws(shared, "clip_svd"):
        ranks, weights, kinds = v.out_rank.tolist(), [], []
        for k, rank in enumerate(ranks, 1):
            a = SVFit(v[f"in_W{k}"], r=rank)
            same(torch.linalg.svdvals(v[f"in_W{k}"])[:rank], v[f"out_sigma{k}"].flatten(), 1e-10)
            with torch.no_grad():
                a.shift.copy_(v[f"in_delta{k}"].flatten())
            kinds.append(a)
            weights.append(v[f"out_W{k}"] + a(v[f"in_W{k}"]) - v[f"in_W{k}"])
        y = F.linear(F.relu(F.linear(v.in_x, weights[0], v.in_b1)), weights[1], v.in_b2)
        same(y.detach(), v.out_y, 1e-10)
        y.square().sum().backward()
        for k, a in enumerate(kinds, 1):
            assert a.shift.grad is not None
            same(a.shift.grad.abs(), v[f"out_grad{k}"].flatten().abs(), 1e-9, rtol=1e-10)


def hf_adamw(gate: torch.Tensor, grads: torch.Tensor, lr: float, xi: float, decay: float = 0.0) -> list[torch.Tensor]:
    """The optimizer around SoRA's proximal step: Adam, epsilon beside the uncorrected root, decay from the old value."""
    m, s, walk = torch.zeros_like(gate), torch.zeros_like(gate), []
    for t, g in enumerate(grads, 1):
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        step = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (s.sqrt() + 1e-6)
        gate = gate - step - lr * decay * gate
        shrink(gate, xi, released=True)
        walk.append(gate.clone())
    return walk


def test_sora_takes_the_released_proximal_step(shared: Path) -> None:
    for v in draws(shared, "sora_prox"):
        gate, grads, lr, xi = v.in_gate[0], v.in_grads[:, 0], v.number("hp_lr"), v.number("hp_xi")
        same(torch.stack(hf_adamw(gate, grads, lr, xi)), v.out_gate, 1e-12)
        same(torch.stack(hf_adamw(gate, grads, lr, 5 * lr)), v.out_gate_lr, 1e-12)
        same(torch.stack(hf_adamw(gate, grads, lr, xi, 0.1)), v.out_gate_wd, 1e-12)
        a = SoRA(torch.zeros(len(v.in_B), v.in_A.shape[1], dtype=D), r=len(gate), alpha=v.number("hp_alpha"), l1=10.0)
        # The weight is too small for the rank of the vectors: the factors are put in whole.
        a.A, a.B, a.r, a.scale = nn.Parameter(v.in_A), nn.Parameter(v.in_B), len(gate), v.number("hp_alpha") / len(gate)
        a.gate = nn.Parameter(gate.clone())
        same(a.aux_loss().detach(), v.out_penalty, 1e-12)
        a.gate.data.copy_(v.out_gate[-1])
        zero = torch.zeros(len(v.in_B), v.in_A.shape[1], dtype=D)
        same(F.linear(v.in_x, a(zero)).detach(), v.out_y, 1e-12)


def test_kore_starts_where_the_papers_equations_say() -> None:
    """arXiv 2510.19316, 3.3 (its code is not to be had): C = X X^T = U L U^T, P the projector on the r weakest directions,
    W P = U S V^T, B = U sqrt(S), A = sqrt(S) V^T, base W - B A, A frozen; old inputs of rank below d - r do not see B."""
    g = torch.Generator().manual_seed(0)
    weight, r = torch.randn(20, 16, generator=g, dtype=D), 5
    for rank in (16, 9):  # inputs that fill the space, and inputs with a null space of more than r directions
        x = torch.randn(16, rank, generator=g, dtype=D) @ torch.randn(rank, 60, generator=g, dtype=D)
        weak = torch.linalg.svd(x @ x.T)[0][:, -r:]
        u, s, v = torch.linalg.svd(weight @ weak @ weak.T)
        b, a = u[:, :r] * s[:r].sqrt(), s[:r].sqrt()[:, None] * v[:r]
        kore = KORE(weight, x @ x.T, r=r)
        if rank == 16:  # else the null space has no order of its own
            same(kore.B0 @ kore.A0, b @ a, 1e-9)
            same((kore.B0.T @ kore.B0).diagonal(), s[:r], 1e-9)
            same((kore.A0 @ kore.A0.T).diagonal(), s[:r], 1e-9)
        same(kore(weight).detach(), weight, 1e-12)
        assert not kore.A.requires_grad and kore.B.requires_grad
        with torch.no_grad():
            kore.B.add_(1.0)
            moved = (kore(weight) @ x - weight @ x).abs().max() / (weight @ x).abs().max()
        assert moved < 1e-9 if rank == 9 else moved > 1e-3


def test_pfeiffer_reads_the_stream_as_the_released_code_does() -> None:
    """adapter-hub/adapters, ``seq_bn`` on a ViT (methods/modeling.py, models/vit/modeling_vit.py): the adapter reads the MLP's
    output with the residual added, its own residual is the MLP's output, and the block's residual comes last."""
    factory = find("cl_bench.backbones", "glyph_vit")
    plain, adapted = factory().double(), factory().double()
    method = find("cl_bench.methods", "adapter")(adapted, kind="pfeiffer", settings={"r": 8})
    torch.manual_seed(0)
    made = dict(method.adapters.each())
    for adapter in made.values():
        adapter.double()
        nn.init.normal_(adapter.up.weight, std=0.1)
    x = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(1), dtype=D)

    def block(at: int, stream: torch.Tensor) -> torch.Tensor:
        layer, adapter = plain.model.blocks[at], list(made.values())[at]
        stream = stream + layer.attn(layer.norm1(stream))
        h = layer.mlp(layer.norm2(stream))
        return adapter.up(F.relu(adapter.down(h + stream))) + h + stream

    seen = plain.preprocess(x)
    stream = plain.model.norm_pre(plain.model._pos_embed(plain.model.patch_embed(seen)))
    for at in range(len(plain.model.blocks)):
        stream = block(at, stream)
    with torch.no_grad():
        expected = plain.model.forward_head(plain.model.norm(stream), pre_logits=True)
        same(adapted.forward_features(x), expected, 1e-9)
