"""Cores of continual vision-language methods against vectors that the authors' own code made (float64)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_vectors import Vectors, core, draws, same

from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.registry import find
from cl_bench.types import LabelSpace

KIND = "vision_language"


def relative(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


def regression(v: Vectors, form: str, expansion: torch.Tensor | None) -> Any:
    """The method's regression without a model."""
    cls = find("cl_bench.methods", "rail")
    method = cls.__new__(cls)
    torch.nn.Module.__init__(method)
    method.form, method.gamma, method.strength = form, 0.1, v.number("ridge")
    method.expansion = torch.zeros(0, 0) if expansion is None else expansion
    method.factor = method.weight = torch.zeros(0, 0)
    method.kept = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
    return method


@pytest.mark.parametrize("form", ["primal", "dual", "noexp"])
def test_rail_regresses_and_fuses_as_released(form: str, shared: Path) -> None:
    m = core("rail")
    for v in draws(shared, f"RAIL_{'dual' if form == 'dual' else 'primal'}", KIND):
        method = regression(v, "dual" if form == "dual" else "primal", v.expansion_weight if form == "primal" else None)
        prefix = "noexp_" if form == "noexp" else ""
        first, text = 0, F.normalize(v.text_features, dim=-1)
        zero_shot = (100 * F.normalize(v.test_features, dim=-1) @ text.T).softmax(1)
        for t, size in enumerate(v.increments.tolist(), start=1):
            x, y = v[f"train_features_{t}"], v[f"train_labels_{t}"] + first
            first += size
            for rows in torch.arange(len(x)).split(8):
                method.learn(x[rows], y[rows], first)
            ridge = F.pad(method.regress(v.test_features), (0, text.shape[0] - first))
            relative(ridge[:, :first], v[f"{prefix}adapter_{t}"], 1e-8)
            if form != "dual":
                relative(method._inverse_times(torch.eye(len(method.factor)).double()), v[f"{prefix}R_{t}"], 1e-8)
                relative(method.weight.T, v[f"{prefix}W_{t}"], 1e-8)
            fused = m.fuse(zero_shot, ridge, list(range(first)), 0.8)
            same(fused, v[f"{prefix}fused_{t}"], 1e-7 if form == "dual" else 1e-9)
            assert torch.equal(zero_shot.argmax(1) < first, v[f"{prefix}mask_{t}"])


@pytest.mark.parametrize("name", ["ZSCL_losses", "LwF_VR"])
def test_distillation_losses_and_gradients(name: str, shared: Path) -> None:
    clip, distil = core("zscl", "_clip"), core("zscl", "_distil")
    for v in draws(shared, name, KIND):
        image, text, student = (t.clone().requires_grad_() for t in (v.image_features, v.text_features, v.ref_student_image))
        space = LabelSpace(tuple(range(7)))
        ce = clip.contrast(F.normalize(image, dim=-1), F.normalize(text, dim=-1), v.labels, space, 100.0, 0.2)
        rows, columns = distil.similarity_losses(student, v.ref_teacher_image, v.ref_teacher_text, 100.0, 2.0)
        for got, want in ((ce, v.loss_ce), (rows, v.loss_image), (columns, v.loss_text), (ce + rows + columns, v.loss_total)):
            same(got.detach(), want, rtol=1e-9)
        (ce + rows + columns).backward()
        for got, want in ((image, v.grad_image), (text, v.grad_text), (student, v.grad_ref_student_image)):
            relative(got.grad, want, 1e-9)


def test_random_sentences_have_the_released_form(shared: Path) -> None:
    for v in draws(shared, "LwF_VR", KIND):
        tokenizer = SimpleNamespace(sot_token_id=49406, eot_token_id=49407, vocab_size=49408)
        found = core("lwf_vr").random_sentences(tokenizer, 50, 10, 77, torch.Generator().manual_seed(100))
        assert found.shape == v.random_sentence_tokens.shape
        fixed = [0, *range(11, 77)]
        assert torch.equal(found[:, fixed], v.random_sentence_tokens[:, fixed])
        assert torch.equal(found, v.random_sentence_tokens)


