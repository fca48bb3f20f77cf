"""The method ``adapter``: every registered kind is runnable, one from outside too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from cl_vit_toys import CPU, backbone, experience, images
from torch import Tensor, nn

from cl_bench import Adapter, UserError, registry
from cl_bench.engine.fit import fit
from cl_bench.registry import entries, find

KINDS = sorted(entries("cl_bench.adapters"))


class Shift(Adapter):
    """A kind from another distribution: one number per output row is added to its weights."""

    paper: ClassVar[str] = "none"

    def __init__(self, weight: Tensor, start: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(weight.new_full((len(weight), 1), start))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        self.shift.zero_()


def learns(kind: str, **kw: Any) -> None:
    torch.manual_seed(1)
    method = find("cl_bench.methods", "adapter")(backbone(), kind=kind, epochs=2, lr=1e-2, **kw)
    assert not {id(p) for p in method.trained()} - {id(p) for p in [*method.adapters.parameters(), *method.head.parameters()]}
    for k in range(2):
        before = method.backbone.eval().forward_features(images(k)).detach()
        fit(method, experience(k), CPU, seed=k)
        after = method.backbone.forward_features(images(k)).detach()
        assert (after - before).abs().max() > 1e-4, f"the adapter did not move in experience {k}"
    answer = method.predict(images(), method.seen)
    assert answer.shape == (24, 4) and answer.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_runnable_method(kind: str) -> None:
    learns(kind)


def test_a_kind_from_another_distribution_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="shift", value=f"{__name__}:Shift", dist=SimpleNamespace(name="elsewhere"))
    usual = registry.entry_points

    def points(group: str) -> list[Any]:
        return [*usual(group=group), *([point] if group == "cl_bench.adapters" else [])]

    monkeypatch.setattr(registry, "entry_points", points)
    entries.cache_clear()
    try:
        learns("shift", settings={"start": 0.0})
    finally:
        monkeypatch.undo()
        entries.cache_clear()
    with pytest.raises(UserError, match="shift"):
        find("cl_bench.methods", "adapter")(backbone(), kind="shift")


def test_an_adalora_run_closes_ranks_to_its_budget() -> None:
    torch.manual_seed(0)
    settings = {"r": 4, "target_r": 2}
    method = find("cl_bench.methods", "adapter")(backbone(), kind="adalora", epochs=20, lr=1e-2, settings=settings)
    left: list[int] = []
    merge = method.end
    method.__dict__["end"] = lambda exp: (left.extend(int((a.gate != 0).sum()) for _, a in method.adapters.each()), merge(exp))
    fit(method, experience(0), CPU, seed=0)
    assert sum(left) <= 2 * len(left) < 4 * len(left), left
