"""What every step of a learning method owes, with no official code beside it: what the loss does not reach stays, and the rate
of each epoch is the published one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cl_toys import method as toy_method
from cl_toys import toy
from cl_vit_toys import CPU, SMALL, build, experience
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from cl_bench import Experience, Method
from cl_bench.engine.fit import fit

PLAIN: dict[str, dict[str, Any]] = {
    "finetune": {"masked": True}, "linear_probe": {"masked": True}, "ewc": {"masked": True}, "lwf": {}, "er": {}, "derpp": {},
    "agem": {"masked": True, "patterns": 4, "sample_size": 4}, "gpm": {}, "cuber": {}, "exssnet": {"mask_epochs": 1,
                                                                                                 "weight_epochs": 1},
}
#: SGD with momentum and decay on the whole head, as MOS and SEMA release it (their docstrings say so); SLCA puts rows back.
RELEASED = ("mos", "sema", "slca")


class Watch:
    """What moves in a step of any optimizer though no gradient reaches it in the whole experience: rows of the head, one per
    class, and other parameters as a whole (a unit that is dead for all images is no class that the loss leaves out)."""

    def __init__(self, method: Method) -> None:
        self.method, self.steps = method, 0
        self.moved: dict[int, torch.Tensor] = {}
        self.before: dict[int, torch.Tensor] = {}
        self.touched: dict[int, torch.Tensor] = {}
        self.kept: dict[int, torch.Tensor] = {}  # an id is unique only while its object lives

    def rows(self, t: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        head = any(of is p for p in self.method.head.parameters())
        return t.detach().reshape(len(t) if head else 1, -1)

    def pre(self, optimizer: torch.optim.Optimizer, args: Any, kw: Any) -> None:
        self.steps += 1
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            self.kept[id(p)] = p
            self.before[id(p)] = self.rows(p, p).clone()

    def post(self, optimizer: torch.optim.Optimizer, args: Any, kw: Any) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            now, old = self.rows(p, p), self.before[id(p)]
            reached = torch.zeros(len(now), dtype=torch.bool) if p.grad is None else self.rows(p.grad, p).ne(0).any(1)
            self.touched[id(p)] = reached | self.touched.get(id(p), torch.zeros_like(reached))
            self.moved[id(p)] = (now != old).any(1) | self.moved.get(id(p), torch.zeros_like(reached))

    def found(self) -> list[str]:
        wrong = {key: self.moved[key] & ~self.touched[key] for key in self.kept}
        return [f"{int(rows.sum())} of {len(rows)} rows of a parameter {tuple(self.kept[key].shape)}"
                for key, rows in wrong.items() if rows.any()]


def moved_without_gradient(method: Method, exp: Experience) -> list[str]:
    """Of one experience."""
    watch = Watch(method)
    hooks = [register_optimizer_step_pre_hook(watch.pre), register_optimizer_step_post_hook(watch.post)]
    try:
        fit(method, exp, CPU, seed=1)
    finally:
        for hook in hooks:
            hook.remove()
    assert watch.steps, "no optimizer made a step"
    return watch.found()


def two(name: str) -> tuple[Method, list[Experience]]:
    if name in SMALL:
        # the first step of EASE reaches its zero maps alone; the alignment of MOS reaches every row
        more = {"ease": {"epochs": 2}, "mos": {"align_epochs": 0}}.get(name, {})
        return build(name, **more), [experience(0), experience(1)]
    kw = PLAIN[name] if name == "exssnet" else {"epochs": 2, **PLAIN[name]}
    return toy_method(name, **kw), [toy((0, 1), 12), toy((2, 3), 12)]


@pytest.mark.parametrize("name", sorted({*SMALL, *PLAIN} - {"ncm", "aper", "ranpac", *RELEASED}))  # those train once or never
def test_what_no_gradient_reaches_does_not_move(name: str) -> None:
    method, experiences = two(name)
    fit(method, experiences[0], CPU, seed=0)
    found = moved_without_gradient(method, experiences[1])
    assert not found, found[:3]


@pytest.mark.parametrize("name", ["mos", "sema"])
def test_released_decay_moves_the_heads_old_rows_and_nothing_else(name: str) -> None:
    method, experiences = two(name)
    fit(method, experiences[0], CPU, seed=0)
    found = moved_without_gradient(method, experiences[1])
    width = tuple(method.head.weight.shape)  # type: ignore[arg-type, union-attr]
    assert found and all(f.endswith((str(width), f"({width[0]},)")) for f in found), found[:3]


@pytest.mark.parametrize("name, epochs, factors", [
    ("slca", 4, [1, 1, 1, 0.1]),  # models/slca.py: MultiStepLR at milestone 18 of 20, here at 3 of 4
    ("lae", 3, [1, 1, 1]), ("l2p", 3, [1, 1, 1]), ("dualprompt", 3, [1, 1, 1]), ("sdlora", 3, [1, 1, 1]),
    ("olora", 3, [1, 1, 1]), ("osft", 3, [1, 1, 1]),
    ("inflora", 5, [1, 1, 0.925, 0.713, 0.394]),  # utils/schedulers.py of InfLoRA and CODA-Prompt: its last value is never used
    ("coda_prompt", 5, [1, 1, 0.925, 0.713, 0.394]),
    ("ease", 4, [1, 0.853553, 0.5, 0.146447]), ("aper", 4, [1, 0.853553, 0.5, 0.146447]),
])
def test_rates_per_epoch_are_the_official_schedules(name: str, epochs: int, factors: list[float]) -> None:
    method, used = build(name, epochs=epochs), dict[int, float]()
    step = method.training_step

    def watch(batch: Any, batch_idx: int) -> torch.Tensor:
        used[method.current_epoch] = method.trainer.optimizers[0].param_groups[-1]["lr"]
        return step(batch, batch_idx)

    method.__dict__["training_step"] = watch
    fit(method, experience(0), CPU, seed=0)
    assert [used[e] / used[0] for e in range(len(used))] == pytest.approx(factors, abs=1e-3)
