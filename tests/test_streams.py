"""Test streams: what arrives, in what order, exactly once where it should, the same for everyone, and lazily."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from cl_bench.data.tensor import TensorData, labels_of
from cl_bench.errors import UserError
from cl_bench.registry import find
from cl_bench.scenario import Scenario
from cl_bench.types import Experience, LabelSpace, TestSet


def make(name: str, *args, **kwargs) -> Scenario:
    return find("cl_bench.scenarios", name)(*args, **kwargs)


class Toy(Scenario):
    """Three domains of ``n`` tiny images; pixel 0 of an image is its number, pixel 1 its domain."""

    gives = frozenset({"names", "source"})
    answers = "all"
    test_batch_size = 8

    def __init__(self, n: int = 40, classes: int = 4) -> None:
        self.n, self.classes = n, classes
        self.read = 0

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(tuple(range(self.classes)))

    def images(self, domain: int) -> TensorData:
        self.read += 1
        x = torch.zeros(self.n, 3, 2, 2, dtype=torch.uint8)
        x[:, 0, 0, 0] = torch.arange(self.n) % 256
        x[:, 0, 0, 1] = domain
        return TensorData(x, torch.arange(self.n) % self.classes)

    @property
    def source(self) -> Experience:
        return Experience("source", self.space, self.images(9))

    def test_sets(self) -> tuple[TestSet, ...]:
        return (TestSet("clean", self.space, self.images(8)),)

    def at(self, severity: int) -> tuple[TestSet, ...]:
        return tuple(TestSet(n, self.space, self.images(10 * severity + k)) for k, n in enumerate(("a", "b", "c")))

    def stream(self) -> tuple[TestSet, ...]:
        return self.at(5)

    def protocol(self) -> dict[str, object]:
        return {"data": "toy"}


def content(test: TestSet) -> list[tuple[int, int, int]]:
    """(domain, image number, label) of every row, in order."""
    x = test.data.x if isinstance(test.data, TensorData) else torch.stack([i[0] for i in test.data])
    return list(zip(x[:, 0, 0, 1].tolist(), x[:, 0, 0, 0].tolist(), labels_of(test.data).tolist(), strict=True))


def index_hash(scenario: Scenario) -> str:
    rows = [(t.name, t.domain, content(t)) for t in scenario.stream()]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12]


ONCE = {
    "continual": {},
    "per_domain": {},
    "episodic": {},
    "shuffled": {"seed": 3},
    "correlated": {"seed": 3},
    "small_batch": {},
    "constant_speed": {},
    "label_delay": {},
}
ALL = {
    **ONCE,
    "gradual": {},
    "recurring": {"visits": 3},
    "mixed": {"seed": 3},
    "continual_dynamic_change": {"seed": 3},
    "label_shift": {"seed": 3},
    "long_tailed": {"imbalance": 5.0, "seed": 3},
    "return_to_source": {},
}


@pytest.mark.parametrize("name", ALL)
def test_wrapper_is_lazy_deterministic_and_leaves_global_generators_alone(name: str) -> None:
    toy = Toy()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the point is that nobody touches it
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    scenario = make(name, toy, **ALL[name])
    assert toy.read == 0, "constructing read data"
    first = index_hash(scenario)
    assert index_hash(scenario) == first, "a second walk differs"
    assert index_hash(make(name, Toy(), **ALL[name])) == first, "an equal scenario differs"
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    names = [t.name for t in scenario.stream()]
    assert len(set(names)) == len(names), f"positions are not unique: {names}"
    assert scenario.space == toy.space and scenario.source is not None and scenario.test_sets()


@pytest.mark.parametrize("name", ONCE)
def test_every_image_arrives_once_per_domain(name: str) -> None:
    arrived = make(name, Toy(), **ONCE[name]).stream()
    for test, original in zip(arrived, Toy().stream(), strict=True):
        assert sorted(content(test)) == sorted(content(original))


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("shuffled", {"seed": 1}, "d24f5575e750"),
        ("correlated", {"seed": 1}, "9566a6f6ea07"),
        ("correlated", {"seed": 1, "generator": "note"}, "1799a6d1fabe"),
        ("mixed", {"seed": 1}, "5a2c15e0d536"),
        ("continual_dynamic_change", {"seed": 1}, "92753cbb250a"),
        ("continual_dynamic_change", {"seed": 1, "generator": "multinomial"}, "3c3bf9807c57"),
        ("label_shift", {"seed": 1}, "858288aee3b9"),
        ("long_tailed", {"seed": 1, "imbalance": 5.0}, "196e5922b023"),
        ("recurring", {"seed": 1, "visits": 2}, "a909e0424860"),
    ],
)
def test_the_index_list_of_a_seed_never_changes(name: str, kwargs: dict, expected: str) -> None:
    assert index_hash(make(name, Toy(), **kwargs)) == expected


@pytest.mark.parametrize("name", ["shuffled", "correlated", "mixed", "continual_dynamic_change", "label_shift"])
def test_another_seed_is_another_stream(name: str) -> None:
    assert index_hash(make(name, Toy(), seed=1)) != index_hash(make(name, Toy(), seed=2))


def test_reset_policies_and_batch_size() -> None:
    assert make("continual", make("per_domain", Toy())).reset == "never"
    assert make("per_domain", Toy()).reset == "domain"
    assert make("episodic", Toy()).reset == "batch"
    assert make("small_batch", Toy()).test_batch_size == 1
    assert make("shuffled", make("small_batch", Toy(), test_batch_size=3)).test_batch_size == 3


def test_late_labels_and_speed_are_announced_through_further_wrappers() -> None:
    scenario = make("shuffled", make("label_delay", make("constant_speed", Toy(), stream_speed=0.5), label_delay=2))
    assert scenario.label_delay == 2 and scenario.stream_speed == 0.5
    assert scenario.gives == {"names", "source", "labels"}
    assert "labels" not in Toy.gives and make("shuffled", Toy()).label_delay is None


def test_shuffled_same_gives_every_domain_one_order() -> None:
    a, b, _ = make("shuffled", Toy(), same=True).stream()
    assert [row[1] for row in content(a)] == [row[1] for row in content(b)]
    a, b, _ = make("shuffled", Toy()).stream()
    assert [row[1] for row in content(a)] != [row[1] for row in content(b)]


def test_gradual_conventions() -> None:
    every = make("gradual", Toy()).stream()
    ramp = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert [t.domain for t in every] == [f"{d}:{s}" for d in "abc" for s in ramp]
    assert [content(t)[0][0] // 10 for t in every] == ramp * 3, "the images are not of the severity that the name says"
    cotta = make("gradual", Toy(), convention="cotta").stream()
    assert [t.domain for t in cotta][:6] == ["a:5", "a:4", "a:3", "a:2", "a:1", "b:1"]
    assert len(every) == 27 and len(cotta) == 23
    assert len(make("gradual", make("digits_c")).stream()) == 135
    assert len(make("gradual", make("digits_c"), convention="cotta").stream()) == 131
    correlated = make("gradual", make("correlated", Toy())).stream()
    assert [r[1] for r in content(correlated[0])] == [r[1] for r in content(correlated[4])]


def test_recurring_draws_anew_at_every_visit_and_keeps_domains() -> None:
    tests = make("recurring", Toy(), visits=3).stream()
    assert [t.name for t in tests] == ["a", "b", "c", "a@2", "b@2", "c@2", "a@3", "b@3", "c@3"]
    assert [t.domain or t.name for t in tests] == list("abc") * 3
    assert content(tests[0]) != content(tests[3]) and sorted(content(tests[0])) == sorted(content(tests[3]))
    fixed = make("recurring", Toy(), visits=2, redraw=False).stream()
    assert content(fixed[0]) == content(fixed[3]) == content(Toy().stream()[0])
    correlated = make("recurring", make("per_domain", make("correlated", Toy())), visits=2)
    assert correlated.reset == "domain"
    first, again = correlated.stream()[0], correlated.stream()[3]
    assert content(first) == content(make("correlated", Toy()).stream()[0]) and content(first) != content(again)


def test_mixed_keeps_the_domain_of_every_row() -> None:
    (test,) = make("mixed", Toy()).stream()
    assert len(test.data) == 120 and test.rows is not None
    names, codes = test.rows
    assert names == ("a", "b", "c")
    assert codes.tolist() == [domain - 50 for domain, _, _ in content(test)]
    assert sorted(content(test)) == sorted(row for t in Toy().stream() for row in content(t))
    assert len(set(codes[:8].tolist())) > 1, "the first batch holds one domain only"
    (sorted_again,) = make("correlated", make("mixed", Toy()), generator="sorted").stream()
    assert sorted_again.rows[1].tolist() == [domain - 50 for domain, _, _ in content(sorted_again)]
    assert labels_of(sorted_again.data).tolist() == sorted(labels_of(test.data).tolist())


@pytest.mark.parametrize("generator", ["dirichlet", "multinomial"])
def test_dynamic_change_spends_every_image_once_and_never_mixes_a_batch(generator: str) -> None:
    scenario = make("continual_dynamic_change", Toy(n=43), generator=generator, seed=5)
    by_domain: dict[str, list] = {}
    for test in scenario.stream():
        last = by_domain.setdefault(test.domain or test.name, [])
        last.extend(content(test))
        assert len(test.data) % 8 == 0 or len(last) == 43, "a short batch in the middle of a domain"
    originals = {t.name: content(t) for t in Toy(n=43).stream()}
    assert by_domain == originals, "images of a domain come in their own order, each once"
    assert len(scenario.stream()) > 3


def test_return_to_source() -> None:
    after = make("return_to_source", Toy()).stream()
    assert [t.name for t in after] == ["a", "b", "c", "clean again"] and content(after[-1])[0][0] == 8
    every = make("return_to_source", Toy(), after="domain").stream()
    assert [t.domain or t.name for t in every] == ["a", "clean", "b", "clean", "c", "clean"]


def test_long_tailed_source_and_stream() -> None:
    for direction, first in (("forward", 0), ("backward", 3)):
        scenario = make("long_tailed", Toy(n=400), direction=direction, imbalance=10.0, source_imbalance=100.0)
        counts = np.bincount(labels_of(scenario.stream()[0].data).numpy(), minlength=4)
        assert counts.argmax() == first and counts.max() == 100 and counts.min() == 10
        assert np.bincount(labels_of(scenario.source.data).numpy()).tolist() == [100, 22, 5, 1]
    assert len(make("long_tailed", Toy(), direction="uniform").stream()[0].data) == 40
    assert len(make("long_tailed", Toy(), source_imbalance=1.0).source.data) == 40


def test_protocol_names_the_arrival_but_not_the_draw() -> None:
    a = make("correlated", make("small_batch", Toy()), seed=1).protocol()
    assert a["data"] == "toy" and a["test_batch_size"] == 1
    assert a["arrival"] == [
        {"kind": "SmallBatch", "test_batch_size": 1},
        {"kind": "Correlated", "generator": "rotta", "delta": 0.1},
    ]
    assert a == make("correlated", make("small_batch", Toy()), seed=2).protocol()
    assert a != make("correlated", make("small_batch", Toy()), delta=0.2).protocol()


def test_views_keep_the_pixels_of_two_domains_only() -> None:
    scenario = make("recurring", Toy(), visits=10)
    held = []
    for test in scenario.stream():
        _ = test.data.x
        held.append(sum(t.data._pixels is not None for t in scenario.stream()))
    assert max(held) <= 2, f"pixels of {max(held)} domains are held at once"


def test_data_that_is_read_item_by_item_can_be_rearranged() -> None:
    class Slow(Toy):
        def at(self, severity: int) -> tuple[TestSet, ...]:
            parts = super().at(severity)
            return tuple(TestSet(t.name, t.space, torch.utils.data.Subset(t.data, range(self.n))) for t in parts)

    for name in ("mixed", "correlated", "recurring"):
        assert index_hash(make(name, Slow())) == index_hash(make(name, Toy()))


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("recurring", {"visits": 0}, "visits must be at least 1"),
        ("correlated", {"delta": 0.0}, "above 0"),
        ("correlated", {"generator": "x"}, "rotta, note or sorted"),
        ("continual_dynamic_change", {"slots": 0}, "slots must be at least 1"),
        ("label_shift", {"per_step": 0}, "per_step"),
        ("long_tailed", {"direction": "up"}, "forward, uniform or backward"),
        ("constant_speed", {"stream_speed": 2.0}, "at most 1"),
        ("small_batch", {"test_batch_size": 0}, "test_batch_size must be at least 1"),
        ("label_delay", {"label_delay": 0}, "label_delay must be at least 1"),
        ("digits_c", {"severity": 6}, "1 to 5"),
        ("digits_c", {"corruptions": "gausian"}, "gaussian_noise"),
    ],
)
def test_a_wrong_setting_is_refused_when_building(name: str, kwargs: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(name, **kwargs)


def test_what_cannot_be_wrapped_says_so() -> None:
    class NoStream(Scenario):
        pass

    class Interleaved(Toy):
        def timeline(self):
            yield from self.stream()

    with pytest.raises(UserError, match="no severities"):
        make("gradual", NoStream())
    with pytest.raises(UserError, match="no test-time stream"):
        make("shuffled", NoStream()).stream()
    with pytest.raises(UserError, match="interleaves"):
        make("shuffled", Interleaved())
