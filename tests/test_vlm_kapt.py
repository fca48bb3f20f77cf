"""KAPT: descriptions of classes as prompts, and an image feature to which salient patches are added."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import core
from test_resume import OFTEN, numbers, resume, stop
from vlm_toys import SPACE, clip, experience, images

from cl_bench import LabelSpace, UserError
from cl_bench.cli import main
from cl_bench.command.config import parse, plan_from
from cl_bench.engine.fit import FitPosition
from cl_bench.engine.runner import run
from cl_bench.records.results import load
from cl_bench.registry import find
from cl_bench.testing import _engine as engine

__all__ = ["clip", "images"]  # pytest finds the fixtures here

SETS = sys.modules[find("cl_bench.scenarios", "vlm_glyphs").__module__].DOMAINS
TOLD = {"digit zero": "A closed ring, a ring that is round.", "digit one": "A stroke: an upright stroke.",
        "digit two": "A hook and a base."}  # fmt: skip


def built(clip: Any, **options: Any) -> Any:
    return engine.built(find("cl_bench.methods", "kapt"), copy.deepcopy(clip), options).eval()


def written(folder: Path, told: Any) -> str:
    file = folder / "told.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return str(file)


# ------------------------------------------------------------------------------------------------------ key words
def test_key_words_are_those_with_most_tf_idf_and_neither_of_the_name_nor_without_meaning() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    told = {"red fox": "The red fox is a small fox; small and red, with a tail.",
            "wolf": "A wolf has a tail and a pack, a grey pack.", "cat": "A small animal."}  # fmt: skip
    # By hand: of three descriptions "tail" and "small" are in two, the others in one. Term counts times ln(4 / (1 + df)) + 1:
    # fox: small 2 (ln 4/3 + 1), tail 1 (ln 4/3 + 1); wolf: pack 2 (ln 2 + 1), grey 1 (ln 2 + 1), tail 1 (ln 4/3 + 1).
    found = core("kapt", "_descriptions").key_words(told)
    assert found == {
        "red fox": ("small", "tail"), "wolf": ("pack", "grey", "tail"), "cat": ("animal", "small")}
    theirs = TfidfVectorizer(stop_words="english", norm=None)
    scores, words = theirs.fit_transform(list(told.values())).toarray(), list(theirs.get_feature_names_out())
    assert scores[1][words.index("pack")] == pytest.approx(2 * (math.log(2) + 1))
    for k, name in enumerate(told):
        kept = [w for w in words if scores[k][words.index(w)] > 0 and w not in name.split()]
        assert sorted(kept, key=lambda w: -scores[k][words.index(w)]) == list(found[name])


def test_key_words_of_the_file_come_first_and_as_many_are_said_as_are_asked_for_and_fit(clip: Any, tmp_path: Path) -> None:
    told = {**TOLD, "digit one": {"description": "A stroke.", "keywords": ["thin", "tall", "plain"]}}
    sentences = lambda **o: built(clip, descriptions=written(tmp_path, told), **o).sentences(SPACE)  # noqa: E731
    assert sentences() == ("digit zero, ring, closed, round", "digit one, thin, tall, plain", "digit two, hook, base")
    assert sentences(keywords=1) == ("digit zero, ring", "digit one, thin", "digit two, hook")
    assert sentences(keywords=0) == SPACE.names
    told["digit one"]["keywords"] = ["thin", "tall " * 30, "plain"]
    assert sentences()[1] == "digit one, thin", "the list ends with the first that does not fit"
    assert built(clip).sentences(SPACE) == SPACE.names


# ------------------------------------------------------------------------------------------------------ descriptions
def test_a_description_beyond_the_context_is_read_in_pieces_that_hold_all_of_it(clip: Any, tmp_path: Path) -> None:
    parts = core("kapt", "_descriptions").pieces(clip, long := " ".join(f"word{k}" for k in range(40)) + " " + "z" * 200)
    assert len(parts) > 2 and "".join(parts).replace(" ", "") == long.replace(" ", "")
    assert max(clip.token_count(p) for p in parts) <= clip.context_length
    assert core("kapt", "_descriptions").pieces(clip, "A hook.") == ["A hook."]
    got = built(clip, descriptions=written(tmp_path, {**TOLD, "digit two": long})).described(SPACE)
    rows = F.normalize(clip.encode_tokens(clip.tokenize(parts)), dim=-1).mean(0)
    torch.testing.assert_close(got[2], F.normalize(rows, dim=0))
    (one,) = F.normalize(clip.encode_tokens(clip.tokenize([TOLD["digit zero"]])), dim=-1)
    torch.testing.assert_close(got[0], one)
    torch.testing.assert_close(built(clip).described(SPACE), clip.encode_text(SPACE.names, ("a photo of a {}.",)))


def test_other_descriptions_are_other_prompts_once_the_network_has_weights(clip: Any, tmp_path: Path) -> None:
    same = {n: {"description": d, "keywords": []} for n, d in TOLD.items()}
    other = {**same, "digit two": {"description": "A swan.", "keywords": []}}
    one, two = (built(clip, descriptions=written(tmp_path, t)) for t in (same, other))
    torch.testing.assert_close(one.text(SPACE), two.text(SPACE))
    for method in (one, two):
        torch.nn.init.normal_(method.network[-1].weight, generator=torch.Generator().manual_seed(0))
    two.network.load_state_dict(one.network.state_dict())
    apart = (one.text(SPACE) - two.text(SPACE)).detach().norm(dim=1)
    assert float(apart[:2].max()) < 1e-5 and float(apart[2]) > 1e-2


# ------------------------------------------------------------------------------------------------------ what is learned
def test_before_learning_it_is_the_model_as_it_came_with_the_key_words_said(clip: Any, images: torch.Tensor,
                                                                           tmp_path: Path) -> None:
    plain = LabelSpace(SPACE.ids, SPACE.names, ("a photo of a {}.",))
    with torch.no_grad():
        want = engine.built(find("cl_bench.methods", "zero_shot"), copy.deepcopy(clip), {}).predict(images, plain)
        torch.testing.assert_close(built(clip).predict(images, SPACE), want, atol=1e-4, rtol=1e-4)
        told = built(clip, descriptions=written(tmp_path, TOLD)).predict(images, SPACE)
        text = clip.encode_text(("digit zero, ring, closed, round", "digit one, stroke, upright", "digit two, hook, base"),
                                ("a photo of a {}.",))  # fmt: skip
        torch.testing.assert_close(told, clip.logit_scale * F.normalize(clip.forward_features(images), dim=-1) @ text.T,
                                   atol=1e-4, rtol=1e-4)  # fmt: skip
    assert float((told - want).abs().max()) > 0.1


def test_only_the_network_of_the_prompts_and_the_head_are_trained(clip: Any, images: torch.Tensor) -> None:
    method = built(clip, epochs=2, batch_size=6, lr=0.1)
    asked, tower = list[int](), method.backbone.patch_features
    method.backbone.__dict__["patch_features"] = lambda x: asked.append(len(x)) or tower(x)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    for k, labels in enumerate(((0, 1), (2,))):
        engine.learn(method, experience(labels), k, 1)
    assert asked == [12, 6], "an image of an experience goes through the frozen tower once"
    moved = {k.split(".")[0] for k, v in method.state_dict().items() if k in before and not torch.equal(v, before[k])}
    assert moved == {"network", "salience"}
    assert {n.split(".")[0] for n, p in method.named_parameters() if p.requires_grad} == {"network", "salience"}
    with torch.no_grad():
        wider = LabelSpace((0, 1, 2, 9), (*SPACE.names, "horizontal stripes"))
        assert method.predict(images, wider).shape == (6, 4)


def test_salience_is_a_softmax_over_patches_and_adds_their_weighted_mean() -> None:
    head = core("kapt").Salience(2, 2)
    f, patches = torch.tensor([[3.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 5.0], [0.0, -1.0]]])
    torch.testing.assert_close(head(f, patches), torch.tensor([[1.0, 0.0]]))  # nothing is added at first
    with torch.no_grad():
        head.query.weight.copy_(torch.eye(2) * math.sqrt(2) * math.log(3))
        head.key.weight.copy_(torch.eye(2))
        head.value.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    # cosines with the whole: 1, 0, 0; softmax of (ln 3, 0, 0) = 0.6, 0.2, 0.2; mean of unit patches (0.6, 0.2 - 0.2)
    got = head.weights(F.normalize(f, dim=-1), F.normalize(patches, dim=-1))
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.2, 0.2]]))
    torch.testing.assert_close(head(f, patches), F.normalize(torch.tensor([[1.0, 0.6]]), dim=-1))


def test_a_run_that_is_stopped_within_a_fit_goes_on_with_the_same_numbers(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    names = {n for d in SETS.values() for n in d}
    argv = ["--scenario", "vlm_glyphs", "--scenario.domains", "2", "--scenario.shots", "1", "--method", "kapt",
            "--method.epochs", "0", "--method.iterations", "4", "--method.batch_size", "9", "--method.lr", "0.1",
            "--method.descriptions", written(tmp_path, {n: f"A sign that is called {n}, as it is seen." for n in names}),
            *OFTEN]  # fmt: skip
    whole = load(run(plan_from(parse(argv)), tmp_path / "whole"))
    stopped = stop(argv, tmp_path / "cut", monkeypatch, lambda p: isinstance(p.inside, FitPosition) and p.step == 1, 1)
    resumed = resume(stopped)
    assert numbers(resumed) == numbers(whole)


# ------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(("told", "sentence"), [
    (None, "There is no file"), ("{", "is no file of descriptions"), ([1], "is no file of descriptions"),
    ({}, "is no file of descriptions"), ({"digit one": 3}, 'no description of "digit one"'),
    ({"digit one": " "}, 'no description of "digit one"'),
    ({"digit one": {"keywords": ["a"]}}, 'no description of "digit one"'),
    ({"digit one": {"description": "a", "keywords": "a"}}, 'the key words of "digit one"'),
    ({"digit one": {"description": "a", "keywords": [""]}}, 'the key words of "digit one"'),
    ({"digit one": {"description": "a", "key_words": ["b"]}}, '"key_words"'),
], ids=str)  # fmt: skip
def test_a_file_that_holds_no_descriptions_is_told(told: Any, sentence: str, clip: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        built(clip, descriptions=str(tmp_path / "none.json") if told is None else written(tmp_path, told))


def test_a_class_without_a_description_is_told_before_any_learning(clip: Any, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, {n: "a thing" for n in ("digit zero", "digit one")})
    with pytest.raises(UserError, match='has no description of "digit two": add one under that name'):
        built(clip, descriptions=file).begin(experience((2,)))
    words = ["--scenario", "vlm_glyphs", "--scenario.domains=1", "--method", "kapt", "--method.descriptions", file]
    assert main(["run", *words, "--runs", str(tmp_path / "runs"), "--tracking", "none"]) == 2
    told = capsys.readouterr()
    assert 'has no description of "capital letter a"' in told.err and "Traceback" not in told.out + told.err


def test_a_backbone_without_names_or_without_patches_is_refused() -> None:
    with pytest.raises(UserError, match="Kapt needs a backbone with a text side"):
        built(find("cl_bench.backbones", "glyph_vit")())
