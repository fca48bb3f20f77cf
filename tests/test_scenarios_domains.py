"""Domain-incremental, online and deployed scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cl_toys import mnist_files, promised
from PIL import Image

from cl_bench import Experience, Scenario, TestSet, UserError
from cl_bench.data.digits import digits
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find


def make(name: str, **kw: Any) -> Scenario:
    return find("cl_bench.scenarios", name)(**kw)


@pytest.mark.parametrize(("name", "domains"), [("rotated_digits", 6), ("permuted_digits", 5), ("coloured_digits", 6)])
def test_domains_share_classes_and_differ_in_pixels(name: str, domains: int) -> None:
    s = make(name)
    assert s.answers == "all" and "task_id" not in s.gives
    parts = s.experiences()
    assert len(parts) == len(s.test_sets()) == domains
    assert {e.space.ids for e in parts} == {tuple(range(10))} == {s.space.ids}
    plain = digits("train")
    assert torch.equal(parts[0].data.x, plain.x), "the first domain is the plain one"  # type: ignore[attr-defined]
    for e in parts[1:3]:
        assert torch.equal(e.data.y, plain.y) and not torch.equal(e.data.x, plain.x)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "domains"), [("rotated_mnist", 6), ("permuted_mnist", 10), ("coloured_mnist", 6)])
def test_domains_of_mnist_come_from_its_files(tmp_path: Path, name: str, domains: int) -> None:
    mnist_files(tmp_path)
    s = promised(lambda: make(name, root=str(tmp_path)))
    assert len(s.experiences()) == len(s.test_sets()) == domains and s.answers == "all"
    first, last = s.experiences()[0].data, s.experiences()[-1].data
    assert len(first) == 40 and torch.equal(first.y, last.y) and not torch.equal(first.x, last.x)  # type: ignore[arg-type, attr-defined]
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        make(name, root=str(tmp_path / "nowhere")).experiences()[0].data[0]


def test_rotation_is_a_rotation() -> None:
    s = make("rotated_digits", angles=(0.0, 90.0))
    a, b = (e.data.x for e in s.experiences())  # type: ignore[attr-defined]
    assert torch.equal(torch.rot90(a, 1, (2, 3)), b)


def test_a_permutation_loses_no_pixel() -> None:
    s = make("permuted_digits", tasks=2)
    a, b = (e.data.x for e in s.experiences())  # type: ignore[attr-defined]
    assert torch.equal(a[:50].flatten(2).sort().values, b[:50].flatten(2).sort().values)
    other = make("permuted_digits", tasks=2, permutation_seed=1).experiences()[1].data.x  # type: ignore[attr-defined]
    assert not torch.equal(b, other) and torch.equal(b, make("permuted_digits", tasks=2).experiences()[1].data.x)  # type: ignore[attr-defined]


def test_task_view_gives_every_domain_its_own_labels() -> None:
    s = make("rotated_digits", angles=(0.0, 15.0, 30.0), answers="task", order=[2, 0, 1])
    assert "task_id" in s.gives and len(s.space) == 30
    assert [t.space.ids[0] for t in s.test_sets()] == [20, 0, 10], "labels belong to the domain, not to its position"
    for part in [*s.experiences(), *s.test_sets()]:
        assert set(labels_of(part.data).tolist()) == set(part.space.ids)
    assert s.space_for(s.test_sets()[0], s.space) == s.test_sets()[0].space


def test_orders_of_domains() -> None:
    published = [e.name for e in make("rotated_digits").experiences()]
    drawn = [[e.name for e in make("rotated_digits", order=k).experiences()] for k in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0]) == sorted(published)
    assert make("rotated_digits", order=1).protocol() == make("rotated_digits", order=2).protocol()
    with pytest.raises(UserError, match="once"):
        make("rotated_digits", order=[0, 0]).experiences()


def picture(path: Path, value: int, domain: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value % 256, 90, 20 * domain)).save(path)


def test_office_home_and_pacs_split_once_for_everyone(tmp_path: Path) -> None:
    for name, domains in (("office_home", ["Art", "Clipart", "Product", "Real World"]),
                          ("pacs", ["photo", "art_painting", "cartoon", "sketch"])):  # fmt: skip
        root = tmp_path / name
        for d, domain in enumerate(domains):
            for c, label in enumerate(("Alarm_Clock", "Bed")):
                for k in range(10):
                    picture(root / domain / label / f"{k}.png", 20 * k + c, d)
        s = promised(lambda name=name, root=root: make(name, root=str(root), size=16, resize=16))  # type: ignore[misc]
        again = make(name, root=str(root), size=16, resize=16)
        assert [e.name for e in s.experiences()] == domains and s.space.names[0] == "Alarm Clock"
        assert [len(e.data) for e in s.experiences()] == [16] * 4 and [len(t.data) for t in s.test_sets()] == [4] * 4  # type: ignore[arg-type]
        train, test = s.experiences()[1].data.files, s.test_sets()[1].data.files  # type: ignore[attr-defined]
        assert not set(train) & set(test) and train == again.experiences()[1].data.files  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=domains[-1]):
            make(name, root=str(tmp_path / "nowhere")).experiences()


def test_domainnet_follows_the_published_lists(tmp_path: Path) -> None:
    for d, domain in enumerate(("real", "quickdraw", "painting", "sketch", "infograph", "clipart")):
        for part, n in (("train", 2), ("test", 1)):
            lines = []
            for c, label in enumerate(("aircraft_carrier", "axe")):
                for k in range(n):
                    picture(tmp_path / domain / label / f"{part}{k}.jpg", 20 * k + 5 * c + 100 * (part == "test"), d)
                    lines.append(f"{domain}/{label}/{part}{k}.jpg {c}")
            (tmp_path / f"{domain}_{part}.txt").write_text("\n".join(lines))
    s = promised(lambda: make("domainnet", root=str(tmp_path), size=16, resize=16, order=[5, 4, 2, 1, 0, 3]))
    assert [e.name for e in s.experiences()] == ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    assert [len(e.data) for e in s.experiences()] == [4] * 6 and [len(t.data) for t in s.test_sets()] == [2] * 6  # type: ignore[arg-type]
    assert s.experiences()[0].data[0][0].shape == (3, 16, 16)


def test_core50_has_one_test_set(tmp_path: Path) -> None:
    for session in range(1, 12):
        for o in (1, 2, 10):
            picture(tmp_path / f"s{session}" / f"o{o}" / f"C_{session:02d}_{o:02d}_000.png", 10 * session + o)
    s = promised(lambda: make("core50", root=str(tmp_path), size=16, resize=16))
    assert [e.name for e in s.experiences()] == ["s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11"]
    assert s.space.names == ("o1", "o2", "o10"), "objects in order of their number"
    (test,) = s.test_sets()
    assert len(test.data) == 9 and labels_of(test.data).tolist() == [0, 1, 2] * 3  # type: ignore[arg-type]
    assert s.protocol()["domains"][0] == "s1"


def test_online_caps_the_epochs_and_nothing_else() -> None:
    plain = make("split_digits", increment=5)
    s = make("online", of=plain)
    assert s.max_epochs == 1 and plain.max_epochs is None
    assert s.gives == plain.gives and s.space == plain.space
    assert [e.name for e in s.timeline()] == [e.name for e in plain.timeline()]
    assert s.protocol() != plain.protocol()


def test_deployed_learning_interleaves_learning_and_streams() -> None:
    s = make("deployed_digits", corruptions=("fog", "contrast"))
    steps = list(s.timeline())
    assert [type(step) for step in steps] == [Experience, TestSet, TestSet] * 3
    assert [step.space.ids for step in steps if isinstance(step, Experience)] == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert [len(step.space) for step in steps if isinstance(step, TestSet)] == [4, 4, 7, 7, 10, 10]
    first = steps[1]
    assert isinstance(first, TestSet) and first.domain == "fog" and set(labels_of(first.data).tolist()) == {0, 1, 2, 3}
    clean = digits("test")
    kept = clean.x[torch.isin(clean.y, torch.tensor([0, 1, 2, 3]))]
    assert len(first.data) == len(kept) and not torch.equal(first.data.x, kept)  # type: ignore[arg-type, attr-defined]
    again = make("deployed_digits", corruptions=("fog", "contrast")).stream()[0]
    assert torch.equal(first.data.x, again.data.x) and len(s.stream()) == 6  # type: ignore[attr-defined]
