"""What every test-time method promises: deploying, resetting, counting, leaving the rest of the world alone."""

from __future__ import annotations

import copy

import pytest
import torch
from tta_toy import CLASSES, EVERY, GRADIENT, SPACE, backbone, deployed, images, same, source

from cl_bench.engine.checkpoint import restore, snapshot
from cl_bench.errors import UserError
from cl_bench.registry import find
from cl_bench.state import size_bytes as state_bytes
from cl_bench.types import LabelSpace


def test_every_method_is_registered_and_says_where_it_is_from() -> None:
    for name in EVERY:
        cls = find("cl_bench.methods", name)
        assert cls.family == "test-time" and cls.paper, name
        assert cls.__doc__ and cls.__doc__.splitlines()[0].endswith("."), f"{name} has no one-sentence idea"


@pytest.mark.parametrize("name", EVERY)
def test_reset_returns_to_a_fresh_adapter_bit_for_bit(name: str) -> None:
    method = deployed(name)
    method.mark()
    fresh = copy.deepcopy(method)
    for k in range(72):
        method.predict(images(8, k), SPACE)
    method.reset()
    assert method.counts == fresh.counts
    for k in range(3):  # going on is the same too: optimizer, generators and memories came back
        x = images(8, 500 + k)
        assert same(method.predict(x, SPACE), fresh.predict(x, SPACE)), f"{name} differs in batch {k} after reset"


@pytest.mark.parametrize("name", GRADIENT)
def test_adaptation_changes_answers_and_is_counted(name: str) -> None:
    method = deployed(name)
    x = images(16)
    before = method.answer(x, SPACE)
    for k in range(10):
        method.predict(images(16, k), SPACE)
    assert method.counters()["batches"] == 10 and method.counters()["steps"] > 0
    assert not torch.equal(before, method.answer(x, SPACE))


@pytest.mark.parametrize("name", EVERY)
def test_learned_model_flags_and_global_generator_are_left_alone(name: str) -> None:
    method = find("cl_bench.methods", name)(backbone())
    weights = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    flags = [(p.requires_grad, p.grad) for p in method.backbone.parameters()]
    state = torch.get_rng_state()
    method = deployed(name)
    for k in range(3):
        method.predict(images(16, k), SPACE)
    assert torch.equal(state, torch.get_rng_state()), f"{name} draws from torch's global generator"
    assert all(torch.equal(v, method.backbone.state_dict()[k]) for k, v in weights.items())
    assert flags == [(p.requires_grad, p.grad) for p in method.backbone.parameters()]


@pytest.mark.parametrize("name", EVERY)
def test_state_does_not_grow_with_the_stream(name: str) -> None:
    method = deployed(name)
    for k in range(10):
        method.predict(images(8, k), SPACE)
    early = state_bytes(method)
    for k in range(40):
        method.predict(images(8, k), SPACE)
    assert state_bytes(method) == early


@pytest.mark.parametrize("name", EVERY)
def test_a_checkpoint_goes_on_where_the_method_was(name: str) -> None:
    method = deployed(name, "layers")
    for k in range(9):
        method.predict(images(8, k), SPACE)
    tree, tensors = snapshot(method)
    built = find("cl_bench.methods", name)(backbone("layers"))
    twin = restore(tree, tensors, built)
    for k in range(2):
        x = images(8, 300 + k)
        assert same(method.predict(x, SPACE), twin.predict(x, SPACE)), name


@pytest.mark.parametrize("name", EVERY)
def test_double_moves_everything(name: str) -> None:
    method = deployed(name)
    method.predict(images(16), SPACE)
    method.double()
    assert method.predict(images(16, 1).double(), SPACE).dtype == torch.float64
    assert method.predict(images(16, 2).double(), SPACE).isfinite().all()


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_batch_of_nan_takes_no_step_and_is_counted(name: str) -> None:
    method = deployed(name)
    for k in range(9):
        method.predict(images(8, k), SPACE)
    weights = [p.detach().clone() for p in method.model.parameters()]
    steps = method.counts["steps"]
    out = method.predict(torch.full((8, 3, 8, 8), torch.nan), SPACE)
    assert out.isnan().all(), "a broken answer must be seen, not replaced"
    if name != "rotta":  # its update sees the memory, which a broken image does not enter
        assert method.counts["steps"] == steps
        assert method.counts["nonfinite"] + method.counts["skipped"] >= 1
    assert all(torch.equal(a, b) for a, b in zip(weights, method.model.parameters(), strict=True)) or name == "rotta"
    assert method.predict(images(8, 77), SPACE).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_one(name: str) -> None:
    method = deployed(name)
    for k in range(3):
        assert method.predict(images(1, k), SPACE).shape == (1, CLASSES)


def test_before_deploy_predict_answers_with_the_learned_model() -> None:
    tent = find("cl_bench.methods", "tent")(backbone()).eval()
    x = images(8)
    expected = tent(x).detach()
    assert torch.equal(tent.predict(x, SPACE), expected) and torch.equal(tent.predict(x, SPACE), expected)
    assert tent.counts["batches"] == 0


def test_deploy_starts_afresh_and_learning_withdraws_it() -> None:
    method = deployed("tent")
    first = [method.predict(images(8, k), SPACE) for k in range(3)]
    method.deploy(None)
    again = [method.predict(images(8, k), SPACE) for k in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    learned = len(list(method.backbone.parameters()))
    assert len(list(method.parameters())) > learned
    method.begin(source())
    assert not hasattr(method, "model") and len(list(method.parameters())) == learned


def test_a_method_that_needs_source_says_so() -> None:
    with pytest.raises(UserError, match="needs source data"):
        find("cl_bench.methods", "eata")(backbone()).deploy(None)


def test_a_network_without_norm_layers_is_refused() -> None:
    plain = backbone()
    plain.model.norm1, plain.model.norm2 = torch.nn.Identity(), torch.nn.Identity()
    with pytest.raises(UserError, match="norm layers"):
        find("cl_bench.methods", "tent")(plain).deploy(None)


@pytest.mark.parametrize("name", EVERY)
def test_classes_that_are_not_asked_for_take_no_part(name: str) -> None:
    part = LabelSpace((3, 0, 1))
    method = deployed(name)
    for k in range(3):
        out = method.predict(images(16, k), part)
        assert out.shape == (16, 3) and out.isfinite().all()
    assert method.model.classes == 3 and method.model.space.ids == (0, 1, 3)
    assert method.answer(images(4), LabelSpace((0, 9))).isneginf()[:, 1].all(), "a class unknown to the head"


def test_softmax_of_predict_is_a_probability_for_every_kind_of_output() -> None:
    x = images(16)
    z = deployed("bn").predict(x, SPACE)
    halves = deployed("rmt", lr=0.0, momentum=1.0).predict(x, SPACE)
    assert torch.allclose(halves, z, atol=1e-5), "a sum of two logits is halved"
    assert torch.allclose(deployed("roid", correct_prior=False).predict(x, SPACE), z, atol=1e-5)
    method = deployed("bn")
    type(method).output, kept = "probs", type(method).output
    try:
        assert torch.allclose(method._as_logits(z.softmax(1)).softmax(1), z.softmax(1), atol=1e-6)
    finally:
        type(method).output = kept
