"""What LAME, T3A, SHOT, MEMO, NOTE, ViDA and the label shift adapter promise on every kind of norm layer."""

from __future__ import annotations

import pytest
import torch
from tta_toy_trained import CLASSES, SPACE, deployed, images

ALL = [(n, norm) for n in ("lame", "t3a", "shot", "memo", "note", "label_shift_adapter") for norm in ("bn", "gn", "ln")]
ALL += [("vida", "ln")]
QUICK = {"memo": {"views": 4}, "vida": {"views": 3}}


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_reset_after_many_batches_equals_a_fresh_method(name: str, norm: str) -> None:
    """Conformance 2: bit for bit, after 70 batches and more images than any memory holds."""
    kwargs = QUICK.get(name, {})
    method, fresh = deployed(name, norm, **kwargs), deployed(name, norm, **kwargs)
    method.mark()
    fixed = images(6, 99)
    for k in range(70 if name != "memo" else 4):
        method.predict(images(3, k), SPACE)
    used = method.predict(fixed, SPACE)
    method.reset()
    again, expected = method.predict(fixed, SPACE), fresh.predict(fixed, SPACE)
    assert torch.equal(again, expected), "reset forgot something"
    assert torch.isfinite(used).all()


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_the_learned_model_and_global_generators_are_left_alone(name: str, norm: str) -> None:
    method = deployed(name, norm, **QUICK.get(name, {}))
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    state = torch.get_rng_state()
    for k in range(3):
        method.predict(images(5, k), SPACE)
    assert torch.equal(state, torch.get_rng_state()), "drew from the process's generator"
    changed = [k for k, v in method.backbone.state_dict().items() if not torch.equal(v, before[k])]
    assert not changed, f"adaptation reached the learned model: {changed}"


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_answer_adapts_nothing(name: str, norm: str) -> None:
    method = deployed(name, norm, **QUICK.get(name, {}))
    method.predict(images(8, 1), SPACE)
    first = method.answer(images(8, 2), SPACE)
    assert torch.equal(first, method.answer(images(8, 2), SPACE))
    assert first.shape == (8, CLASSES)
