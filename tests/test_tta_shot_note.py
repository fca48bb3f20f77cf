"""SHOT (online) and NOTE against what their papers and codes say."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from tta_toy_trained import CLASSES, SPACE, deployed, images

from cl_bench.adaptation import InstanceAwareNorm


def test_shot_takes_the_published_step_and_answers_before_it() -> None:
    method = deployed("shot", lr=0.1, threshold=0.3)
    x = images(16)
    twin = copy.deepcopy(method)
    head = [p.clone() for p in method.model.head.parameters()]
    z = twin.model(x)
    p = z.softmax(1)
    sure = p.amax(1) > 0.3
    loss = -(p * p.log()).sum(1).mean() + (p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    loss = loss + 0.3 * F.cross_entropy(z[sure], z.argmax(1)[sure])
    loss.backward()
    twin.opt.step()
    out = method.predict(x, SPACE)
    assert torch.allclose(out, z.detach(), atol=1e-6), "scored from the forward pass before the step"
    for a, b in zip(method.trained(), twin.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(head, method.model.head.parameters(), strict=True)), "the head is frozen"


def test_shot_without_a_confident_image_is_shot_im() -> None:
    x = images(16)
    a, b = deployed("shot", threshold=1.0), deployed("shot", pseudo=0.0)
    for k in range(3):
        a.predict(images(16, k), SPACE)
        b.predict(images(16, k), SPACE)
    assert torch.allclose(a.predict(x, SPACE), b.predict(x, SPACE), atol=1e-6)
    assert torch.isfinite(a.predict(x, SPACE)).all() and a.counts["selected"] == 0


def test_note_memory_is_bounded_and_balanced_over_predictions() -> None:
    method = deployed("note", memory=8, frequency=4)
    for k in range(40):
        method.predict(images(5, k), SPACE)
        assert len(method.owners) <= 8 and len(method.bank) == 8
    assert sum(method.met) == 200 and method.counts["steps"] == 50
    sizes = np.bincount(method.owners, minlength=CLASSES)
    assert len(method.owners) == 8
    method.met, method.owners = [50, 2, 0, 0], [0] * 7 + [1]
    taken = sum(method.slot(0) is not None for _ in range(300)) / 300
    assert 0.07 < taken < 0.22, f"a crowded class is taken with probability 7 / 50, not {taken}"
    assert all(method.owners[method.slot(2)] == 0 for _ in range(20)), "a rare class takes the place of the largest"
    assert sizes.sum() == 8


def test_note_answers_image_by_image_before_learning() -> None:
    a, b = deployed("note", frequency=16, lr=0.01), deployed("note", frequency=16, lr=0.01)
    x = images(40)
    whole = a.predict(x, SPACE)
    parts = torch.cat([b.predict(x[k : k + 1], SPACE) for k in range(40)])
    assert torch.allclose(whole, parts, atol=1e-5), "an answer depends on how images are batched"
    assert a.counts["steps"] == b.counts["steps"] == 2
    assert torch.allclose(whole[:16], deployed("note", lr=0.0).answer(x[:16], SPACE), atol=1e-6)
    assert not torch.allclose(whole[16:], deployed("note", lr=0.0).answer(x[16:], SPACE), atol=1e-4)


def test_note_norm_layers_move_their_statistics_in_updates_only() -> None:
    method = deployed("note", memory=8, frequency=8)
    layer = next(m for m in method.model.modules() if isinstance(m, InstanceAwareNorm))
    before = layer.mean.clone()
    method.predict(images(7), SPACE)
    assert torch.equal(layer.mean, before) and not layer.training
    method.predict(images(1, 8), SPACE)
    assert not torch.equal(layer.mean, before) and not layer.training
