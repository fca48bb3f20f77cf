"""Methods that keep adapters apart: the slow copy, one per task, and experts that grow on demand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cl_vit_toys import CPU, experience, features, images, learned

from cl_bench import Batch
from cl_bench.engine.fit import fit
from cl_bench.registry import find


def test_lae_offline_adapter_is_the_moving_average_and_the_surer_answer_wins() -> None:
    method = learned("lae", count=1, decay=0.9, epochs=2, freeze_epochs=1, lr=0.05)
    assert "offline" not in method.adapters.names
    start = [p.detach().clone() for _, a in method.adapters.each("default") for p in a.parameters()]
    trace: list[list[torch.Tensor]] = []
    after = method.on_train_batch_end

    def record(*args: Any) -> None:
        after(*args)
        trace.append([q.detach().clone() for _, q in method.pairs()])

    method.__dict__["on_train_batch_end"] = record
    fit(method, experience(1, n=48), CPU, seed=1)
    del method.__dict__["on_train_batch_end"]
    assert len(trace) == 4, "two batches of 24 in each of two epochs"
    for now in trace[:2]:
        assert all(torch.equal(a, b) for a, b in zip(now, start, strict=True)), "the first epoch trains the head alone"
    assert any(not torch.equal(a, b) for a, b in zip(trace[-1], start, strict=True))
    slow = start
    for now in trace:
        slow = [0.9 * s + 0.1 * n for s, n in zip(slow, now, strict=True)]
    for (off, _), expected in zip(method.pairs(), slow, strict=True):
        assert torch.allclose(off, expected, atol=1e-6), "not the moving average of the online adapter"
    online = method(images()).softmax(1)
    method.adapters.use("offline")
    offline = method(images()).softmax(1)
    method.adapters.use("default")
    assert torch.allclose(method.predict(images(), method.seen).exp(), torch.maximum(online, offline), atol=1e-6)


@pytest.mark.parametrize("pet", ["adapter", "lora", "prefix"])
def test_lae_has_its_three_forms(pet: str) -> None:
    method = learned("lae", pet=pet)
    width, blocks = 24, 2
    per_block = {
        "adapter": 2 * width * 5 + 5 + width + 1,
        "lora": 2 * (5 * 2 * width + 1),
        "prefix": 2 * 10 * width + 2,
    }
    for name in ("default", "offline"):
        assert sum(p.numel() for _, a in method.adapters.each(name) for p in a.parameters()) == blocks * per_block[pet]


def test_ease_grows_one_adapter_per_task_and_fills_missing_prototypes() -> None:
    method = learned("ease", count=3)
    assert len(method.adapters.names) == 3 and method.prototypes.shape == (3, 6, 24)
    p, task = method.prototypes, method.task
    assert task.tolist() == [0, 0, 1, 1, 2, 2]
    for name, j in zip(method.adapters.names, range(3), strict=True):
        method.adapters.use(name)
        f, y = features(method, images(2)), experience(2).data.y  # type: ignore[attr-defined]
        assert torch.allclose(p[j, 4], f[y == 4].mean(0), atol=1e-5), "a new class has its mean in every subspace"
    share = F.cosine_similarity(p[0, 0][None], p[0, 2:], dim=1).softmax(0)
    assert torch.allclose(p[1, 0], share @ p[1, 2:], atol=1e-5), "donors are all classes of task 1 and later"
    x, scores = images(), []
    for name, protos in zip(method.adapters.names, p, strict=True):
        method.adapters.use(name)
        scores.append(F.cosine_similarity(features(method, x)[:, None], protos[None], dim=2))
    by_hand = scores[1][:, 2] + 0.1 / 2 * (scores[0][:, 2] + scores[2][:, 2])
    assert torch.allclose(method.predict(x, method.seen)[:, 2], by_hand, atol=1e-5)


def test_mos_grows_an_adapter_per_task_and_draws_it_to_the_earlier_ones() -> None:
    method = learned("mos", count=2)
    assert method.adapters.names == ["default", "task1"] and method.task == [0, 0, 1, 1]
    first, second = (
        [p.detach().clone() for _, a in method.adapters.each(n) for p in a.parameters()] for n in method.adapters.names
    )
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        for _, a in method.adapters.each("task1"):
            for p in a.parameters():
                p += 1.0
    moved = [p.detach().clone() for _, a in method.adapters.each("task1") for p in a.parameters()]
    method.on_train_batch_end(None, None, 0)
    now = [p for _, a in method.adapters.each("task1") for p in a.parameters()]
    for a, m, n in zip(first, moved, now, strict=True):
        assert torch.allclose(n, 0.9 * m + 0.1 * a, atol=1e-6)
    again = [p for _, a in method.adapters.each("default") for p in a.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "stored adapters stay"
    method.begin(experience(2))
    copied = [p for _, a in method.adapters.each("task2") for p in a.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(copied, now, strict=True)), (
        "a new adapter starts as a copy of the last"
    )


def test_mos_merges_as_released_once_per_block_of_a_training_pass_and_once_after_the_step() -> None:
    moved = {}
    for released in (True, False):
        method = learned("mos", count=1, released_merge=released)
        method.begin(experience(1))
        with torch.no_grad():
            for _, a in method.adapters.each("task1"):
                for p in a.parameters():
                    p += 1.0
        method._trainer = None
        method.train()
        method.training_step(Batch(images(1), experience(1).data.y), 0)  # type: ignore[attr-defined]
        method.on_train_batch_end(None, None, 0)
        first, now = ([p for _, a in method.adapters.each(n) for p in a.parameters()] for n in method.adapters.names)
        moved[released] = [float((b - a).detach().mean()) for a, b in zip(first, now, strict=True)]
    assert moved[False] == pytest.approx([0.9] * len(moved[False]), abs=1e-5)
    assert moved[True] == pytest.approx([0.9**3] * len(moved[True]), abs=1e-5), "two blocks and the step"


def test_mos_looks_up_the_adapter_of_the_predicted_class() -> None:
    method, x = learned("mos", count=3), images(1)
    feats = []
    for name in method.adapters.names:
        method.adapters.use(name)
        feats.append(features(method, x))
    near = method.nearest(feats[0])
    for row in range(len(x)):
        chosen = method.task[int(near[row].argmax())]
        for _ in range(3):  # the first adapter is the first of four look-ups
            chosen = method.task[int(method.head(feats[chosen][row : row + 1]).argmax())]
        score = method.head(feats[chosen][row : row + 1]).softmax(1)[0] + (3 * near[row]).softmax(0)
        assert torch.allclose(method.predict(x, method.seen)[row].exp(), score, atol=1e-5)


def test_sema_grows_only_where_the_input_is_new_and_at_most_once_per_block() -> None:
    known = learned("sema", count=1, threshold=1e9)
    fit(known, experience(1), CPU, seed=1)
    assert [len(m.experts) for m in known.mixtures] == [1, 1], "nothing is new below the threshold"
    method = learned("sema", count=1, threshold=0.0, expandable=1)
    first = copy.deepcopy(method.mixtures[1].experts[0].state_dict())
    fit(method, experience(1), CPU, seed=1)
    assert [len(m.experts) for m in method.mixtures] == [1, 2], "only the last block may grow, and once"
    now = method.mixtures[1].experts[0].state_dict()
    assert all(torch.equal(first[k], now[k]) for k in first), "old experts are frozen"
    assert method.epochs_for(experience(1)) == 0, "the expansion's own training replaces fit"
    fit(method, experience(2), CPU, seed=2)
    assert len(method.mixtures[1].experts) == 3
    assert not any(p.requires_grad for m in method.mixtures for p in m.parameters())


def test_sema_expert_has_the_published_size() -> None:
    import sys

    experts = sys.modules[find("cl_bench.methods", "sema").__module__.rpartition(".")[0] + "._experts"]
    layer = torch.nn.Module()
    layer.norm2 = torch.nn.LayerNorm(768)
    assert sum(p.numel() for p in experts.Expert(layer, 16, 128, 500).parameters()) == 223_633
