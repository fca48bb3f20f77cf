"""Each test-time method against what its paper and its official code say: the checks of the methods' specification."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tta_toy import CLASSES, SPACE, deployed, images

from cl_bench.adaptation import RobustNorm, all_parameters, ema_, entropy

STILL = {  # name -> settings under which no step moves anything and nothing else changes the answer
    "tent": {}, "rpl": {}, "eta": {}, "eata": {}, "rdumb": {}, "sar": {}, "deyo": {}, "santa": {},
    "roid": {"correct_prior": False}, "cmf": {"correct_prior": False}, "cotta": {"threshold": 0.0, "restore": 0.0},
    "rmt": {"momentum": 1.0}, "psmt": {"momentum": 1.0},
}
EXACT = ("tent", "rpl", "eta", "eata", "rdumb", "sar", "deyo", "santa")


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
@pytest.mark.parametrize("name", STILL)
def test_with_lr_zero_it_is_bn_or_without_batchnorm_the_source(name: str, norm: str) -> None:
    method, still = deployed(name, norm, lr=0.0, **STILL[name]), deployed("bn" if norm == "bn" else "source", norm)
    for k in range(3):
        x = images(16, k)
        out, expected = method.predict(x, SPACE), still.predict(x, SPACE)
        if name in EXACT:
            assert torch.equal(out, expected)
        else:
            assert torch.allclose(out, expected, atol=1e-5)
            assert torch.equal(out.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", [*STILL, "rotta"])
def test_the_answer_to_a_batch_is_from_before_its_own_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hparams = {"frequency": 8} if name == "rotta" else {}
    x = images(16)
    expected = deployed(name, **hparams).predict(x, SPACE)
    method = deployed(name, **hparams)

    def noisy_step() -> None:
        with torch.no_grad():
            for p in method.trained():
                p.add_(torch.ones_like(p))

    monkeypatch.setattr(method.opt, "step", noisy_step)
    assert torch.equal(method.predict(x, SPACE), expected)
    assert not torch.allclose(method.predict(x, SPACE), expected, atol=1e-3), "the patched step has no effect"


def test_bn_ema_answers_after_its_own_update() -> None:
    method = deployed("bn_ema")
    x = images(16)
    before = method.answer(x, SPACE)
    out = method.predict(x, SPACE)
    assert not torch.equal(out, before) and torch.equal(out, method.answer(x, SPACE))


def test_batch_statistics_follow_a_permutation_and_ignore_duplicates() -> None:
    bn, x = deployed("bn"), images(16)
    z = bn.predict(x, SPACE)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(bn.predict(x[order], SPACE), z[order], atol=1e-5)
    assert torch.allclose(bn.predict(torch.cat((x, x)), SPACE)[:16], z, atol=1e-5)


def test_bn_alpha_is_source_at_zero_and_the_pseudo_count_sets_alpha() -> None:
    x = images(16)
    assert torch.allclose(deployed("bn_alpha", alpha=0.0).predict(x, SPACE), deployed("source").predict(x, SPACE), atol=1e-5)
    mixed = deployed("bn_alpha", alpha=0.5).predict(x, SPACE)
    assert torch.equal(deployed("bn_alpha", prior=16).predict(x, SPACE), mixed)
    assert not torch.allclose(mixed, deployed("bn").predict(x, SPACE), atol=1e-3)


# ---------------------------------------------------------------------- EATA, RDumb, SAR, DeYO
@pytest.mark.parametrize("name", ["eta", "eata", "rdumb", "sar", "deyo"])
def test_a_batch_that_is_filtered_whole_moves_nothing(name: str) -> None:
    method = deployed(name, margin=0.0)
    weights = [p.detach().clone() for p in method.model.parameters()]
    for k in range(2):
        method.predict(images(16, k), SPACE)
    assert method.counts["steps"] == 0 and method.counts["skipped"] == 2 and method.counts["selected"] == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, method.model.parameters(), strict=True))
    assert getattr(method, "mean_p", None) is None and getattr(method, "entropy_average", None) is None


def test_eta_without_redundancy_filter_is_weighted_entropy_on_reliable_samples() -> None:
    margin = 0.8
    method = deployed("eta", margin=margin, redundancy=2.0, optimizer="sgd", lr=0.1)
    x, e0 = images(16), margin * math.log(CLASSES)
    twin = deployed("tent", optimizer="sgd", lr=0.1)
    h = entropy(twin.model(x))
    reliable = h < e0
    assert 0 < int(reliable.sum()) < 16, "the toy must have both kinds"
    loss = (torch.exp(e0 - h.detach()) * h)[reliable].mean()
    expected = [p - 0.1 * g for p, g in zip(twin.trained(), torch.autograd.grad(loss, twin.trained()), strict=True)]
    method.predict(x, SPACE)
    assert all(torch.allclose(p, e, atol=1e-6) for p, e in zip(method.trained(), expected, strict=True))
    assert method.counts["selected"] == int(reliable.sum())
    assert torch.allclose(method.mean_p, twin.model(x).softmax(1)[reliable].mean(0), atol=1e-6)


def test_fisher_is_never_negative_and_zero_where_no_gradient_arrives() -> None:
    method = deployed("eata")
    assert all((f >= 0).all() for f in method.fisher) and any((f > 0).any() for f in method.fisher)
    untouched = deployed("psmt", "ln")  # its last norm's output is read at the class token alone, all else is used
    names = [n for n, _ in untouched.model.named_parameters() if n.rpartition(".")[2] in ("weight", "bias")]
    unused = [f for n, f in zip(names, untouched.importance, strict=True) if n.endswith("blocks.3.norm1.bias")]
    assert len(unused) == 1 and all((f >= 0).all() for f in untouched.importance)
    method.model.unused = torch.nn.Linear(2, 2)
    from cl_bench.adaptation import fisher

    extra = list(method.model.unused.parameters())
    assert all(not f.any() for f in fisher(method.model, extra, iter([(images(8), torch.zeros(8))])))


def test_eata_penalty_pulls_towards_the_source() -> None:
    free, held = deployed("eata", fisher_weight=0.0, lr=0.05), deployed("eata", fisher_weight=1e6, lr=0.05)
    for k in range(6):
        free.predict(images(16, k), SPACE)
        held.predict(images(16, k), SPACE)

    def drift(m: object) -> float:
        return sum(float((f * (p - s).square()).sum()) for f, p, s in zip(m.fisher, m.trained(), m.start, strict=True))

    assert drift(held) < drift(free)


def test_rdumb_starts_again_after_each_period() -> None:
    method, eta = deployed("rdumb", period=4), deployed("eta")
    first = [method.predict(images(16, k), SPACE) for k in range(4)]
    assert all(torch.equal(a, eta.predict(images(16, k), SPACE)) for k, a in enumerate(first))
    again = [method.predict(images(16, k), SPACE) for k in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and method.counts["resets"] == 1


def test_sar_with_rho_zero_is_a_filtered_entropy_step() -> None:
    margin, x = 0.8, images(16)
    method = deployed("sar", margin=margin, rho=0.0, lr=0.1, reset_below=0.0)
    twin = deployed("tent", optimizer="sgd", lr=0.1)
    h = entropy(twin.model(x))
    loss = h[h < margin * math.log(CLASSES)].mean()
    expected = [p - 0.1 * g for p, g in zip(twin.trained(), torch.autograd.grad(loss, twin.trained()), strict=True)]
    method.predict(x, SPACE)
    assert all(torch.allclose(p, e, atol=1e-6) for p, e in zip(method.trained(), expected, strict=True))
    assert math.isclose(method.entropy_average, float(loss), rel_tol=1e-5)


def test_sar_climbs_along_the_gradient_and_comes_back() -> None:
    from cl_bench.adaptation import ascend_, put_back_

    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    q = torch.nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    old = ascend_([p, q], rho=0.5)
    assert torch.allclose(p, torch.tensor([3.3, 4.0])) and torch.allclose(q, torch.tensor([0.4]))
    put_back_([p, q], old)
    assert torch.equal(p, torch.tensor([3.0, 4.0])) and torch.equal(q, torch.zeros(1))


def test_sar_resets_itself_when_the_entropy_average_is_low() -> None:
    method = deployed("sar", reset_below=10.0)
    weights = [p.detach().clone() for p in method.trained()]
    method.predict(images(16), SPACE)
    assert method.counts["resets"] == 1 and method.entropy_average is None
    assert all(torch.equal(a, b) for a, b in zip(weights, method.trained(), strict=True))


def test_deyo_shuffles_patches_of_every_image_on_its_own() -> None:
    method, x = deployed("deyo"), images(6)
    out = method.shuffled(x)
    patches = F.unfold(x, 2, stride=2).transpose(1, 2)
    shuffled = F.unfold(out, 2, stride=2).transpose(1, 2)
    orders = []
    for a, b in zip(patches, shuffled, strict=True):
        nearest = torch.cdist(b, a).argmin(1)
        assert torch.equal(b, a[nearest]) and sorted(nearest.tolist()) == list(range(16))
        orders.append(tuple(nearest.tolist()))
    assert len(set(orders)) == 6
    assert method.shuffled(images(2)[:, :, :7, :7]).shape == (2, 3, 7, 7), "sides that four does not divide"


def test_deyo_leaves_out_samples_that_do_not_need_their_shape() -> None:
    method = deployed("deyo", plpd=1.0)  # no probability can fall by more than one
    method.predict(images(16), SPACE)
    assert method.counts["steps"] == 0 and method.counts["skipped"] == 1


# ---------------------------------------------------------------------- CoTTA, PSMT
def test_cotta_restoring_everything_leaves_the_student_at_the_source() -> None:
    method = deployed("cotta", restore=1.0, lr=0.1)
    for k in range(3):
        method.predict(images(16, k), SPACE)
        assert all(torch.equal(p, s) for p, s in zip(method.trained(), method.start, strict=True))
    teacher = all_parameters(method.teacher)
    assert any(not torch.equal(t, s) for t, s in zip(teacher, method.start, strict=True)), "it saw the steps before"


@pytest.mark.parametrize("threshold, passes", [(0.0, 3), (1.0, 2 + 32)])
def test_cotta_passes_per_batch(threshold: float, passes: int) -> None:
    method = deployed("cotta", threshold=threshold, augmentations=32)
    counter = method.model.backbone.model.counter
    before = counter.images
    method.predict(images(16), SPACE)
    assert counter.images - before == passes * 16


def test_cotta_calibrates_its_threshold_on_the_source() -> None:
    method = deployed("cotta_calibrated")
    assert -0.05 < method.threshold < 0.95 and method.threshold != 0.92


def test_psmt_returns_the_smallest_gradients_to_the_source() -> None:
    fraction = 0.25
    method = deployed("psmt", fraction=fraction, lr=0.1)
    total = sum(p.numel() for p in method.trained())
    method.predict(images(16), SPACE)
    back = [p == s for p, s in zip(method.trained(), method.start, strict=True)]
    teacher = all_parameters(method.teacher)
    assert all((t == s)[b].all() for t, s, b in zip(teacher, method.start, back, strict=True))
    count = sum(int(b.sum()) for b in back)
    below = math.floor(fraction * (total - 1)) + 1  # strictly below the interpolated quantile
    assert abs(count - below) <= 0.02 * total  # but for ties


def test_psmt_without_restoring_is_a_twice_averaged_teacher() -> None:
    method = deployed("psmt", fraction=0.0, lr=0.1, momentum=0.9)
    old = [p.clone() for p in all_parameters(method.teacher)]
    method.predict(images(16), SPACE)
    for t, o, p in zip(all_parameters(method.teacher), old, method.trained(), strict=True):
        assert torch.allclose(t, 0.9 * (0.9 * o + 0.1 * p) + 0.1 * p, atol=1e-6)


def test_psmt_variants_differ_and_the_papers_keeps_important_weights_of_the_teacher() -> None:
    method = deployed("psmt", variant="paper", fraction=0.5, lr=0.1)
    old = [p.clone() for p in all_parameters(method.teacher)]
    method.predict(images(16), SPACE)
    same = [t == o for t, o in zip(all_parameters(method.teacher), old, strict=True)]
    kept = sum(int(s.sum()) for s in same) / sum(s.numel() for s in same)
    assert 0.45 < kept < 0.75
    assert any(f.any() for f in method.importance) and not torch.equal(method.centre[0], method.trained()[0])


def test_quantile_is_torchs() -> None:
    from importlib import import_module

    quantile = import_module(type(deployed("psmt")).__module__).quantile
    parts = [torch.randn(7, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    for q in (0.0, 0.03, 0.5, 1.0):
        assert torch.allclose(quantile(parts, q), torch.cat([p.flatten() for p in parts]).quantile(q))


# ---------------------------------------------------------------------- RoTTA, RMT
def test_rotta_memory_is_bounded_and_only_updates_move_statistics() -> None:
    method = deployed("rotta", memory=16, frequency=16)
    layers = [m for m in method.teacher.modules() if isinstance(m, RobustNorm)]
    assert len(layers) == 2
    before = [m.mean.clone() for m in layers]
    method.answer(images(8), SPACE)
    method.predict(images(15), SPACE)
    assert all(torch.equal(m.mean, b) for m, b in zip(layers, before, strict=True)), "no update yet"
    for k in range(12):
        method.predict(images(15, k), SPACE)
        assert len(method.bank) <= 16
    assert method.counts["steps"] == 13 * 15 // 16
    assert not torch.equal(layers[0].mean, before[0])
    assert not any(m.training for m in method.modules() if isinstance(m, RobustNorm))


def test_rmt_warms_up_to_its_final_rate_and_counts_replayed_images() -> None:
    method = deployed("rmt", warmup=64)
    assert method.counts["steps"] == 4 and method.opt.param_groups[0]["lr"] == method.lr
    assert method.stored_samples() == 48
    free = deployed("rmt", source_weight=0.0, warmup=0)
    assert free.stored_samples() == 0
    free.predict(images(16), SPACE)
    assert free.counts["steps"] == 1


# ---------------------------------------------------------------------- ROID, CMF
def test_roid_drops_samples_less_diverse_than_the_mean() -> None:
    method = deployed("roid")
    z = method.model(images(16)).detach()
    diverse = 1 - F.cosine_similarity(method.prior.unsqueeze(0), z.softmax(1))
    diverse = (diverse - diverse.min()) / (diverse.max() - diverse.min())
    weight, keep = method.weigh(z)
    assert torch.equal(weight == 0, diverse < diverse.mean()) and torch.equal(keep, weight > 0)
    assert (weight[keep] <= math.exp(3) + 1e-4).all() and (weight[keep] >= 1).all()


@pytest.mark.parametrize("n", [1, 8])
def test_roid_with_equal_predictions_weighs_them_by_one(n: int) -> None:
    method = deployed("roid")
    weight, keep = method.weigh(torch.zeros(n, CLASSES))
    assert torch.equal(weight, torch.ones(n)) and keep.all()


def test_roid_and_cmf_stay_at_the_source_with_lr_zero() -> None:
    for name in ("roid", "cmf"):
        method = deployed(name, lr=0.0)
        for k in range(5):
            method.predict(images(8, k), SPACE)
        assert all(torch.equal(p, s) for p, s in zip(method.trained(), method.start, strict=True))


def test_cmf_without_process_noise_is_roid() -> None:
    cmf, roid = deployed("cmf", q=0.0, gamma=0.9, lr=0.05), deployed("roid", source_momentum=0.9, lr=0.05)
    for k in range(5):
        assert torch.equal(cmf.predict(images(8, k), SPACE), roid.predict(images(8, k), SPACE))
    assert cmf.variance == 0.0
    assert all(torch.equal(h, s) for h, s in zip(cmf.hidden, cmf.start, strict=True))


def test_cmf_variance_follows_its_filter() -> None:
    method = deployed("cmf", q=5.0, lr=0.05)
    noise, v = 5.0 * sum(p.numel() for p in method.trained()) / 38_400, 0.0
    for k in range(4):
        method.predict(images(8, k), SPACE)
        v = 0.99**2 * v + noise
        v *= max((1 - noise) / (v + 1 - noise), 0.89)
        assert math.isclose(method.variance, v, rel_tol=1e-9)
    assert any(not torch.equal(h, s) for h, s in zip(method.hidden, method.start, strict=True))


def test_prior_correction_as_in_the_code() -> None:
    method, x = deployed("roid"), images(16)
    z = method.model(x)
    prior: Tensor = z.softmax(1).mean(0)
    smooth = max(1 / 16, 1 / CLASSES) / float(prior.max())
    expected = z * (prior + smooth) / (1 + smooth * CLASSES) * CLASSES  # the base undoes the mean factor 1 / classes
    assert torch.allclose(method.predict(x, SPACE), expected, atol=1e-5)


def test_a_teacher_average_is_of_parameters() -> None:
    a, b = deployed("cotta"), deployed("cotta")
    with torch.no_grad():
        for p in b.model.parameters():
            p.add_(1)
    before = [p.clone() for p in a.teacher.parameters()]
    ema_(a.teacher, b.model, 0.75)
    for t, o, p in zip(a.teacher.parameters(), before, b.model.parameters(), strict=True):
        assert torch.allclose(t, 0.75 * o + 0.25 * p, atol=1e-6)
