"""Digits-C and corruptions over any scenario: what they hold, and that only looking makes images."""

from __future__ import annotations

import pytest
import torch

from cl_bench.data.digits import digits
from cl_bench.registry import entries, find
from cl_bench.types import LabelSpace, TestSet

Digits = find("cl_bench.scenarios", "digits_c")
QUICK = "brightness,contrast,gaussian_noise"


def test_digits_c_is_the_continual_protocol() -> None:
    scenario = Digits()
    assert len(scenario.stream()) == 15 and scenario.stream()[0].name == "gaussian_noise"
    assert scenario.reset == "never" and scenario.answers == "all" and "boundaries" not in scenario.gives
    assert all(len(t.data) == 359 and t.space == scenario.space for t in scenario.stream())
    assert scenario.source is not None and len(scenario.source.data) == 1438
    (clean,) = scenario.test_sets()
    assert torch.equal(clean.data.x, digits("test").x)
    assert not scenario._made or all(d._pixels is None for d in scenario._made.values()), "an image was computed"


def test_images_follow_from_the_noise_seed_alone() -> None:
    a, b = Digits(corruptions=QUICK), Digits(corruptions=QUICK, order=7, noise_seed=0)
    assert {t.name for t in a.stream()} == {t.name for t in b.stream()}
    backwards = {t.name: t.data.x for t in reversed(b.stream())}
    for test in a.stream():
        assert test.data.x.dtype == torch.uint8 and test.data.x.shape == (359, 3, 32, 32)
        assert torch.equal(test.data.x, backwards[test.name]), test.name
        assert test.data.x is a.stream()[[t.name for t in a.stream()].index(test.name)].data.x, "computed twice"
        assert torch.equal(test.data.y, digits("test").y)
    other = Digits(corruptions=QUICK, noise_seed=1)
    assert not torch.equal(other.stream()[2].data.x, a.stream()[2].data.x)
    assert torch.equal(other.stream()[0].data.x, a.stream()[0].data.x), "brightness has no noise"


def test_severity_and_order() -> None:
    scenario = Digits(corruptions="brightness", severity=1)
    clean = digits("test").x.float()
    changes = [(scenario.at(s)[0].data.x.float() - clean).abs().mean().item() for s in (1, 3, 5)]
    assert changes == sorted(changes) and changes[0] < changes[2]
    assert [t.name for t in Digits(order=1).stream()] != [t.name for t in Digits(order=2).stream()]
    assert sorted(t.name for t in Digits(order=1).stream()) == sorted(t.name for t in Digits().stream())
    assert len(Digits(corruptions="extra").stream()) == 4 and len(Digits(corruptions="all").stream()) == 19
    assert Digits(corruptions="rotta").stream()[0].name == "motion_blur"


def test_protocol_tells_data_apart_but_not_orders() -> None:
    base = Digits(order=1).protocol()
    assert base == Digits(order=2).protocol()
    for change in ({"severity": 3}, {"corruptions": "extra"}, {"noise_seed": 1}, {"test_batch_size": 40}, {}):
        assert Digits(**({"order": 1} | change if change else {"order": None})).protocol() != base, change


def test_corrupted_wraps_any_test_sets() -> None:
    class Halves(Digits):
        def test_sets(self) -> tuple[TestSet, ...]:
            whole, space = digits("test"), LabelSpace(tuple(range(10)))
            return tuple(TestSet(str(k), space, whole.subset(whole.y % 2 == k)) for k in (0, 1))

    scenario = find("cl_bench.scenarios", "corrupted")(Halves(), corruptions=QUICK, severity=2)
    assert [t.name for t in scenario.stream()] == QUICK.split(",")
    assert all(len(t.data) == 359 for t in scenario.stream())
    assert len(scenario.test_sets()) == 2 and scenario.protocol()["severity"] == 2
    assert (scenario.stream()[0].data.x.float() - scenario.clean().x.float()).mean() > 0


@pytest.mark.parametrize(
    "name",
    ["digits_c", "corrupted", "continual", "per_domain", "episodic", "shuffled", "gradual", "recurring", "mixed",
     "correlated", "continual_dynamic_change", "label_shift", "long_tailed", "small_batch", "return_to_source",
     "constant_speed", "label_delay"],
)  # fmt: skip
def test_registered_with_a_sentence_and_built_from_defaults(name: str) -> None:
    entry = entries("cl_bench.scenarios")[name]
    assert 20 < len(entry.summary) < 400
    scenario = entry.load()()
    assert scenario.space == Digits().space and len(scenario.stream()) > 0
