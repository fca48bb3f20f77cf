"""ViDA and the label shift adapter: what is added beside a network, and when it changes answers."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tta_toy_trained import CLASSES, SPACE, backbone, deployed, images, plain, source

from cl_bench.errors import UserError
from cl_bench.heads import FixedHead
from cl_bench.registry import find
from cl_bench.types import LabelSpace


def test_vida_fresh_adapters_change_nothing_and_code_keeps_the_second_scale() -> None:
    method = deployed("vida", "ln", views=3)
    x = images(6)
    assert torch.allclose(method.answer(x, SPACE), plain("ln", x), atol=1e-6)
    for k in range(4):
        method.predict(images(6, k), SPACE)
    layers = [m for m in method.modules() if type(m).__name__ == "VidaLinear"]
    assert len(layers) == 4, "qkv and proj of student and teacher"
    assert all(m.scale2 == 1.0 and m.scale1 != 1.0 for m in layers)
    assert layers[0].vida_down2.shape == (128, 12) and layers[0].vida_down1.shape == (1, 12)
    paper = deployed("vida", "ln", views=3, variant="paper")
    paper.predict(x, SPACE)
    assert all(m.scale1 + m.scale2 == pytest.approx(2.0) and m.scale2 != 1.0
               for m in paper.modules() if type(m).__name__ == "VidaLinear")


def test_vida_groups_ema_and_restore() -> None:
    method = deployed("vida", "ln", views=2, restore=1.0, momentum=0.9, adapter_momentum=0.5, symmetric=True)
    model_group, adapter_group = method.opt.param_groups
    assert (model_group["lr"], adapter_group["lr"]) == (1e-4, 1e-5) and len(adapter_group["params"]) == 8
    start = [p.clone() for p in method.trained()]
    teacher = {n: p.clone() for n, p in method.teacher.named_parameters()}
    out = method.predict(images(8), SPACE)
    assert torch.allclose(out, plain("ln", images(8)), atol=1e-6), "answered by the teacher before the step"
    assert all(torch.equal(a, b) for a, b in zip(start, method.trained(), strict=True)), "restore = 1 is the start"
    moved = {n: (p - teacher[n]).abs().max().item() for n, p in method.teacher.named_parameters()}
    head = next(v for n, v in moved.items() if n.endswith("head.weight"))
    assert head == pytest.approx(0.1 * 1e-4, rel=0.05), "Adam's first step times 1 - momentum"
    ups = [v for n, v in moved.items() if "vida_up1" in n]
    assert max(ups) == pytest.approx(0.5 * 1e-5, rel=0.05)
    with pytest.raises(UserError, match="timm transformer"):
        deployed("vida", "bn")


def test_a_source_that_is_nearly_balanced_has_no_degree() -> None:
    """By scipy's own G-test; a degree of the noise of 500 draws from the uniform distribution would be anything."""
    from scipy.stats import power_divergence

    imbalance = sys.modules[find("cl_bench.methods", "label_shift_adapter").__module__].imbalance
    draw = torch.Generator().manual_seed(0)
    told = []
    for counts in [*(torch.multinomial(torch.ones(10), 500, True, generator=draw).bincount(minlength=10) for _ in range(40)),
                   torch.tensor([100, 50, 20, 10]), torch.tensor([60, 50, 50, 40]), torch.tensor([55, 50, 50, 45])]:
        p = float(power_divergence(counts.numpy(), lambda_="log-likelihood").pvalue)
        prior = counts.double() / counts.sum()
        degree = imbalance(prior, prior, counts.sum())
        assert (degree is None) == (p > 0.05), (counts, p)
        assert degree is None or abs(float(degree) - 1) < 1e-9
        told.append(degree is not None)
    assert 0 <= sum(told[:40]) <= 6, "about one in twenty"


