"""The shared parts of test-time adaptation: norm modes, parameter groups, augmentation, losses, memory, source."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as TF
from tta_toy import CLASSES, SPACE, backbone, deployed, images, source

from cl_bench.adaptation import (
    CategoryBalancedMemory,
    Deployed,
    InstanceAwareNorm,
    MixedNorm,
    Replay,
    RobustNorm,
    all_parameters,
    augment,
    augmented_outputs,
    batch_statistics,
    contrastive,
    convert,
    cross_entropy_to,
    draw_augmentations,
    entropy,
    generalised_cross_entropy,
    grouped,
    masked_mean,
    norm_parameters,
    prototypes,
    shallow_norm_parameters,
    soft_likelihood_ratio,
    source_batches,
    stochastic_restore_,
    symmetric_cross_entropy,
)
from cl_bench.adaptation.norm import InstanceMoments, Moments, moments
from cl_bench.rng import Rng


def norm2d() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4).eval()
    generator = torch.Generator().manual_seed(0)
    for t, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight.data, 0.5, 2),
                         (norm.bias.data, -1, 1)):
        t.uniform_(low, high, generator=generator)
    return norm


X = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def by_hand(norm: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    x = (X - mean.view(-1, 4, 1, 1)) / torch.sqrt(var.view(-1, 4, 1, 1) + norm.eps)
    return x * norm.weight.view(1, 4, 1, 1) + norm.bias.view(1, 4, 1, 1)


# ---------------------------------------------------------------------- norm modes
def test_moments_and_their_gradient() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(Moments.apply, (x,))
    y = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(InstanceMoments.apply, (y,))
    own = torch.var_mean(y, dim=(2, 3), correction=1, keepdim=True)
    assert all(torch.allclose(a, b) for a, b in zip(InstanceMoments.apply(y), own[::-1], strict=True))
    var, mean = torch.var_mean(X, dim=(0, 2, 3), correction=1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(moments(X, unbiased=True), (mean, var), strict=True))
    assert torch.equal(moments(torch.zeros(3, 2))[1], torch.zeros(2)), "a constant channel has no variance"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_mode_normalises_with_its_own_statistics(memory_format: torch.memory_format) -> None:
    x = X.contiguous(memory_format=memory_format)
    var, mean = torch.var_mean(X, dim=(0, 2, 3), correction=0)
    norm = norm2d()
    source_mean, source_var = norm.running_mean.clone(), norm.running_var.clone()
    mixed = MixedNorm(norm, alpha=0.3)(x)
    unbiased = var * X[:, 0].numel() / (X[:, 0].numel() - 1)
    assert torch.allclose(mixed, by_hand(norm, 0.7 * source_mean + 0.3 * mean, 0.7 * source_var + 0.3 * unbiased), atol=1e-5)
    robust = RobustNorm(norm, alpha=0.05)
    assert torch.allclose(robust(x), by_hand(norm, source_mean, source_var), atol=1e-5)
    moved = (0.95 * source_mean + 0.05 * mean, 0.95 * source_var + 0.05 * var)
    assert torch.allclose(robust.train()(x), by_hand(norm, *moved), atol=1e-5)
    assert torch.allclose(robust.eval()(x), by_hand(norm, *moved), atol=1e-5)
    net = nn.Sequential(norm2d())
    assert batch_statistics(net) == 1
    assert torch.allclose(net(x), by_hand(norm, mean, var), atol=1e-5)
    assert torch.allclose(net.train()(x), by_hand(norm, mean, var), atol=1e-5)


def test_no_gradient_passes_mixed_statistics() -> None:
    layer, x = MixedNorm(norm2d(), 0.3).double(), X[:2, :, :2, :2].double().requires_grad_()
    weight = torch.arange(x.numel(), dtype=x.dtype).view_as(x)
    (layer(x) * weight).sum().backward()
    var = torch.var_mean(x, dim=(0, 2, 3))[0].detach()
    norm = norm2d().double()
    scale = norm.weight / torch.sqrt(norm.running_var.lerp(var, 0.3) + 1e-5)
    assert torch.allclose(x.grad, weight * scale.view(1, 4, 1, 1), atol=1e-8)


@pytest.mark.parametrize("make", [lambda n: RobustNorm(n, 0.3).train()])
def test_gradient_flows_through_the_batch_part(make) -> None:
    layer = make(norm2d()).double()
    x = X[:2, :, :2, :2].double().requires_grad_()
    layer(x).square().sum().backward()
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=int(isinstance(layer, MixedNorm)))
    source_norm = norm2d().double()
    mu, s2 = source_norm.running_mean.lerp(mean, 0.3), source_norm.running_var.lerp(var, 0.3)
    y = (x - mu.view(1, 4, 1, 1)) / torch.sqrt(s2 + 1e-5).view(1, 4, 1, 1)
    y = y * source_norm.weight.view(1, 4, 1, 1) + source_norm.bias.view(1, 4, 1, 1)
    assert torch.allclose(x.grad, torch.autograd.grad(y.square().sum(), x)[0], atol=1e-8)


def test_instance_aware_norm_corrects_only_what_noise_does_not_explain() -> None:
    norm = norm2d()
    near = InstanceAwareNorm(norm, k=1e6)
    assert torch.allclose(near(X), norm(X), atol=1e-5), "everything is noise: running statistics"
    own_var, own_mean = torch.var_mean(X, dim=(2, 3), correction=1)
    assert torch.allclose(InstanceAwareNorm(norm, k=0.0)(X), by_hand(norm, own_mean, own_var), atol=1e-4)
    assert torch.allclose(near(X[..., :1, :1]), norm(X[..., :1, :1]), atol=1e-5), "one pixel has no statistics"


def test_converted_layers_share_parameters_and_fold_activations() -> None:
    net = timm.create_model("regnetx_002", num_classes=0).eval()  # its norm layers hold their activation
    before = dict(net.named_parameters())
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    count = convert(net, lambda norm: RobustNorm(norm))
    assert count == sum("bn" in n and n.endswith("weight") for n in before)
    assert torch.allclose(net(x), expected, atol=1e-4)
    assert all(p is before[n] for n, p in net.named_parameters())


def test_views_that_go_together_are_normalised_apart() -> None:
    model = deployed("bn").model
    a, b = images(6, 1), images(6, 2) * 0.5
    with torch.no_grad():
        apart = torch.cat((model(a), model(b)))
        with grouped(model, 2):
            together = model(torch.cat((a, b)))
        assert torch.allclose(together, apart, atol=1e-5)
        assert not torch.allclose(model(torch.cat((a, b))), apart, atol=1e-2), "outside they are one batch"
    assert augmented_outputs(model, a, 4, Rng(0)).shape == (4, 6, CLASSES)


# ---------------------------------------------------------------------- parameter groups
@pytest.mark.parametrize("name, tensors", [
    ("vit_base_patch16_224", 2 * 2 * 9), ("vit_small_patch16_224", 2 * 2 * 9),
    ("resnet50", 2 * (1 + 3 * 3 + 1 + 4 * 3 + 1 + 6 * 3 + 1)), ("resnet50_gn", 2 * (1 + 3 * 3 + 1 + 4 * 3 + 1 + 6 * 3 + 1)),
])
def test_norm_layers_that_sar_adapts(name: str, tensors: int) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    assert len(shallow_norm_parameters(net)) == tensors
    assert len(shallow_norm_parameters(nn.ModuleDict({"model": net}))) == tensors, "under another prefix"


def test_sars_rule_holds_for_other_names_of_the_same_networks() -> None:
    import torchvision

    with torch.device("meta"):
        vit, resnet = torchvision.models.vit_b_16(), torchvision.models.resnet50()
    assert len(shallow_norm_parameters(vit)) == 36
    assert len(shallow_norm_parameters(resnet)) == 2 * 43


def test_small_networks_keep_what_the_rule_does_not_name() -> None:
    three_stages = Deployed(backbone().model, deployed("bn").head)
    assert len(shallow_norm_parameters(three_stages)) == len(norm_parameters(three_stages)) == 4
    four_blocks = deployed("source", "ln").model
    assert len(norm_parameters(four_blocks)) == 2 * 9 and len(shallow_norm_parameters(four_blocks)) == 2 * 6


def test_all_leaves_tokens_alone() -> None:
    model = deployed("source", "ln").model
    token = model.backbone.model.cls_token
    chosen = all_parameters(model)
    assert not any(p is token for p in chosen) and len(chosen) == len(list(model.parameters())) - 1


# ---------------------------------------------------------------------- augmentation
@pytest.mark.parametrize("padding, blur", [("edge", True), ("reflect", False)])
@pytest.mark.parametrize("seed", range(4))
def test_augmentation_is_torchvisions_chain_of_transforms(padding: str, blur: bool, seed: int) -> None:
    x = F.interpolate(torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(seed)), size=32, mode="bilinear")
    draws = draw_augmentations(1, Rng(seed), 32)
    out = augment(x, Rng(0), draws, padding=padding, blur=blur, noise=0)
    row = draws[0].tolist()
    y = x.clone()
    for rank in range(5):
        kind = int(row[5 + rank])
        if kind == 4:
            y = TF.adjust_gamma(y.clamp(1e-8, 1), row[4])
        else:
            step = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[kind]
            y = step(y, row[kind])
    y = TF.pad(y, [16], padding_mode=padding)
    y = TF.affine(y, row[10], [int(row[12]), int(row[13])], row[11], [0.0, 0.0], TF.InterpolationMode.BILINEAR)
    if blur:
        y = TF.gaussian_blur(y, [5, 5], [row[14], row[14]])
    y = TF.center_crop(y, [32, 32])
    y = TF.hflip(y) if row[15] else y
    assert torch.allclose(out, y.clamp(0, 1), atol=2e-3), f"largest difference {(out - y).abs().max():.4f}"


def test_views_at_once_are_views_one_by_one_and_draws_stay_in_range() -> None:
    x, draws = images(3), draw_augmentations(64, Rng(1), 8)
    together = augment(x, Rng(0), draws[:5], noise=0)
    apart = torch.cat([augment(x, Rng(0), d.unsqueeze(0), noise=0) for d in draws[:5]])
    assert torch.allclose(together, apart, atol=1e-5) and together.shape == (15, 3, 8, 8)
    low = torch.tensor([0.6, 0.7, 0.5, -0.06, 0.7, 0, 0, 0, 0, 0, -15, 0.9, -1, -1, 0.001, 0])
    high = torch.tensor([1.4, 1.3, 1.5, 0.06, 1.3, 4, 4, 4, 4, 4, 15, 1.1, 1, 1, 0.5, 1])
    assert (draws >= low - 1e-6).all() and (draws <= high + 1e-6).all()
    assert (draws[:, 5:10].sort(1).values == torch.arange(5)).all() and len(draws[:, 10].unique()) == 64
    soft = draw_augmentations(64, Rng(1), 8, soft=True)
    assert soft[:, 10].abs().max() <= 8 and (soft[:, 0] - 1).abs().max() <= 0.2 + 1e-6
    with pytest.raises(ValueError, match="padding"):
        augment(x, Rng(0), padding="zeros")


def test_augmentation_leaves_its_input_alone_and_adds_noise_of_its_own_generator() -> None:
    x = images(3)
    kept, state = x.clone(), torch.get_rng_state()
    rng = Rng(4)
    a, b = augment(x, rng), augment(x, Rng(4))
    assert torch.equal(x, kept) and torch.equal(a, b) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(a, augment(x, rng)), "the next call draws anew"


# ---------------------------------------------------------------------- losses
def test_losses_by_hand() -> None:
    z, other = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 3)
    p = z.softmax(1)
    assert torch.allclose(entropy(z), -(p * p.log()).sum(1))
    assert torch.allclose(cross_entropy_to(other, z), -z.log_softmax(1).mean(1))
    assert torch.allclose(symmetric_cross_entropy(z, other, 0.25),
                          0.75 * cross_entropy_to(other, z) + 0.25 * math.log(3), atol=1e-6)
    assert torch.allclose(generalised_cross_entropy(z, 1.0), 1 - p.amax(1))
    sure = torch.tensor([[100.0, 0.0, 0.0]])
    assert math.isclose(float(soft_likelihood_ratio(sure)), -0.99 * math.log(0.99 / 0.01 + 1e-5), rel_tol=1e-4)
    mask = torch.tensor([True, False, True, False])
    assert torch.allclose(masked_mean(z[:, 0], mask), z[[0, 2], 0].mean())
    assert masked_mean(z[:, 0], torch.zeros(4, dtype=torch.bool)) == 0


def test_contrastive_loss_by_loops() -> None:
    views = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    rows = F.normalize(torch.cat(views), dim=1)
    total = 0.0
    for i in range(9):
        bottom = sum(math.exp(float(rows[i] @ rows[j]) / 0.5) for j in range(9) if j != i)
        for j in range(9):
            if j != i and j % 3 == i % 3:
                total -= (float(rows[i] @ rows[j]) / 0.5 - math.log(bottom)) / 2 / 9
    assert math.isclose(float(contrastive(views, 0.5)), total, rel_tol=1e-5)


# ---------------------------------------------------------------------- memory, teacher, source
def test_memory_balances_classes_and_ages_on_a_dropped_image() -> None:
    memory = CategoryBalancedMemory(4, 2)
    batch = torch.arange(12.0).view(12, 1)
    assert all(memory.add(row, 0, 0.1) for row in range(2))
    assert not memory.add(2, 0, 0.69), "its class is full of more certain images"
    assert [item[2] for item in memory.items] == [3, 2], "a dropped image ages the others"
    assert memory.add(3, 1, 0.1) and memory.add(4, 1, 0.1)
    memory.commit(batch)
    assert memory.images().flatten().tolist() == [0.0, 1.0, 3.0, 4.0] and len(memory) == 4
    ages = memory.ages()
    assert memory.add(5, 0, 0.0), "more certain and younger than the oldest of its class"
    memory.commit(batch)
    assert memory.images().flatten().tolist() == [5.0, 1.0, 3.0, 4.0]
    assert torch.equal(memory.ages()[1:], ages[1:] + 1 / 4), "ages grow by one"


def test_memory_makes_room_for_a_rare_class_and_is_never_too_full() -> None:
    memory = CategoryBalancedMemory(4, 3)  # a quota of four thirds
    for row in range(4):
        memory.add(row, row % 2, 0.5)
    assert len(memory) == 4 and memory.add(4, 2, 0.0)
    assert sorted(item[0] for item in memory.items) in ([0, 1, 1, 2], [0, 0, 1, 2])
    many = CategoryBalancedMemory(8, 100)
    draws = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)).tolist()
    for row, (label, h) in enumerate(draws):
        many.add(row, int(label * 100), h)
        assert len(many) <= 8
    labels = [item[0] for item in many.items]
    assert len(set(labels)) == len(labels), "with more classes than places each holds one"


def test_restore_rate() -> None:
    p, s = [torch.ones(200, 50)], [torch.zeros(200, 50)]
    stochastic_restore_(p, s, 0.1, Rng(0))
    assert abs(float((p[0] == 0).float().mean()) - 0.1) < 0.01
    stochastic_restore_(p, s, 1.0, Rng(0))
    assert not p[0].any()


def test_source_parts() -> None:
    model, exp = deployed("bn").model, source()
    seen = torch.cat([x for x, _ in source_batches(exp, 7, Rng(0), torch.device("cpu"), 20)])
    assert len(seen) == 20 and seen.dtype == torch.float32 and len(seen.flatten(1).unique(dim=0)) == 20
    whole = prototypes(model, iter([next(iter(source_batches(exp, 48, Rng(0), torch.device("cpu"))))]))
    with torch.no_grad():
        f = model.features(exp.data.x.float() / 255)
    for c in range(CLASSES):
        assert torch.allclose(whole[c], f[exp.data.y == c].mean(0), atol=1e-5)
    replay, rng = Replay(exp, 30, 8, Rng(0), torch.device("cpu")), Rng(1)
    drawn = torch.cat([replay.draw(rng).x for _ in range(4)])
    assert replay.samples == 30 and len(drawn) == 30 and len(drawn.flatten(1).unique(dim=0)) == 30, "each image once"
    assert SPACE.ids == tuple(range(CLASSES)) and sum(len(x) for x, _ in replay.all()) == 30
