"""What every adapter, subspace, prototype and prompt method owes to the harness."""

from __future__ import annotations

import copy

import pytest
import torch
from cl_vit_toys import CPU, SMALL, build, experience, images, learned

from cl_bench import Experience, LabelSpace, TensorData, UserError
from cl_bench.backbones.base import Backbone, Preprocess
from cl_bench.engine.fit import fit
from cl_bench.registry import find


@pytest.mark.parametrize("name", sorted(SMALL))
def test_two_experiences_then_predicting_changes_nothing(name: str) -> None:
    method = learned(name)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    trainable = [p.requires_grad for p in method.parameters()]
    random = torch.get_rng_state()
    assert method.stored_samples() == 0, "none of these keeps images"
    first = method.predict(images(), method.seen)
    assert first.shape == (24, 4) and first.isfinite().all()
    assert torch.equal(first, method.predict(images(), method.seen)), "a second question is answered differently"
    one = torch.cat([method.predict(x[None], method.seen) for x in images()])
    assert torch.allclose(one, first, atol=1e-4), "the answer depends on the rest of the batch"
    assert torch.equal(copy.deepcopy(method).predict(images(), method.seen), first)
    assert all(torch.equal(state[k], v) for k, v in method.state_dict().items())
    assert trainable == [p.requires_grad for p in method.parameters()]
    assert torch.equal(random, torch.get_rng_state())
    task = method.predict(images(), LabelSpace((2, 0)))
    assert torch.allclose(task, first[:, [2, 0]], atol=1e-6), "columns do not follow the space"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_same_classes_may_come_again(name: str) -> None:
    method = build(name)
    again = Experience("again", LabelSpace((0, 1)), TensorData(experience(7).data.x, experience(0).data.y))  # type: ignore[attr-defined]
    for k, exp in enumerate((experience(0), again)):
        fit(method, exp, CPU, seed=k)
    answer = method.predict(images(), LabelSpace((0, 1)))
    assert answer.shape == (24, 2) and answer.isfinite().all()


def test_a_checkpoint_holds_everything() -> None:
    from cl_bench.engine.checkpoint import restore, snapshot

    for name in SMALL:
        method = learned(name)
        tree, tensors = snapshot(method)
        twin = restore(tree, tensors, build(name))
        assert torch.equal(twin.eval().predict(images(1), method.seen), method.predict(images(1), method.seen)), name
        for m in (method, twin):
            fit(m, experience(2), CPU, seed=9)
        assert torch.equal(twin.predict(images(2), method.seen), method.predict(images(2), method.seen)), name


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"ncm", "slca", "ranpac"}))
def test_a_backbone_without_the_layers_is_refused_with_layer_names(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UserError, match="matches no layer"):
        find("cl_bench.methods", name)(Backbone(model, num_features=4, preprocess=Preprocess(8)))
