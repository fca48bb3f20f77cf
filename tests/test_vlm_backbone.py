"""The text side of vision-language backbones, their plain files, adapters on both towers, and zero-shot rows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_bench import LabelSpace, UserError, attach
from cl_bench.backbones.open_clip_models import open_clip_model
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.registry import find
from cl_bench.testing import ToyScenario

NAMES = ("capital letter a", "dots", "digit seven")
PACKED = r"transformer\.resblocks\.\d+\.(attn(\.out_proj)?|mlp\.(c_fc|c_proj))"


@pytest.fixture(scope="module")
def clip() -> VisionLanguageBackbone:
    return find("cl_bench.backbones", "glyph_clip")()


@pytest.fixture
def fresh(clip: VisionLanguageBackbone) -> VisionLanguageBackbone:
    return copy.deepcopy(clip)


def test_a_short_window_gives_what_the_whole_context_gives(clip: VisionLanguageBackbone) -> None:
    tokens = clip.tokenize([f"a photo of a {n}." for n in NAMES])
    assert tokens.shape == (3, 40)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_tokens(tokens), clip.language.encode_text(tokens), atol=1e-5, rtol=1e-5)
        own = clip.embed_tokens(tokens)
        torch.testing.assert_close(clip.encode_tokens(tokens, own), clip.encode_tokens(tokens))


def test_a_name_longer_than_the_context_is_told(clip: VisionLanguageBackbone) -> None:
    with pytest.raises(UserError, match="tokens long where glyph_clip reads 40"):
        clip.encode_text(["x" * 60])


def test_learned_words_that_are_the_templates_own_change_nothing(clip: VisionLanguageBackbone) -> None:
    import sys

    prompt = sys.modules[f"{find('cl_bench.methods', 'coop').__module__.rpartition('.')[0]}._prompt"]
    words = prompt.start_context(clip, "a photo of a")
    assert words.shape == (4, 64)
    with torch.no_grad():
        got = prompt.prompted(clip, prompt.prompt_tokens(clip, 4, NAMES), words)
        torch.testing.assert_close(got, clip.encode_text(NAMES, ("a photo of a {}.",)), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="learned words are longer"):
        prompt.prompt_tokens(clip, 36, NAMES)


def test_texts_are_kept_until_the_text_side_changes(fresh: VisionLanguageBackbone) -> None:
    head, space = fresh.make_head(), LabelSpace((0, 1, 2), NAMES)
    calls: list[int] = []
    plain = head.encode
    head.encode = lambda *a: (calls.append(1), plain(*a))[1]
    with torch.no_grad():
        first = head.embeddings(space)
        assert head.embeddings(space) is first and len(calls) == 1 and list(head.kept.values()) == [first]
        head.embeddings(LabelSpace((0, 1, 2), NAMES, ("a {}.",)))
        assert len(calls) == 2
        fresh.language.ln_final.weight.mul_(1.5)
        fresh.language.ln_final.bias.add_(0.3)
        assert not torch.equal(head.embeddings(space), first) and len(calls) == 3
    trained = head.embeddings(space)
    assert trained.requires_grad and len(calls) == 4


def test_merged_adapters_become_a_plain_file_that_open_clip_alone_reads(fresh: VisionLanguageBackbone, tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import load_file

    for tower in (fresh.model, fresh.language):
        adapters = attach(tower, "codyra", PACKED, rows=("q", "k", "v"), r=4)
        for _, a in adapters.each():
            nn.init.normal_(a.B, std=0.2)
    x, space = torch.rand(5, 3, 16, 16), LabelSpace((0, 1, 2), NAMES)
    with torch.no_grad():
        want = fresh.make_head().over(fresh.forward_features(x), space)
    fresh.save_open_clip(tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert set(load_file(tmp_path / "open_clip_model.safetensors")) == set(model.state_dict())
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([f"a photo of a {n}." for n in NAMES])
    with torch.no_grad():
        image, text = model.encode_image((x - 0.5) / 0.5, normalize=True), model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(model.logit_scale.exp() * image @ text.T, want, atol=2e-3, rtol=1e-4)
    again = open_clip_model(f"local-dir:{tmp_path}")
    torch.testing.assert_close(again.encode_text(NAMES), F.normalize(text, dim=-1), atol=1e-5, rtol=1e-5)


def test_gates_on_a_packed_projection_are_those_of_four_linears() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    holder = nn.Module()
    holder.attn = layer
    apart = [nn.Linear(8, 8).double() for _ in range(4)]
    for k, part in enumerate(apart[:3]):
        part.weight.data.copy_(layer.in_proj_weight[8 * k : 8 * k + 8])
        part.bias.data.copy_(layer.in_proj_bias[8 * k : 8 * k + 8])
    apart[3].load_state_dict(layer.out_proj.state_dict())
    adapters = attach(holder, "codyra", r"attn(\.out_proj)?", rows=("q", "k", "v"), r=3)
    parts = [a for _, a in adapters.each()]
    assert len(parts) == 4
    for part, a in zip(apart, parts, strict=True):
        nn.init.normal_(a.B)
        part.weight.data.add_((a.B * a.gate) @ a.A)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in apart[:3])
    want = apart[3](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(holder.attn(x, x, x, need_weights=False)[0], want, atol=1e-12, rtol=0)


def test_closed_ranks_change_no_logit_when_the_rest_is_merged(fresh: VisionLanguageBackbone) -> None:
    model = fresh.double()
    sets = [attach(t, "codyra", PACKED, rows=("q", "k", "v"), r=4) for t in (model.model, model.language)]
    for s in sets:
        for _, a in s.each():
            nn.init.normal_(a.B, std=0.1)
            a.gate.data[:2] = 0.0
    x, space = torch.rand(4, 3, 32, 32, dtype=torch.float64), LabelSpace((0, 1, 2), NAMES)
    with torch.no_grad():
        before = model.make_head().over(model.forward_features(x), space)
        for s in sets:
            s.merge_()
        after = model.make_head().over(model.forward_features(x), space)
    torch.testing.assert_close(after, before, atol=1e-10, rtol=0)


def test_quick_gelu_that_the_weights_were_not_trained_with_is_refused(clip: VisionLanguageBackbone, tmp_path: Path) -> None:
    copy.deepcopy(clip).save_open_clip(tmp_path)
    with pytest.raises(UserError, match="trained without QuickGELU"):
        open_clip_model(f"local-dir:{tmp_path}", quick_gelu=True)
    with pytest.raises(UserError, match="trained with QuickGELU"):
        open_clip_model("ViT-B-32", pretrained="openai", quick_gelu=False)


def test_a_backbone_without_a_text_side_is_refused() -> None:
    from toys import tiny_backbone

    for name in ("zero_shot", "codyra_clip", "tpt"):
        with pytest.raises(UserError, match="text side"):
            find("cl_bench.methods", name)(tiny_backbone())


@pytest.mark.parametrize("method", ["zero_shot", "finetune"])
def test_the_matrix_has_a_row_before_learning_and_cells_to_come(
    method: str, clip: VisionLanguageBackbone, tmp_path: Path
) -> None:
    from cl_bench.engine.compute import Compute
    from cl_bench.engine.protocol import Plan
    from cl_bench.engine.runner import run
    from cl_bench.records.results import load

    cls = find("cl_bench.methods", method)
    options = {} if method == "zero_shot" else {"epochs": 1, "lr": 1e-4}
    names = {"scenario": {"name": "toy"}, "method": {"name": method, "label": method}, "backbone": {"name": "glyph_clip"}}
    toy = ToyScenario(train=6, answers="task")
    plan = Plan(toy, clip, cls, lambda b: cls(b, **options), names, compute=Compute("cpu"), checkpoint=False)
    held = load(run(plan, tmp_path))
    matrix = held.matrix
    assert matrix.before and matrix.rows[0] == "before learning" and (matrix.total > 0).all()
    assert matrix.learned == (1, 2)
    found = held.record["metrics"]
    assert found["zero_shot_accuracy"] == pytest.approx(matrix.percent[0].mean())
    assert found["zero_shot_change"] == pytest.approx(matrix.percent[1, 1] - matrix.percent[0, 1])
    assert found["transfer"] == pytest.approx(matrix.percent[1, 1])
    if method == "zero_shot":
        assert found["zero_shot_change"] == 0.0