def test_weights_are_averaged_as_released(shared: Path) -> None:
    m = core("zscl")
    for v in draws(shared, "ZSCL_averaging", KIND):
        mean, theta, count = [v.theta_start.clone()], v.theta_start.clone(), 0
        for step in range(51):
            theta = theta + v.increments[step]
            if step % 10 == 0:
                count += 1
                m.take_in(mean, [theta], count)
            same(mean[0], v.we_average[step], 1e-12)
        assert count == int(v.we_merges)
        same(m.distance([v.theta_start], [v.theta_fixed]), v.l2_loss, 1e-12, rtol=1e-12)


def test_wise_ft_merges_as_released(shared: Path) -> None:
    for v in draws(shared, "ZSCL_averaging", KIND):
        weight = torch.nn.Parameter(v.theta_start.clone())
        core("wise_ft").merge_([weight], [v.theta_fixed], v.number("wise_alpha"))
        same(weight.detach(), v.wise_merge, 1e-12)


def test_rapf_replays_and_fuses_as_released(shared: Path) -> None:
    m = core("rapf")
    for v in draws(shared, "RAPF", KIND):
        text = F.normalize(v.text_features, dim=-1)
        n_old = int(v.n_old)
        pairs = m.hard_pairs(text, list(range(n_old)), list(range(n_old, len(text))), v.number("threshold"))
        assert pairs == [tuple(p) for p in v.hard_pairs.tolist()]
        roots = []
        for c in range(n_old):
            mean, cov = m.gaussian_of(v.old_features[v.old_labels == c])
            same(mean, v.class_mean[c])
            relative(cov, v.class_cov[c], 1e-9)
            roots.append(torch.linalg.cholesky(cov))
        relative(m.shrunk(v.class_cov[0]), v.cov_shrunk_0, 1e-9)
        drawn = torch.cat([v.class_mean[i] + n @ roots[i].T for (i, _), n in zip(pairs, v.noise_hard, strict=True)])
        relative(drawn, v.hard_samples, 1e-9)
        adapter = v.adapter_new.clone().requires_grad_()
        z = torch.cat([v.batch_features, v.replay_features])
        y = torch.cat([v.batch_labels, v.replay_labels])
        loss = F.cross_entropy(100 * F.normalize(z @ adapter.T, dim=-1) @ text.T, y)
        f = F.normalize(drawn @ adapter.T, dim=-1)
        hinge = m.hinge(f, text[v.hard_positive], text[v.hard_negative], v.number("margin"))
        same(loss.detach(), v.loss_ce, rtol=1e-9)
        same(hinge.detach(), v.loss_hinge, rtol=1e-9)
        (loss + hinge).backward()
        relative(adapter.grad, v.grad_adapter, 1e-8)
        relative(m.fused(v.adapter_old, v.adapter_new, v.number("mix_bias")), v.adapter_fused, 1e-9)


def test_fusion_by_hand() -> None:
    m = core("rapf")
    old, new = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[2.2, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(m.fused(old, new, 0.6), torch.tensor([[2.16, 1.0], [0.0, 1.0]]))
    assert torch.equal(m.fused(old, old.clone(), 0.6), old)


def test_codyra_losses_both_ways(shared: Path) -> None:
    m = core("codyra_clip")
    for v in draws(shared, "CoDyRA", KIND):
        image, text = v.loss_image_features.clone().requires_grad_(), v.loss_current_text.clone().requires_grad_()
        found = m.both_ways(F.normalize(image, dim=-1), v.loss_old_text, text, v.loss_labels, 100.0)
        for got, want in zip(found, (v.loss_i2t, v.loss_t2i), strict=True):
            same(got.detach(), want, rtol=1e-9)
        (found[0] + found[1]).backward()
        relative(image.grad, v.loss_grad_image, 1e-9)
        relative(text.grad, v.loss_grad_current_text, 1e-9)


def test_transfer_average_and_last_are_those_of_mtil(shared: Path) -> None:
    for v in draws(shared, "MTIL_metrics", KIND):
        for k, whole in enumerate(v.mtil_matrices_with_cifar10_column):
            table = np.delete(whole.numpy(), 2, axis=1)
            for order, name in (([*range(11)], "order1"), ([9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2], "order2")):
                rows = table[np.ix_(order, order)] if name == "order2" else table
                m = AccuracyMatrix.from_rates(rows, size=10**12)
                got = (m.transfer(), float(np.mean(m.percent)), m.last())
                want = [v[f"{name}_{kind}"][k] for kind in ("transfer", "average", "last")]
                np.testing.assert_allclose(got, want, atol=1e-9)