def test_adapter_is_the_identity_until_trained_and_for_a_balanced_source() -> None:
    """Conformance 14: its host's own answers."""
    x = images(16)
    untrained = deployed("label_shift_adapter", adapter_epochs=0)
    host = deployed("tent")
    for k in range(3):
        assert torch.allclose(untrained.predict(images(16, k), SPACE), host.predict(images(16, k), SPACE), atol=1e-5)
    balanced = find("cl_bench.methods", "label_shift_adapter")(backbone())
    balanced.head = FixedHead(balanced.backbone.head, SPACE, 12)
    balanced.deploy(source())
    assert balanced.degree(balanced.estimate) is None
    assert torch.allclose(balanced.answer(x, SPACE), deployed("tent").answer(x, SPACE), atol=1e-5)


def test_adapter_bends_towards_the_labels_that_it_is_told() -> None:
    """Conformance 14: matching pi helps, the opposite one harms; pi stays a distribution."""
    base, long_tailed = backbone(), source(counts=(100, 50, 20, 10))
    with torch.no_grad():
        features = base.forward_features(long_tailed.data.x.float() / 255)
    opt = torch.optim.LBFGS(base.head.parameters(), max_iter=60)

    def fit() -> Tensor:  # a source classifier that knows its label distribution
        opt.zero_grad()
        loss = F.cross_entropy(base.head(features), long_tailed.data.y) + 1e-3 * base.head.weight.square().sum()
        loss.backward()
        return loss

    opt.step(fit)
    method = find("cl_bench.methods", "label_shift_adapter")(
        base, host=find("cl_bench.methods", "source"), adapter_epochs=150, adapter_lr=1e-2
    )
    method.head = FixedHead(base.head, SPACE, 12)
    method.deploy(long_tailed)
    data = source(counts=(100, 50, 20, 10)).data
    x, y = data.x.float() / 255, data.y
    rare, common = y >= 2, y < 2

    def accuracy(pi: list[float], rows: Tensor) -> float:
        method.estimate = torch.tensor(pi)
        method.bend()
        return (method.answer(x[rows], SPACE).argmax(1) == y[rows]).float().mean().item()

    at_source, uniform, reversed_ = method.known().tolist(), [0.25] * 4, method.known().flip(0).tolist()
    assert accuracy(reversed_, rare) > accuracy(at_source, rare) + 0.2
    assert accuracy(at_source, common) > accuracy(reversed_, common) + 0.2
    assert accuracy(reversed_, rare) >= accuracy(uniform, rare) >= accuracy(at_source, rare)
    assert float(method.degree(torch.tensor(uniform))) == pytest.approx(0.0, abs=1e-5)
    assert float(method.degree(torch.tensor(at_source))) == pytest.approx(1.0, abs=1e-5)
    assert float(method.degree(torch.tensor(reversed_))) < 0
    for k in range(20):
        method.predict(images(9, k), SPACE)
        assert float(method.estimate.sum()) == pytest.approx(1.0, abs=1e-5) and (method.estimate >= 0).all()


@pytest.mark.parametrize("host", ["cotta", "rotta", "lame", "eata"])
def test_adapter_wraps_any_method_and_trains_nothing_of_itself(host: str) -> None:
    method = deployed("label_shift_adapter", host=find("cl_bench.methods", host), adapter_epochs=3)
    phi = [p.clone() for p in method.generator.parameters()]
    for k in range(4):
        out = method.predict(images(20, k), SPACE)
        assert out.shape == (20, CLASSES) and torch.isfinite(out).all()
    assert all(torch.equal(a, b) for a, b in zip(phi, method.generator.parameters(), strict=True))
    heads = [m for m in method.host.modules() if type(m).__name__ == "AdaptedHead" and m is not method.host.head]
    assert heads and all(torch.equal(h.bias_shift, heads[0].bias_shift) for h in heads), "a teacher is bent differently"
    some = method.predict(images(5), LabelSpace((1, 3)))
    assert some.shape == (5, 2) and method.estimate.shape == (2,)
    method.withdraw()
    assert method.host.head is method.head
