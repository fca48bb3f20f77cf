"""MTIL, X-TAIL and the embedded sequence of domains with names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_bench import LabelSpace, UserError
from cl_bench.data.described import described, sentences, true_of
from cl_bench.data.layouts import synthetic
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find


def scenario(name: str, **options: object) -> object:
    return find("cl_bench.scenarios", name)(**options)


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 255 - shade)).save(file)


def test_glyph_domains_have_label_spaces_of_their_own_and_the_same_images_each_time() -> None:
    s, twin = scenario("vlm_glyphs", shots=2, domains=4), scenario("vlm_glyphs", shots=2, domains=4)
    assert [len(e.space) for e in s.experiences()] == [26, 26, 10, 10]
    for a, b in zip([*s.experiences(), *s.test_sets()], [*twin.experiences(), *twin.test_sets()], strict=True):
        assert a.data.digest() == b.data.digest()
        assert set(a.data.y.tolist()) == set(a.space.ids)
    assert [len(e.data) for e in s.experiences()] == [52, 52, 20, 20]
    assert s.experiences()[0].data.digest() != scenario("vlm_glyphs", shots=2, seed=1).experiences()[0].data.digest()
    assert s.test_sets()[0].data.digest() == scenario("vlm_glyphs", seed=1).test_sets()[0].data.digest()
    whole = scenario("vlm_glyphs")
    assert len(whole.space) == 90 and whole.space.names[0] == "capital letter a"
    by_name = {e.name: e.space for e in whole.experiences()}
    assert by_name["handwriting"].ids == by_name["corrupted digits"].ids
    with pytest.raises(UserError, match="7 domains"):
        scenario("vlm_glyphs", domains=8)


def test_sentences_are_true_of_their_images_and_claims_decide_the_others() -> None:
    rng = torch.Generator().manual_seed(0)
    _, facts = described(64, rng)
    texts, claims = sentences(facts, rng)
    true = true_of(claims, facts)
    assert true.diagonal().all() and not true.all()
    for row, text in enumerate(texts):
        if "capital" in text:
            assert int(facts[row, 2]) == 0
        for column in range(64):  # an image of another thing is not what the sentence names
            if int(claims[row, 0]) >= 0 and facts[column, 0] != facts[row, 0]:
                assert not true[column, row]


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    for k, name in enumerate(("Forest", "SeaLake")):
        for i in range(10):
            picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 20 * k + i)
    return tmp_path


def test_mtil_splits_and_names_as_published(eurosat: Path) -> None:
    s = scenario("mtil", root=str(eurosat), sets=["eurosat"], size=8)
    (exp,), (test,) = s.experiences(), s.test_sets()
    assert (len(exp.data), len(test.data)) == (16, 4)
    assert exp.space.names == ("forest", "lake or sea") and len(exp.space.templates) == 3
    expected = torch.utils.data.random_split(range(20), [16, 4], torch.Generator().manual_seed(42))
    assert labels_of(test.data).tolist() == [i // 10 for i in expected[1].indices]
    x, y = test.data[0]
    assert x.shape == (3, 8, 8) and x.dtype == torch.uint8 and y == expected[1].indices[0] // 10
    few = scenario("mtil", root=str(eurosat), sets=["eurosat"], shots=2, size=8).experiences()[0]
    assert sorted(labels_of(few.data).tolist()) == [0, 0, 1, 1]
    assert s.protocol()["names"] == {"eurosat": ["forest", "lake or sea"]}


def test_mtil_has_both_orders_and_as_many_sentences_as_published() -> None:
    cls = find("cl_bench.scenarios", "mtil")
    assert cls.orders["II"] == tuple(cls.orders["I"][k] for k in (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2))
    counts = {n: len(set(cls.templates(None, n))) for n in cls.orders["I"]}
    assert list(counts.values()) == [2, 34, 18, 8, 3, 1, 1, 1, 1, 9, 2]
    assert cls.templates(None, "cars")[0] == "a photo of a {}, a type of car."


def test_missing_data_are_told_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FGVCAircraft is not complete"):
        scenario("mtil", root=str(tmp_path)).experiences()
    with pytest.raises(UserError, match="set root"):
        scenario("mtil")
    with pytest.raises(UserError, match="use some of"):
        scenario("x_tail", root=str(tmp_path), sets=["dtd", "birds"])
    with pytest.raises(UserError, match="CoOp"):
        scenario("x_tail", root=str(tmp_path), sets=["dtd"]).experiences()


@pytest.fixture
def coop(tmp_path: Path) -> Path:
    for folder, file, images in (("dtd", "split_zhou_DescribableTextures.json", "images"),
                                 ("eurosat", "split_zhou_EuroSAT.json", "2750")):  # fmt: skip
        items = []
        for k, name in enumerate(("first_one", "second")):
            for i in range(6):
                picture(tmp_path / folder / images / name / f"{i}.jpg", 10 * k + i)
                items.append([f"{name}/{i}.jpg", k, name])
        held = {"train": items[::2], "val": [], "test": items[1::2]}
        (tmp_path / folder / file).write_text(json.dumps(held))
    return tmp_path


def test_x_tail_answers_among_all_classes_in_their_sets_sentences(coop: Path) -> None:
    s = scenario("x_tail", root=str(coop), sets=["dtd", "eurosat"], shots=2, size=8)
    assert s.space.names == ("first one texture.", "second texture.", "a centered satellite photo of first one.",
                             "a centered satellite photo of second.")  # fmt: skip
    assert s.space.templates == ("{}",)
    first, second = s.experiences()
    assert sorted(labels_of(second.data).tolist()) == [2, 2, 3, 3] and len(first.data) == 4
    assert s.space_for(s.test_sets()[0], s.space).ids == (0, 1, 2, 3)
    generic = scenario("x_tail", root=str(coop), sets=["dtd", "eurosat"], prompts="generic", size=8)
    assert generic.space.names[2] == "first one satellite location" and generic.space.templates == ("a photo of a {}.",)


def test_a_split_file_of_another_data_set_is_refused(coop: Path) -> None:
    wrong = coop / "dtd" / "split_zhou_DescribableTextures.json"
    wrong.write_text(json.dumps({"train": [["bird/1.jpg", 0, "bird"]], "test": [["bird/2.jpg", 0, "bird"]]}))
    with pytest.raises(UserError, match="is it the split of this data set"):
        scenario("x_tail", root=str(coop), sets=["dtd"]).experiences()
    wrong.write_text(json.dumps({"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}))
    with pytest.raises(UserError, match=r'"x" and "y"|does not hold'):
        scenario("x_tail", root=str(coop), sets=["dtd"]).experiences()


@pytest.mark.parametrize(("name", "which"), [("eurosat", "eurosat"), ("eurosat", "eurosat/2750/Forest"),
                                             ("eurosat", "eurosat/2750/Forest/Forest_3.jpg")])
def test_mtil_follows_no_link_out_of_its_root(eurosat: Path, name: str, which: str) -> None:
    (eurosat / which).rename(eurosat.with_name(f"{eurosat.name}-away"))
    (eurosat / which).symlink_to(eurosat.with_name(f"{eurosat.name}-away"))
    with pytest.raises(UserError, match="leads out of"):
        scenario("mtil", root=str(eurosat), sets=[name], size=8).protocol()


def test_mtil_is_not_held_up_by_a_circle_of_links(eurosat: Path) -> None:
    (eurosat / "eurosat" / "2750" / "Forest" / "again").symlink_to(eurosat / "eurosat")
    with pytest.raises(UserError, match="a circle"):
        scenario("mtil", root=str(eurosat), sets=["eurosat"], size=8).protocol()


@pytest.mark.parametrize("which", ["dtd", "dtd/split_zhou_DescribableTextures.json", "dtd/images", "dtd/images/second/3.jpg"])
def test_x_tail_follows_no_link_out_of_its_root(coop: Path, which: str) -> None:
    (coop / which).rename(coop.with_name(f"{coop.name}-away"))
    (coop / which).symlink_to(coop.with_name(f"{coop.name}-away"))
    with pytest.raises(UserError, match="leads out of"):
        scenario("x_tail", root=str(coop), sets=["dtd"], shots=2, size=8).protocol()


@pytest.mark.parametrize(("row", "told"), [(["../../x.jpg", 0, "x"], "leaves the folder"), (["a", 0.5, "x"], "no split file"),
                                           (["a", True, "x"], "does not hold"), (["a", None, "x"], "no split file")])
def test_rows_of_a_split_file_that_cannot_be_right_are_refused(coop: Path, row: list[object], told: str) -> None:
    picture(coop / "x.jpg", 3)
    (coop / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps({"train": [row], "test": [row]}))
    with pytest.raises(UserError, match=told):
        scenario("x_tail", root=str(coop), sets=["dtd"]).experiences()


def test_references_of_zscl_are_images_and_sentences_or_told(tmp_path: Path) -> None:
    from methods.vision_language._distil import reference_pairs

    picture(tmp_path / "in" / "a.png", 9)
    Image.new("I;16", (12, 10), 40_000).save(tmp_path / "in" / "b.png")
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfa cat.\r\n\r\na dog.\r\n")
    made, texts = reference_pairs(4, str(tmp_path / "in"), str(tmp_path / "lines.txt"), torch.Generator())
    assert texts == ["a cat.", "a dog."] and made.x.shape == (2, 3, 224, 224) and made.x[1].unique().tolist() == [156]
    (tmp_path / "lines.txt").write_bytes(b"\x80abc")
    with pytest.raises(UserError, match="not a text file"):
        reference_pairs(4, "", str(tmp_path / "lines.txt"), torch.Generator())
    (tmp_path / "in" / "c.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match="web page"):
        reference_pairs(4, str(tmp_path / "in"), "", torch.Generator())


def test_the_stream_has_the_test_sets_shuffled_and_cut() -> None:
    s = scenario("vlm_glyphs_stream", per_domain=9, domains=3, corruption="contrast", severity=2)
    assert [len(t.data) for t in s.stream()] == [9, 9, 9] and not s.experiences()
    assert s.space_for(s.stream()[1], s.space).ids == s.stream()[1].space.ids
    with pytest.raises(UserError, match="no corruption"):
        scenario("vlm_glyphs_stream", corruption="rain")


def test_c3box_names_its_classes_from_the_toolbox_and_squashes_images(tmp_path: Path) -> None:
    given = synthetic("c3box", tmp_path, {"data": "cars"})
    Image.new("RGB", (60, 20), (9, 9, 9)).save(tmp_path / "train" / "class_0" / "0.png")
    made = Image.new("RGB", (60, 20), (200, 0, 0))
    made.paste((0, 0, 200), (50, 0, 60, 20))  # what a centre crop would cut off
    made.save(tmp_path / "val" / "class_0" / "0.png")
    s = scenario("c3box", **given, increment=2, size=12)
    order = tuple(np.random.RandomState(1993).permutation(4))
    assert s.space.ids == order and s.space.names == tuple(f"kind {k}" for k in order)
    assert len(s.space.templates) == 8 and all(t.space.templates == s.space.templates for t in s.test_sets())
    assert s.experiences()[0].augment is None
    (test,) = [t for t in s.test_sets() if 0 in t.space.ids]
    x = next(x for x, y in (test.data[k] for k in range(len(test.data))) if y == 0)
    assert x.shape == (3, 12, 12) and int(x[2, 6, -1]) > 150 and int(x[0, 6, 0]) > 150
    other = scenario("c3box", **given, increment=2, size=12, sentences=["a good photo of a {}."])
    assert other.space.templates == ("a good photo of a {}.",) and other.protocol() != s.protocol()
    own = scenario("c3box", **{**given, "names": ""}, increment=2)
    assert sorted(own.space.names) == [f"class {k}" for k in range(4)]


def test_what_c3box_lacks_is_told(tmp_path: Path) -> None:
    given = synthetic("c3box", tmp_path, {"data": "sun"})
    with pytest.raises(UserError, match="no place for a name"):
        scenario("c3box", **given, sentences=["a photo"])
    with pytest.raises(UserError, match="set root"):
        scenario("c3box", data="sun")
    with pytest.raises(UserError, match='no list of names under "cars"'):
        scenario("c3box", **{**given, "data": "cars"}).class_names()
    Path(given["names"]).write_text(json.dumps({"sun": ["abbey"]}))
    with pytest.raises(UserError, match="names 1 classes of sun where the folders are 4"):
        scenario("c3box", **given).class_names()


def test_c3box_has_as_many_sentences_as_published(tmp_path: Path) -> None:
    root = synthetic("c3box", tmp_path, {"data": "sun"})["root"]
    counts = {"cifar224": 18, "aircraft": 2, "cars": 8, "cub200": 1, "food101": 1, "imagenetr": 7, "objectnet": 7, "sun": 2,
              "ucf101": 48}  # fmt: skip
    told = {name: scenario("c3box", data=name, root=root, increment=2).space.templates for name in counts}
    assert {name: len(set(sentences)) for name, sentences in told.items()} == counts
    assert told["ucf101"][:5] == (*(f"a {w} of a person {{}}." for w in ("photo", "video", "example", "demonstration")),
                                  "a photo of the person {}.")  # fmt: skip


def test_synthetic_copies_are_read_as_the_data_sets_are(tmp_path: Path) -> None:
    sets = ["aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "pets", "cars", "sun397"]
    mtil = scenario("mtil", **synthetic("mtil", tmp_path / "mtil", {"sets": sets}), size=8)
    assert [e.name for e in mtil.experiences()] == [s for s in sets if s not in ("cifar100", "flowers")]
    x_tail = scenario("x_tail", **synthetic("x_tail", tmp_path / "x_tail", {}), size=8)
    assert len(x_tail.experiences()) == 10
    for s in (mtil, x_tail):
        assert {len(e.space) for e in s.experiences()} == {4, 10}
        assert all(set(labels_of(e.data).tolist()) == set(e.space.ids) for e in s.experiences())


@pytest.mark.parametrize("sentence", ["a photo", "a {} {}", "a {} {x}", "a {0}", "a {} }"])
def test_a_sentence_has_one_place_for_a_name_wherever_it_is_given(sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not"):
        LabelSpace((0,), ("a",), (sentence,))
    with pytest.raises(UserError, match="has no place for a name"):
        scenario("c3box", data="cars", root=str(tmp_path), sentences=[sentence])
    clip = find("cl_bench.backbones", "glyph_clip")()
    for name in ("zero_shot", "lingocl"):
        with pytest.raises(UserError, match="has no place for a name"):
            find("cl_bench.methods", name)(clip, template=sentence)


def test_sets_that_nothing_teaches_are_measured_among_their_own_classes(tmp_path: Path) -> None:
    from cl_bench import run

    given = synthetic("mtil", tmp_path / "mtil", {"sets": ["dtd", "eurosat", "pets"]}) | {"size": 16}
    s = scenario("mtil", **given, held_out=["dtd"], answers="all")
    assert [e.name for e in s.experiences()] == ["eurosat", "pets"]
    assert [(t.name, t.of) for t in s.test_sets()] == [("eurosat", "eurosat"), ("pets", "pets"), ("dtd", "")]
    first, _, last = s.test_sets()
    assert s.space_for(first, first.space).ids == tuple(range(4, 12)) and s.space_for(last, first.space) == last.space
    assert s.protocol()["held_out"] == ["dtd"] and "held_out" not in scenario("mtil", **given).protocol()
    (found,) = run("mtil", "zero_shot", scenario_args={**given, "held_out": ["dtd"]}, backbone="glyph_clip",
                   runs=tmp_path / "runs")
    assert found.record["matrix"]["learned"] == [1, 2, None]
    for wrong, told in ((["mnist"], "held_out names 'mnist'"), (["dtd", "eurosat", "pets"], "Mtil teaches nothing")):
        with pytest.raises(UserError, match=told):
            scenario("mtil", **given, held_out=wrong)
    split = scenario("x_tail", **synthetic("x_tail", tmp_path / "x_tail", {}), held_out=["mnist", "dtd"])
    assert [t.of for t in split.test_sets()][-2:] == ["", ""] and len(split.experiences()) == 8
