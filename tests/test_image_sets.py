"""Image sets of a user's own in a row: what they share, what is held out, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cl_bench import UserError
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 255 - shade)).save(file)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sets")
    for k, (domain, name) in enumerate((d, c) for d in ("photo", "sketch") for c in ("dog", "wild_cat")):
        for n in range(5):
            picture(where / domain / name / f"{n}.png", 20 * k + n)
    for part in ("train", "test"):
        for name in ("oak", "fir"):
            for n in range(3):
                picture(where / "trees" / part / name / f"{n}.png", 200 + n)
    (where / "hub").mkdir()
    rows = [{"image": {"bytes": (where / "photo" / "dog" / f"{n % 5}.png").read_bytes(), "path": ""}, "label": n % 3}
            for n in range(9)]
    kind = {"info": {"features": {"label": {"names": ["dog", "tram", "boat"], "_type": "ClassLabel"}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(kind)})
    pq.write_table(table, where / "hub" / "test-00000-of-00001.parquet")
    return where


def sets(**more: object) -> dict[str, dict[str, object]]:
    return {"photo": {"folder": "photo"}, "sketch": {"folder": "sketch", "names": {"wild_cat": "lynx"}},
            "trees": {"folder": "trees", "classes": ["fir"]}, "hub": {"folder": "hub", "test_shots": 1}, **more}


def made(root: Path, **options: object) -> object:
    given = {"root": str(root), "sets": sets(), "held_out": ["hub"], "shots": 2, "size": 8, **options}
    return find("cl_bench.scenarios", "image_sets")(**given)


def test_classes_of_one_name_are_one_class_and_what_is_held_out_is_never_taught(root: Path) -> None:
    s = made(root)
    assert [(e.name, e.space.names, e.space.ids, len(e.data)) for e in s.experiences()] == [
        ("photo", ("dog", "wild cat"), (0, 1), 4), ("sketch", ("dog", "lynx"), (0, 2), 4), ("trees", ("fir",), (3,), 2)]
    tests = {t.name: t for t in s.test_sets()}
    assert {n: (t.of, len(t.data), t.space.ids) for n, t in tests.items()} == {
        "photo": ("photo", 2, (0, 1)), "sketch": ("sketch", 2, (0, 2)), "trees": ("trees", 3, (3,)),
        "hub": ("", 3, (0, 4, 5))}  # 80 % of 5 images train, the parts of trees are as they lie, one of each of hub
    for part in (*s.experiences(), *s.test_sets()):
        assert set(labels_of(part.data).tolist()) == set(part.space.ids)
        x, y = part.data[0]
        assert x.shape == (3, 8, 8) and x.dtype == torch.uint8 and int(y) in part.space.ids
    joint = made(root, answers="all")
    told = {t.name: joint.space_for(t, t.space).ids for t in joint.test_sets()}
    assert told == {"photo": (0, 1, 2, 3), "sketch": (0, 1, 2, 3), "trees": (0, 1, 2, 3), "hub": (0, 4, 5)}
    assert joint.space.ids == (0, 1, 2, 3, 4, 5)


def test_what_is_trained_once_can_be_asked_in_both_spaces(root: Path) -> None:
    s, own, joint = made(root, joint=True), made(root), made(root, answers="all")
    tests = {t.name: t for t in s.test_sets()}
    assert [*tests] == ["photo", "sketch", "trees", "hub", "photo, of all", "sketch, of all", "trees, of all"]
    for name in ("photo", "sketch", "trees"):
        first, second = tests[name], tests[f"{name}, of all"]
        assert first.data is second.data and first.of == second.of == name
        assert s.space_for(first, first.space) == own.space_for(first, first.space) == first.space
        assert s.space_for(second, first.space).ids == joint.space_for(first, first.space).ids == (0, 1, 2, 3)
    assert s.space_for(tests["hub"], s.space) == tests["hub"].space
    assert "task_id" in own.gives and "task_id" not in s.gives, "no set is told where some are asked among all"
    assert {k: v for k, v in s.protocol().items() if k != "joint"} == own.protocol()


def test_training_images_follow_the_seed_and_test_images_do_not(root: Path) -> None:
    one, two, turned = made(root), made(root, seed=1), made(root, order=[2, 0, 1])
    assert [e.name for e in turned.experiences()] == ["trees", "photo", "sketch"]
    assert one.experiences()[0].data.digest() != two.experiences()[0].data.digest()
    assert one.protocol() == two.protocol()
    assert one.protocol()["data"] == turned.protocol()["data"]
    photo = {int(x[0, 0, 0]) for x, _ in (one.experiences()[0].data[k] for k in range(4))}
    assert photo.isdisjoint({int(x[0, 0, 0]) for x, _ in (one.test_sets()[0].data[k] for k in range(2))})


def test_their_stream_needs_no_training_images_and_shuffles_each_set(root: Path) -> None:
    stream = find("cl_bench.scenarios", "image_sets_stream")(root=str(root), sets=sets(), size=8, answers="all")
    assert [(t.name, len(t.data)) for t in stream.stream()] == [("photo", 2), ("sketch", 2), ("trees", 3), ("hub", 3)]
    assert stream.space.names == ("dog", "wild cat", "lynx", "fir", "tram", "boat")
    assert sorted(labels_of(stream.stream()[3].data).tolist()) == [0, 4, 5]


@pytest.mark.parametrize(("options", "told"), [
    ({"sets": None, "held_out": None}, "ImageSets teaches nothing: give sets"),
    ({"held_out": ["tram"]}, "held_out names 'tram', which is none of the sets"),
    ({"sets": sets(x={"files": "photo"})}, 'the set "x" needs folder'),
    ({"sets": sets(x={"folder": "photo", "class": ["dog"]})}, 'the set "x" needs folder, .* it has "class"'),
    ({"sets": sets(x={"folder": "nowhere"})}, "nowhere"),
    ({"sets": sets(x={"folder": "photo", "test_shots": -1})}, "test_shots is a number of images"),
    ({"templates": ["a photo"]}, "'a photo' has not"), ({"templates": ["a {} {x}"]}, "'a {} {x}' has not"),
    ({"joint": True, "answers": "all"}, "answers is all; leave one of them out"),
    ({"joint": True, "sets": sets(**{"x, of all": {"folder": "photo"}})}, 'no set may be called "x, of all"'),
])  # fmt: skip
def test_what_cannot_be_right_is_told_when_it_is_made(root: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        made(root, **options)


def test_a_class_or_a_training_part_that_is_not_there_is_told_before_work(root: Path) -> None:
    with pytest.raises(UserError, match='"photo" has no class \'cow\': it has "dog", "wild_cat"'):
        made(root, sets=sets(photo={"folder": "photo", "classes": ["cow"]})).experiences()
    with pytest.raises(UserError, match=r'no train-\*\.parquet: add it, or put "hub" among held_out'):
        made(root, held_out=None).experiences()
