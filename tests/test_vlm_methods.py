"""Vision-language methods on the embedded CLIP: what they leave alone, and what they must not depend on."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from vlm_toys import SPACE, clip, images

from cl_bench import Experience, LabelSpace, StreamFacts
from cl_bench.cli import main
from cl_bench.data.digits import digits
from cl_bench.engine.compute import Compute
from cl_bench.registry import entries, find
from cl_bench.testing import _engine as engine

__all__ = ["clip", "images"]  # pytest finds the fixtures here

EPISODIC = ("zero", "mta", "tps", "sts", "tpt", "c_tpt", "r_tpt")
ONLINE = ("tda", "dmn", "onzeta", "boostadapter", "ecalp", "tfup")
OPTIONS = {"onzeta": {}, "ecalp": {}, "tfup": {"pool": 4, "shots": 1}}  # of those that see one view


def deployed(name: str, clip: Any, **options: Any) -> Any:
    cls = find("cl_bench.methods", name)
    method = engine.built(cls, clip, options)
    method.deploy(None, StreamFacts(6, SPACE))
    return method.eval()


def features(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("name", EPISODIC)
def test_an_episodic_answer_is_of_its_image_alone_whatever_the_order_of_its_views(name: str, clip: Any) -> None:
    method = deployed(name, clip)
    method.predict(torch.rand(1, 3, 32, 32), SPACE)
    f, text = features(20, 0), method.text
    first = method.score(f, text)
    method.score(features(20, 1), text)
    assert torch.equal(method.score(f, text), first)
    turned = f[torch.cat([torch.tensor([0]), 1 + torch.randperm(19, generator=torch.Generator().manual_seed(2))])]
    torch.testing.assert_close(method.score(turned, text), first, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", (*EPISODIC, *ONLINE))
def test_a_reset_and_the_same_images_give_the_same_bits(name: str, clip: Any, images: torch.Tensor) -> None:
    method = deployed(name, clip, **OPTIONS.get(name, {"views": 6}))
    weights = [p.clone() for p in method.model.parameters()]
    method.mark()
    with torch.enable_grad():
        first = method.predict(images, SPACE)
        method.reset()
        again = method.predict(images, SPACE)
    assert torch.equal(first, again) and bool(first.isfinite().all()) and first.shape == (6, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights, method.model.parameters(), strict=True))


# how often an image sends all class names through the text tower
@pytest.mark.parametrize(("name", "each"), [("sts", 0), ("tps", 0), ("zero", 0), ("tda", 0), ("tpt", 2), ("r_tpt", 2)])
def test_class_texts_go_through_their_tower_once_for_a_stream(name: str, each: int, clip: Any, images: torch.Tensor) -> None:
    method = deployed(name, clip, views=4) if name != "tda" else deployed(name, clip)
    backbone, count = method.model.backbone, [0]
    encode = backbone.encode_tokens
    backbone.__dict__["encode_tokens"] = lambda *args: count.append(len(args[0])) or encode(*args)
    with torch.enable_grad():
        method.predict(images[:1], SPACE)
        del count[:]
        method.predict(images[1:4], SPACE)
    assert sum(count) == 3 * each * len(SPACE)


@pytest.mark.parametrize("name", ["tps", "tpt", "c_tpt"])
def test_a_rate_of_zero_is_zero_shot(name: str, clip: Any, images: torch.Tensor) -> None:
    method = deployed(name, clip, lr=0.0, views=6)
    want = deployed("zero_shot", clip).predict(images, SPACE) if name == "tps" else None
    got = method.predict(images, SPACE)
    plain = LabelSpace(SPACE.ids, SPACE.names, ("a photo of a {}.",))
    want = deployed("zero_shot", clip).predict(images, plain) if want is None else want
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)


def test_no_dispersion_is_tpt_bit_for_bit(clip: Any, images: torch.Tensor) -> None:
    one, two = (deployed(n, clip, views=6, **o) for n, o in (("tpt", {}), ("c_tpt", {"dispersion": 0.0})))
    assert torch.equal(one.predict(images, SPACE), two.predict(images, SPACE))


def learned(name: str, clip: Any, **options: Any) -> Any:
    method = engine.built(find("cl_bench.methods", name), clip, options)
    data = digits("train")
    for k, pair in enumerate(((0, 1), (2,))):
        rows = torch.cat([(data.y == c).nonzero().flatten()[:6] for c in pair])
        names = tuple(SPACE.names[c] for c in pair)
        engine.learn(method, Experience(f"e{k}", LabelSpace(pair, names), data.subset(rows)), k, 2)
    return method.eval()


LEARNING = [
        ("clip_finetune", {"iterations": 3}), ("wise_ft", {"iterations": 3}), ("lwf_vr", {"iterations": 3, "sentences": 20}),
        ("lwf_vr", {"iterations": 3, "texts": "classes"}), ("zscl", {"iterations": 3, "references": 16, "average_every": 2}),
        ("clip_lora", {"iterations": 3}), ("codyra_clip", {"iterations": 4}), ("rail", {"hidden": 50}),
        ("rail", {"form": "dual"}), ("clip_adapter", {"epochs": 1}), ("rapf", {"epochs": 1}), ("coop", {"epochs": 1}),
        ("clip_svd", {"epochs": 1}), ("ramt", {"epochs": 1}), ("maple", {"epochs": 1}), ("coprompt", {"epochs": 1}),
        ("kapt", {"epochs": 1}),
        ("proof", {"epochs": 1}), ("engine", {"epochs": 1}), ("moe_adapters", {"iterations": 2, "experts": 3, "code_steps": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), LEARNING)
def test_it_answers_for_classes_learned_and_not(name: str, options: dict[str, Any], clip: Any, images: torch.Tensor) -> None:
    before = [p.clone() for p in clip.parameters()]
    method = learned(name, copy.deepcopy(clip), **options)
    wider = LabelSpace((0, 1, 2, 9), (*SPACE.names, "horizontal stripes"))
    with torch.no_grad():
        logits = method.predict(images, wider)
        assert torch.equal(logits, method.predict(images, wider))
    assert logits.shape == (6, 4) and bool(logits.isfinite().all())
    assert all(torch.equal(a, b) for a, b in zip(before, clip.parameters(), strict=True))


@pytest.mark.parametrize(("name", "options"), LEARNING)
def test_it_learns_and_answers_in_bfloat16_mixed(name: str, options: dict[str, Any], clip: Any, images: torch.Tensor,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "CPU", Compute(device="cpu", precision="bf16-mixed"))
    method = learned(name, copy.deepcopy(clip), **options)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert bool(method.predict(images, SPACE).isfinite().all())


def test_wise_ft_with_alpha_zero_and_adapters_without_steps_are_the_model_as_it_came(clip: Any, images: torch.Tensor) -> None:
    with torch.no_grad():
        want = deployed("zero_shot", clip).predict(images, SPACE)
        for name, options in (
            ("wise_ft", {"iterations": 2, "alpha": 0.0, "lr": 1e-3}), ("clip_lora", {"iterations": 1, "lr": 0.0}),
            ("codyra_clip", {"iterations": 1, "lr": 0.0}), ("clip_adapter", {"ratio": 0.0}),
            ("clip_svd", {"epochs": 1, "lr": 0.0}), ("ramt", {"epochs": 1, "lr": 0.0}),
            ("moe_adapters", {"iterations": 1, "lr": 0.0, "experts": 3, "code_steps": 1}), ("kapt", {"epochs": 1, "lr": 0.0}),
        ):  # fmt: skip
            got = learned(name, copy.deepcopy(clip), **options).predict(images, SPACE)
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# what makes a run short, where a method has it
SHORT = {"iterations": 1, "epochs": 1, "views": 4, "hidden": 50, "experts": 3, "code_steps": 2, "references": 16,
         "sentences": 20, "pool": 8, "shots": 1}  # fmt: skip
NAMES = sorted(name for name, entry in entries("cl_bench.methods").items() if "vision_language" in entry.target)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_from_the_command_line(name: str, tmp_path: Any) -> None:
    cls = find("cl_bench.methods", name)
    options = [f"--method.{k}={v}" for k, v in SHORT.items() if k in inspect.signature(cls).parameters]
    streams = [["vlm_glyphs_stream", "--scenario.per_domain=4"]] if cls.family == "test-time" else []
    for scenario in (["vlm_glyphs", "--scenario.shots=2"], *streams):
        words = ["--scenario", *scenario, "--scenario.domains=2", "--method", name, *options]
        assert main(["run", *words, "--runs", str(tmp_path), "--tracking", "none"]) == 0
