"""Continual vision-language methods with parts of their own: masks, experts, fused features, phrases, names as heads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_vectors import core
from vlm_toys import SPACE, clip, experience, images

from cl_bench import UserError
from cl_bench.command.config import parse
from cl_bench.registry import find
from cl_bench.testing import _engine as engine

__all__ = ["clip", "images"]  # pytest finds the fixtures here


def built(name: str, clip: Any, **options: Any) -> Any:
    return engine.built(find("cl_bench.methods", name), copy.deepcopy(clip), options)


def learned(name: str, clip: Any, **options: Any) -> Any:
    method = built(name, clip, **options)
    for k, labels in enumerate(((0, 1), (2,))):
        engine.learn(method, experience(labels), k, 1)
    return method.eval()


# ------------------------------------------------------------------------------------------------------ R-AMT
def test_a_score_below_the_level_switches_its_weight_off_and_gets_the_gradient_of_the_mask() -> None:
    weight = torch.tensor([[2.0, -3.0]])
    mask = core("ramt").Masked(weight, start=1e-2, tau=5e-3)
    mask.score.data[0, 1] = 4e-3
    out = mask(weight)
    assert out.tolist() == [[2.0, 0.0]]
    out.sum().backward()
    assert mask.score.grad.tolist() == [[2.0, -3.0]]


def test_gradients_that_oppose_the_plain_model_are_dropped() -> None:
    g, other = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([2.0, -1.0, 3.0])
    half = torch.full((3,), 0.5)  # agreement: 1, 0, -0.5; kept with probability 1, 0.5, 0.25
    assert core("ramt").agreeing(g, other, half - 0.01, 1.0).tolist() == [1.0, 1.0, -0.0]
    assert core("ramt").agreeing(g, other, half + 0.01, 1.0).tolist() == [1.0, 0.0, -0.0]
    assert core("ramt").agreeing(g, other, half + 0.01, 0.5).tolist() == [1.0, 0.5, -0.5]


def test_masks_are_merged_when_an_experience_ends(clip: Any, images: torch.Tensor) -> None:
    method = learned("ramt", clip, epochs=1, lr=0.5)
    assert method.counters()["switched_off"] > 0
    with method.masks.off(), torch.no_grad():
        plain = method.predict(images, SPACE)
    with torch.no_grad():
        assert torch.equal(plain, method.predict(images, SPACE))


# ------------------------------------------------------------------------------------------------------ CLIP-SVD
def test_singular_values_are_all_that_is_trained_and_a_plain_file_holds_them(clip: Any, images: torch.Tensor) -> None:
    method = built("clip_svd", clip, epochs=1, lr=0.05)
    want = sum(min(p.shape) if "in_proj" not in n else 3 * p.shape[1] for n, p in clip.named_parameters()
               if "resblocks" in n and p.ndim == 2)  # fmt: skip
    assert sum(p.numel() for p in method.trained()) == want
    engine.learn(method, experience((0, 1)), 0, 1)
    other = copy.deepcopy(clip)
    other.model.load_state_dict({k.removeprefix("visual."): v for k, v in method.backbone.whole_state().items()
                                 if k.startswith("visual.")})  # fmt: skip
    with torch.no_grad():
        got, before = method.backbone.forward_features(images), clip.forward_features(images)
        torch.testing.assert_close(other.forward_features(images), got, atol=1e-5, rtol=1e-5)
    assert float((got - before).abs().max()) > 1e-3


# ------------------------------------------------------------------------------------------------------ MoE-Adapters
def test_an_image_like_no_experience_is_answered_by_the_plain_model(clip: Any, images: torch.Tensor) -> None:
    method = learned("moe_adapters", clip, iterations=3, experts=3, code_steps=3, threshold=1e-6, lr=0.05)
    with torch.no_grad():
        want = built("zero_shot", clip).predict(images, SPACE)
        torch.testing.assert_close(method.predict(images, SPACE), want)
        method.threshold = 1e6
        assert not torch.allclose(method.predict(images, SPACE), want, atol=1e-3)


def test_experts_that_were_chosen_most_are_frozen_and_old_routers_too(clip: Any) -> None:
    method = learned("moe_adapters", clip, iterations=3, experts=4, code_steps=1)
    for m in method.mixtures():
        frozen = [not d.weight.requires_grad for d in m.down]
        assert 2 <= sum(frozen) <= 4 and len(m.gates) == 2 and not m.gates[0].requires_grad and m.gates[1].requires_grad


def test_two_experts_are_mixed_by_the_softmax_of_their_logits() -> None:
    block = torch.nn.Module()
    block.ln_2, block.mlp = torch.nn.Identity(), torch.nn.Linear(4, 4)
    m = core("moe_adapters", "_experts").Experts(block, 0, 1, experts=3, r=4)
    m.grow(torch.zeros(()))
    m.router = 0
    m.gates[0].data[:] = torch.tensor([[3.0, 1.0, -2.0]]).expand(4, -1) / 4
    weights = m.weights(torch.ones(1, 4))
    torch.testing.assert_close(weights, torch.tensor([[0.880797, 0.119203, 0.0]]), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------ PROOF
def test_an_answer_of_proof_depends_on_its_company_only_as_released(clip: Any, images: torch.Tensor) -> None:
    method = learned("proof", clip, epochs=1)
    with torch.no_grad():
        for per_image in (True, False):
            method.per_image = per_image
            alone, together = method.predict(images[:1], SPACE), method.predict(images, SPACE)[:1]
            assert torch.allclose(alone, together, atol=1e-4) is per_image
    assert method.stored_samples() == 18
    assert [p.requires_grad for p in method.of_image.parameters()] == [False, False, True, True]
    assert all(p.requires_grad for p in method.of_text.parameters())


def test_herding_takes_the_nearest_to_the_mean_first() -> None:
    f = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    assert core("proof", "_fusion").herded(f, 2).tolist()[0] == 2


# ------------------------------------------------------------------------------------------------------ ENGINE
def test_a_gaussian_alone_does_not_read_the_maps_and_its_rows_are_of_unit_length(clip: Any, images: torch.Tensor) -> None:
    method = learned("engine", clip, epochs=1, gaussian=1.0)
    with torch.no_grad():
        first = method.predict(images, SPACE)
        for p in method.of_image.parameters():
            p.add_(1.0)
        assert torch.equal(method.predict(images, SPACE), first)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6), atol=1e-5, rtol=0)


def test_phrases_come_from_a_file_and_a_missing_class_is_told(clip: Any, images: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "phrases.json"
    told = {"digit zero": {"digit one": ["a hole"], "digit two": ["no tail"]}, "digit one": ["a line"], "digit two": ["a tail"]}
    file.write_text(json.dumps(told))
    for name in ("engine", "coprompt"):
        method = learned(name, clip, epochs=1, phrases=str(file))
        assert bool(method.predict(images, SPACE).isfinite().all())
    file.write_text(json.dumps({"digit zero": ["a hole"]}))
    method = built("engine", clip, phrases=str(file))
    with pytest.raises(UserError, match='no phrases for "digit one"'):
        method.begin(experience((0, 1)))
    file.write_text("[1, 2]")
    with pytest.raises(UserError, match="no file of phrases"):
        built("engine", clip, phrases=str(file))


# ------------------------------------------------------------------------------------------------------ LingoCL
def test_names_are_the_classifier_of_another_method(clip: Any, images: torch.Tensor) -> None:
    method = learned("lingocl", find("cl_bench.backbones", "glyph_vit")(), host="linear_probe", args={"epochs": 1})
    rows = method.head.rows
    torch.testing.assert_close(rows, clip.encode_text(SPACE.names, ("a photo of a {}.",)))
    assert not rows.requires_grad and method.head is method.inner.head
    assert method.predict(images, SPACE).shape == (6, 3)


def test_the_host_is_named_on_a_command_line_as_in_a_file() -> None:
    words = ["--scenario", "vlm_glyphs", "--method", "lingocl", "--method.host", "lora", "--method.args", "{rank: 4}"]
    assert parse(words)["method"]["init_args"]["host"] == "lora"
    with pytest.raises(UserError, match=r"method\.host is a name and takes no options such as rank"):
        parse([*words, "--method.host.rank", "4"])


def test_frozen_names_take_the_place_of_a_models_own_text_side(clip: Any, images: torch.Tensor) -> None:
    method = learned("lingocl", clip, args={"epochs": 1})
    torch.testing.assert_close(method.head.rows, clip.encode_text(SPACE.names, ("a photo of a {}.",)))
    assert method.predict(images, SPACE).shape == (6, 3)
    with pytest.raises(UserError, match="clip_lora has no classifier that class names can take the place of"):
        built("lingocl", clip, host="clip_lora")


def test_names_may_come_from_a_file_of_vectors(tmp_path: Path) -> None:
    vit, file = find("cl_bench.backbones", "glyph_vit")(), tmp_path / "words.npz"
    np.savez(file, names=np.array(SPACE.names[:2]), vectors=np.eye(2, 5, dtype=np.float32))
    method = built("lingocl", vit, words=str(file))
    engine.learn(method, experience((0, 1)), 0, 1)
    assert method.head.rows.tolist() == np.eye(2, 5).tolist() and method.head.project.out_features == 5
    with pytest.raises(UserError, match='no vector for "digit two"'):
        method.begin(experience((2,)))


def test_a_host_without_a_linear_classifier_and_words_that_nobody_reads_are_refused() -> None:
    vit = find("cl_bench.backbones", "glyph_vit")()
    with pytest.raises(UserError, match="ncm has no classifier that class names can take the place of"):
        built("lingocl", vit, host="ncm")
    with pytest.raises(UserError, match="reads no names"):
        built("lingocl", vit, words="glyph_vit")


# ------------------------------------------------------------------------------------------------------ prompts
def test_prompts_in_both_towers_want_towers_that_take_them() -> None:
    vit = find("cl_bench.backbones", "glyph_vit")()
    with pytest.raises(UserError, match="Maple needs a backbone with a text side"):
        built("maple", vit)


def test_views_and_sentences_that_agree_cost_nothing() -> None:
    m = core("coprompt")
    f = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert float(m.apart(f, 2 * f)) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(m.blended(torch.nn.Identity(), f, 0.0), f)


# ------------------------------------------------------------------------------------------ what frozen towers are asked once
@pytest.mark.parametrize("name", ["proof", "clip_adapter", "coop", "rapf"])
def test_an_image_of_an_experience_goes_through_a_frozen_tower_once(name: str, clip: Any) -> None:
    method = built(name, clip, epochs=1)
    asked, through = list[int](), method.backbone.forward_features
    method.backbone.__dict__["forward_features"] = lambda x: asked.append(len(x)) or through(x)
    for k, labels in enumerate(((0, 1), (2,))):
        engine.learn(method, experience(labels), k, 1)
    assert asked == [12, 6]
    assert not method.__dict__["kept_features"], "features of data that nobody holds are forgotten"


@pytest.mark.parametrize("name", ["proof", "engine"])
def test_texts_of_a_frozen_tower_are_encoded_once_and_anew_after_a_change(name: str, clip: Any, images: torch.Tensor) -> None:
    method = learned(name, clip, epochs=1)
    count, encode = [0], method.backbone.encode_tokens

    def counted(*args: Any) -> torch.Tensor:
        count[0] += 1
        return encode(*args)

    method.backbone.__dict__["encode_tokens"] = counted
    with torch.no_grad():
        first = method.predict(images, SPACE)
        before = count[0]
        assert torch.equal(method.predict(images, SPACE), first) and count[0] == before
        next(method.backbone.language.parameters()).add_(0.01)
        assert not torch.equal(method.predict(images, SPACE), first) and count[0] > before


@pytest.mark.parametrize(("options", "rates"), [
    ({"epochs": 0, "iterations": 4}, [0.5, 0.4267766952966369, 0.25, 0.07322330470336313]),
    ({"epochs": 3, "batch_size": 6}, [1e-5, 1e-5, 0.5, 0.4267766952966369, 0.25, 0.07322330470336313]),
], ids=["steps", "epochs"])
def test_coop_s_rate_falls_as_a_cosine_after_a_first_epoch_at_1e_5_where_there_are_epochs(clip: Any, options: dict[str, Any],
                                                                                        rates: list[float]) -> None:
    method = built("coop", clip, words=2, lr=0.5, **options)
    method.begin(experience((0, 1)))
    made = method.configure_optimizers()
    told = []
    for _ in rates:
        told.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert told == pytest.approx(rates)


def test_a_probe_of_a_classifier_that_reads_names_is_refused_in_a_sentence(clip: Any) -> None:
    with pytest.raises(UserError, match="linear_probe has nothing to train: backbone 'glyph_clip' answers by the names"):
        learned("linear_probe", clip)
    assert learned("lingocl", clip, host="linear_probe").head.scale.requires_grad, "with a head of its own it can learn"
