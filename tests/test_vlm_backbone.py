"""The text side of vision-language backbones, their plain files, adapters on both towers, and zero-shot rows."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("method", ["zero_shot", "finetune", "ewc"])
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


# ---------------------------------------------------------------------------- towers of timm and transformers
@pytest.fixture(scope="module")
def two_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model whose towers are timm's and transformers' (BERT), as `tools/two_tower.py` lays it out."""
    import json

    import open_clip
    from safetensors.torch import save_file

    where = tmp_path_factory.mktemp("towers") / "model"
    (where / "image").mkdir(parents=True)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", ".", "a", "photo", "of", "dog", "wild", "cat"]
    (where / "vocab.txt").write_text("\n".join(words) + "\n")
    (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    bert = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(words), "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24,
            "pad_token_id": 0}  # fmt: skip
    (where / "config.json").write_text(json.dumps(bert))
    how = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 32, 32]},
           "model_args": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}}  # fmt: skip
    (where / "image" / "config.json").write_text(json.dumps(how))
    vision = {"image_size": 32, "timm_model_name": "local-dir:image", "timm_pool": "", "timm_proj": "linear",
              "timm_proj_bias": True}  # fmt: skip
    text = {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_proj_type": None, "hf_pooler_type": "mean_pooler"}
    (where / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": {"embed_dim": 16, "custom_text": True, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(16, {**vision, "timm_model_name": f"local-dir:{where / 'image'}"},
                                     {**text, "hf_model_name": str(where), "hf_model_pretrained": False})
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, where / "open_clip_model.safetensors")
    return where


def test_towers_whose_configurations_lie_below_the_folder_are_found_wherever_it_lies(two_tower: Path, tmp_path: Path) -> None:
    import open_clip

    moved = tmp_path / "elsewhere"
    two_tower.rename(moved)
    try:
        backbone = open_clip_model(f"local-dir:{moved}")
        saved, dog = backbone.save_open_clip(tmp_path / "saved"), backbone.encode_text(["dog"]).detach()
    finally:
        moved.rename(two_tower)
    alone, tokenizer = open_clip.create_model(f"local-dir:{saved}").eval(), open_clip.get_tokenizer(f"local-dir:{saved}")
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(alone.encode_image(backbone.preprocess(image)), backbone.forward_features(image))
        text = alone.encode_text(tokenizer(["a photo of a dog."], context_length=24), normalize=True)
        torch.testing.assert_close(text, dog)
    again = open_clip_model(f"local-dir:{saved}")
    assert again.info["sha256"] == backbone.info["sha256"]


def test_a_tower_of_transformers_reads_short_texts_and_learned_words(two_tower: Path) -> None:
    import sys

    clip = open_clip_model(f"local-dir:{two_tower}").requires_grad_(False)
    names = ("dog", "wild cat")
    tokens = clip.tokenize([f"a photo of a {n}." for n in names])
    assert tokens.shape == (2, 24) and clip.ends(tokens).tolist() == [7, 8] and clip.vocabulary == (1, 2, 12)
    torch.testing.assert_close(clip.encode_tokens(tokens), clip.language.encode_text(tokens))
    torch.testing.assert_close(clip.encode_tokens(tokens, clip.embed_tokens(tokens)), clip.encode_tokens(tokens))
    prompt = sys.modules[f"{find('cl_bench.methods', 'coop').__module__.rpartition('.')[0]}._prompt"]
    words = prompt.start_context(clip, "a photo of a")
    got = prompt.prompted(clip, prompt.prompt_tokens(clip, 4, names), words)
    torch.testing.assert_close(got, clip.encode_text(names, ("a photo of a {}.",)))
    with pytest.raises(UserError, match="20 learned words are longer"):
        prompt.prompt_tokens(clip, 20, names)
    with pytest.raises(UserError, match="has no two transformers of OpenCLIP's own"):
        find("cl_bench.methods", "maple")(clip)


def test_experts_beside_a_block_whose_norm_comes_last_are_added_before_that_norm(two_tower: Path) -> None:
    clip = open_clip_model(f"local-dir:{two_tower}").requires_grad_(False)
    block = clip.language.text.transformer.encoder.layer[0]
    x, inside = torch.randn(3, 4, 16), {}
    block.attention.register_forward_hook(lambda m, i, o: inside.update(x=o[0]))
    plain = block(x)
    mlp = block.output.dense(block.intermediate(inside["x"]))
    torch.testing.assert_close(plain, block.output.LayerNorm(mlp + inside["x"]))
    method = find("cl_bench.methods", "moe_adapters")(clip, experts=3, bottleneck=4)
    experts = next(m for m in method.mixtures() if m.width == 16)
    experts.grow(x)
    experts.router = 0
    torch.nn.init.normal_(experts.up[0].weight)
    torch.nn.init.normal_(experts.up[1].weight)
    with torch.no_grad():
        wanted = block.output.LayerNorm(mlp + inside["x"] + experts.mixture(inside["x"]))
        got = experts(block, x)
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, plain) and not block.output.LayerNorm._forward_pre_hooks


# ---------------------------------------------------------------------------- patches
def test_a_patch_is_projected_as_an_image_that_is_this_patch_all_over(clip: VisionLanguageBackbone, two_tower: Path) -> None:
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        whole, patches = clip.patch_features(x)
        torch.testing.assert_close(whole, clip.forward_features(x))
        tower: Any = clip.model
        tokens = tower.ln_post(tower.transformer(tower._embeds(clip.preprocess(x))))
        torch.testing.assert_close(patches, tokens[:, 1:] @ tower.proj)
        timm = open_clip_model(f"local-dir:{two_tower}")
        x, tower = torch.rand(2, 3, 32, 32), timm.model
        whole, patches = timm.patch_features(x)
        torch.testing.assert_close(whole, timm.forward_features(x))
        torch.testing.assert_close(patches, tower.head(tower.trunk.forward_features(timm.preprocess(x))[:, 1:]))


def test_each_place_of_a_map_is_a_patch_and_a_tower_that_pools_otherwise_has_none(fresh: VisionLanguageBackbone) -> None:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    x, tower = torch.rand(2, 3, 64, 64), TimmModel("convnext_atto", 64, 64, pool="avg", proj="linear").eval()
    fresh.model, fresh._how = tower, dataclasses.replace(fresh._how, size=64)
    with torch.no_grad():
        whole, patches = fresh.patch_features(x)
        torch.testing.assert_close(whole, fresh.forward_features(x))
        places = tower.trunk.head.norm(tower.trunk.forward_features(fresh.preprocess(x)))
        torch.testing.assert_close(patches, tower.head(places.flatten(2).transpose(1, 2)))
        assert patches.shape == (2, 4, 64)
    for other in (ModifiedResNet((1, 1, 1, 1), 64, 2, image_size=64, width=8),
                  TimmModel("convnext_atto", 64, 64, pool="rot_attn", proj="")):  # fmt: skip
        fresh.model = other.eval()
        with pytest.raises(UserError, match="has an image tower without patches"):
            fresh.patch_features(x)
        with pytest.raises(UserError, match="has an image tower without patches"):
            find("cl_bench.methods", "kapt")(fresh)
