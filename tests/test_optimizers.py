"""Fused kernels: the same steps as torch's plain ones, NVIDIA apex told apart from what is only named like it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import coded, tiny_backbone

from cl_bench import Experience, LabelSpace, Method
from cl_bench.engine.compute import Compute
from cl_bench.engine.fit import fit
from cl_bench.engine.optimizers import apex_adam, check_optimizers, fuse
from cl_bench.errors import UserError

CPU = torch.device("cpu")


class FusedAdam(torch.optim.Optimizer):
    """With the signature of apex's, computed by torch: enough to see what it is given."""

    def __init__(self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, adam_w_mode: bool = True, weight_decay: float = 0.0) -> None:
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        kind = torch.optim.AdamW if adam_w_mode else torch.optim.Adam
        self.inner = kind([{k: g[k] for k in ("params", "lr", "betas", "eps", "weight_decay")} for g in self.param_groups])

    def step(self, closure: Any = None) -> Any:
        for mine, its in zip(self.param_groups, self.inner.param_groups, strict=True):
            its["lr"] = mine["lr"]
        return self.inner.step(closure)


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    package, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedAdam = FusedAdam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


def steps(make: Any, kind: str, n: int = 5) -> Tensor:
    """Weights after ``n`` steps of a small network, with a schedule that halves the learning rate each step."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    optimizer = make(net.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer = fuse(optimizer, kind)
    for _ in range(n):
        optimizer.zero_grad()
        net(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW([{"params": list(p), "lr": 0.2}], lr=0.1, betas=(0.8, 0.9)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["fused", "apex"])
def test_fused_steps_are_the_plain_ones_under_a_schedule(name: str, kind: str, apex: None) -> None:
    make = MAKERS[name]
    assert torch.allclose(steps(make, kind), steps(make, "torch"), atol=1e-6)
    still = steps(lambda p: make(p), "torch", n=1)
    assert not torch.allclose(steps(make, "torch"), still, atol=1e-3), "the steps move nothing: nothing was compared"


def test_what_has_no_fused_kernel_stays(apex: None) -> None:
    p = [nn.Parameter(torch.zeros(2))]
    assert isinstance(fuse(torch.optim.AdamW(p), "apex"), FusedAdam)
    for optimizer in (torch.optim.Adam(p, amsgrad=True), torch.optim.SGD(p, lr=0.1), torch.optim.RMSprop(p)):
        assert fuse(optimizer, "apex") is optimizer and fuse(optimizer, "torch") is optimizer
    assert fuse(torch.optim.AdamW(p), "fused").param_groups[0]["fused"] is True


def test_another_package_named_apex_is_not_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    assert apex_adam() is None
    with pytest.raises(UserError, match=r"apex\.optimizers\.FusedAdam was not found"):
        check_optimizers("apex", CPU)
    check_optimizers("fused", CPU)


def test_apex_needs_a_gpu(apex: None) -> None:
    check_optimizers("apex", torch.device("cuda"))
    with pytest.raises(UserError, match="need a GPU"):
        check_optimizers("apex", CPU)


class Watching(Method):
    """Notes the optimizer that steps."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.used = type(optimizer).__name__, optimizer.param_groups[0].get("fused")


@pytest.mark.parametrize(("kind", "used"), [
    ("torch", ("AdamW", None)), ("fused", ("AdamW", True)), ("apex", ("FusedAdam", None)),
])
def test_a_fit_uses_what_is_asked_for(kind: Any, used: tuple[str, bool | None], apex: None) -> None:
    method = Watching(tiny_backbone(), epochs=1)
    fit(method, Experience("e", LabelSpace((0, 1, 2, 3)), coded(16)), Compute(device="cpu", optimizers=kind), 0)
    assert method.used == used
