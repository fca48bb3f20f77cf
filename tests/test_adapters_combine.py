"""Updates of weights as plain data: taken from adapters, combined, and put into another network's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_bench import attach
from cl_bench.adapters import FUSED4, combine
from cl_bench.errors import UserError
from cl_bench.registry import find


def network(kind: str = "lora", **options: object):
    backbone = find("cl_bench.backbones", "glyph_vit")().double().eval()
    adapters = attach(backbone, kind, FUSED4, **options)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapters.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return backbone, adapters


X = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", ["lora", "codyra", "pissa"])
def test_an_update_applied_to_the_plain_network_answers_as_the_adapted_one(kind: str) -> None:
    backbone, adapters = network(kind)
    adapted = backbone.forward_features(X)
    deltas = adapters.deltas()
    with adapters.off():
        plain = backbone.forward_features(X)
        adapters.apply_(deltas)
        applied = backbone.forward_features(X)
    assert not torch.allclose(plain, adapted, atol=1e-4)
    assert torch.allclose(applied, adapted, atol=1e-10)


def test_two_updates_add_up_and_are_not_touched() -> None:
    _, adapters = network()
    first = adapters.deltas()
    kept = copy.deepcopy(first)
    second = {at: torch.randn_like(d) for at, d in first.items()}
    both = combine([first, second], [0.5, 2.0])
    assert all(torch.equal(both[at], 0.5 * first[at] + 2.0 * second[at]) for at in first)
    assert all(torch.equal(first[at], kept[at]) for at in first)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_combining_is_linear(scales: list[float]) -> None:
    draw = torch.Generator().manual_seed(2)
    deltas = [{"a": torch.randn(2, 3, generator=draw, dtype=torch.float64), **({"b": torch.ones(1)} if k else {})}
              for k in range(len(scales))]
    whole = combine(deltas, scales)
    assert torch.allclose(whole["a"], sum(s * d["a"] for s, d in zip(scales, deltas, strict=True)))
    assert ("b" in whole) == (len(scales) > 1), "a site that one lacks takes part without it"


def test_what_does_not_fit_is_told_and_changes_nothing() -> None:
    backbone, adapters = network()
    deltas = adapters.deltas()
    at = next(iter(deltas))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(UserError, match="there is no site 'nowhere'"):
        adapters.apply_({**deltas, "nowhere": deltas[at]})
    with pytest.raises(UserError, match="the update of"):
        adapters.apply_({**deltas, at: torch.zeros(1, 1)})
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    with pytest.raises(UserError, match="give one scale per update"):
        combine([deltas], [1.0, 2.0])
    with pytest.raises(UserError, match="of one network"):
        combine([deltas, {at: torch.zeros(1, 1)}])
    wraps = attach(find("cl_bench.backbones", "glyph_vit")(), "adaptformer", r"blocks\.\d+\.mlp")
    with pytest.raises(UserError, match="no change of weights"):
        wraps.deltas()
