"""Pretrain the embedded vision-language model on described characters and textures; writes weights, config and card.

    python tools/pretrain_clip.py --steps 3000 --until 2500      # a quarter of an hour of one core
    python tools/pretrain_clip.py --card-only                      # evaluate and write the card again

The image tower starts as the embedded `glyph_vit`, which knows letters, with more blocks behind its own. Training sees
rendered images of `TRAIN_FONTS` only, and their sentences (`cl_bench.data.described`). Two losses are added.
The contrastive one compares the images of every second batch with the sentences of that batch. A sentence is silent about
most of its image, so that letters are told apart by it slowly; the other asks about every image which of all names of
things, letters, colours and kinds, each in a sentence, is its own (as in UniCL, Yang et al., CVPR 2022, labels are texts).
Images are light on black at first and of all colours from the middle on. Handwritten digits and the held-out fonts are used
once, after training, to write the card. The same machine, thread count and seed give the same weights bit for bit.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_bench.backbones.glyph import WEIGHTS, glyph_vit
from cl_bench.backbones.open_clip_models import VisionLanguageBackbone, open_clip_model
from cl_bench.data.described import (
    ATTRIBUTES,
    COLOURS,
    KINDS,
    MARKS,
    TEXTURES,
    THINGS,
    Look,
    described,
    described_data,
    letter_name,
    sentences,
    true_of,
    vocabulary,
)
from cl_bench.data.digits import DIGIT_NAMES, digits
from cl_bench.data.files import file_digest
from cl_bench.data.glyphs import HELD_OUT_FONTS, LETTERS, TRAIN_FONTS
from cl_bench.data.tensor import TensorData, batches

FOLDER = WEIGHTS / "glyph_clip"
BATCH, STEPS, UNTIL, LR, DECAY, CLIP, LAYERS = 128, 3000, 2500, 1e-3, 0.05, 1.0, 5
STARTS = ("a photo of {}.", "a picture of {}.", "{}.", "{}")
PLAIN = 0.8  # share that is light on black at the start; it falls to that of `Look` until the middle


def merges(words: tuple[str, ...]) -> list[str]:
    """Byte-pair merges that make each of these words one token, from left to right; what they share is shared."""
    found: dict[str, None] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            found[f"{parts[0]} {parts[1]}"] = None
            parts[:2] = [parts[0] + parts[1]]
    return list(found)


def config(vocab: int) -> dict[str, object]:
    """OpenCLIP's own configuration of the model."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "quick_gelu": False,
            "vision_cfg": {
                "image_size": 16, "patch_size": 4, "width": 64, "layers": LAYERS, "head_width": 16, "mlp_ratio": 2.0,
                "no_ln_pre": True,
            },
            "text_cfg": {
                "context_length": 40, "vocab_size": vocab, "width": 64, "heads": 4, "layers": 3, "mlp_ratio": 2.0,
                "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"},
            },
        },
        "preprocess_cfg": {
            "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash",
        },
    }  # fmt: skip


def prepare(seed: int) -> VisionLanguageBackbone:
    """Writes config, merges and the weights that training starts from; the model that OpenCLIP makes of them."""
    import open_clip

    rules = merges(vocabulary())
    FOLDER.mkdir(exist_ok=True)
    text = "\n".join(["#version: 0.2", *rules]).encode()
    (FOLDER / "merges.txt.gz").write_bytes(gzip.compress(text, mtime=0))  # the same bytes each time
    how = config(2 * 256 + len(rules) + 2)
    (FOLDER / "open_clip_config.json").write_text(json.dumps(how, indent=1) + "\n", encoding="utf-8")
    torch.manual_seed(seed)
    cfg = dict(how["model_cfg"])  # type: ignore[call-overload]
    model = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"])
    start_from_letters(model.visual)
    save(model.state_dict())
    return open_clip_model(f"local-dir:{FOLDER}")


@torch.no_grad()
def start_from_letters(visual: nn.Module) -> None:
    """The image tower computes what the embedded `glyph_vit` does: its blocks come first, those behind them add nothing yet
    (their last maps are 0), and the bias of its patches, which OpenCLIP's do not have, goes into their positions."""
    old = glyph_vit().model.state_dict()
    pairs = {"norm1": "ln_1", "attn.qkv": "attn.in_proj", "attn.proj": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    new = {"conv1.weight": old["patch_embed.proj.weight"], "class_embedding": old["cls_token"].flatten(),
           "positional_embedding": old["pos_embed"][0].clone(), "proj": torch.eye(64),
           "ln_post.weight": old["norm.weight"], "ln_post.bias": old["norm.bias"]}  # fmt: skip
    new["positional_embedding"][1:] += old["patch_embed.proj.bias"]
    for k in range(LAYERS):
        for theirs, ours in pairs.items():
            for kind in ("weight", "bias"):
                name = f"transformer.resblocks.{k}.{ours}{'_' if ours == 'attn.in_proj' else '.'}{kind}"
                if f"blocks.{k}.{theirs}.{kind}" in old:
                    new[name] = old[f"blocks.{k}.{theirs}.{kind}"]
                elif ours in ("attn.out_proj", "mlp.c_proj"):
                    new[name] = torch.zeros_like(visual.get_parameter(name))
    unexpected = visual.load_state_dict(new, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"glyph_vit is no longer what this was written for: {unexpected}")


def save(state: dict[str, Tensor]) -> None:
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, FOLDER / "open_clip_model.safetensors")


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """Image to text and text to image, each row's target spread over all that is true of it."""
    target = true.float()
    rows = -(target / target.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1).mean()
    columns = -(target / target.sum(0, keepdim=True) * F.log_softmax(logits, 0)).sum(0).mean()
    return (rows + columns) / 2


def questions(start: str) -> dict[str, list[str]]:
    """A sentence for every value of the attributes that zero-shot classification asks about, all with the same beginning."""
    plural = ("stripes", "dots", "rings", "waves", "speckles")
    nouns = {
        "thing": THINGS, "letter": tuple(f"letter {c}" for c in LETTERS[26:]), "colour": tuple(f"{c} thing" for c in COLOURS),
        "kind": KINDS,
    }  # fmt: skip
    return {k: [start.format(n if n.endswith(plural) else f"a {n}") for n in names] for k, names in nouns.items()}


def named(image: Tensor, text: Tensor, facts: Tensor, sizes: dict[str, int], scale: Tensor) -> Tensor:
    """Cross-entropy of images (N, d) among the texts of each attribute, summed over attributes; -1 in `facts` is no answer.

    Args:
        text: (sum of sizes, d), attribute after attribute.
    """
    total, first = image.new_zeros(()), 0
    for attribute, count in sizes.items():
        answer = facts[:, ATTRIBUTES.index(attribute)]
        logits = scale * image @ text[first : first + count].T
        total, first = total + F.cross_entropy(logits, answer, ignore_index=-1), first + count
    return total


def pretrain(seed: int, steps: int, until: int) -> VisionLanguageBackbone:
    """A model trained from `seed` for `until` of the `steps` that the rate is planned for; prints its progress."""
    backbone = prepare(seed).train()
    own = [p for n, p in backbone.named_parameters() if p.ndim > 1 and "embedding" not in n]
    single = [p for n, p in backbone.named_parameters() if p.ndim <= 1 or "embedding" in n]
    optimizer = torch.optim.AdamW([{"params": own, "weight_decay": DECAY}, {"params": single, "weight_decay": 0.0}], lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    rng, start, look = torch.Generator().manual_seed(seed), time.perf_counter(), Look()
    asked = [questions(s) for s in STARTS]
    tokens = [backbone.tokenize([t for texts in q.values() for t in texts]) for q in asked]
    sizes = {k: len(v) for k, v in asked[0].items()}
    told, tokenizer, paired = [0.0, 0.0, 0.0], backbone.tokenizer(), torch.zeros(())
    for step in range(1, until + 1):
        early = max(0.0, 1 - 2 * step / steps)
        x, facts = described(BATCH, rng, replace(look, plain=look.plain + early * (PLAIN - look.plain)))
        image = F.normalize(backbone.forward_features(x), dim=-1)
        names = F.normalize(backbone.encode_tokens(tokens[step // 2 % len(tokens)]), dim=-1)
        loss = answered = named(image, names, facts, sizes, backbone.logit_scale)
        if step % 2 == 0:
            texts, claims = sentences(facts, rng)
            text = F.normalize(backbone.encode_tokens(tokenizer(texts, context_length=backbone.context_length)), dim=-1)
            paired = contrast(backbone.logit_scale * image @ text.T, true_of(claims, facts))
            loss = answered + paired
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            backbone.language.logit_scale.clamp_(0, math.log(100))
            thing, count = facts[:, 0], sizes["thing"]
            hit = (image @ names[:count].T).argmax(1).eq(thing)[thing < len(LETTERS)].float().mean()
        told = [a + float(b.detach()) for a, b in zip(told, (paired, answered, hit), strict=True)]
        if step % 50 == 0 or step == until:
            n = (step - 1) % 50 + 1
            print(f"step {step}/{steps} pairs {told[0] / n:.3f} names {told[1] / n:.3f} letters {100 * told[2] / n:.1f} % "
                  f"scale {backbone.logit_scale.item():.1f} {time.perf_counter() - start:.0f} s", flush=True)
            told = [0.0, 0.0, 0.0]
        if step % 500 == 0:
            save(backbone.whole_state())
    return backbone.eval()


@torch.no_grad()
def zero_shot(backbone: VisionLanguageBackbone, data: TensorData, names: tuple[str, ...], template: str) -> float:
    """Accuracy in percent among `names`, labels being their positions."""
    text = backbone.encode_text(names, (template,))
    right = sum(
        int((F.normalize(backbone.forward_features(b.x), dim=-1) @ text.T).argmax(1).eq(b.y).sum()) for b in batches(data, 256)
    )
    return 100 * right / len(data)


def report(backbone: VisionLanguageBackbone) -> dict[str, tuple[int, float]]:
    """Zero-shot accuracy by what was asked: (classes, percent)."""
    unseen = Look(fonts=HELD_OUT_FONTS)
    found: dict[str, tuple[int, float]] = {}

    def ask(title: str, kind: str, attribute: str, names: tuple[str, ...], look: Look,
            template: str = "a photo of a {}.") -> None:  # fmt: skip
        data, _ = described_data(2000, 77, attribute, replace(look, kinds=(kind,), shares=(1.0,)))
        data = TensorData(data.x, data.y - data.y.min())
        found[title] = (len(names), zero_shot(backbone, data, names, template))

    letters = tuple(letter_name(c) for c in LETTERS)
    plain = tuple(f"digit {n}" for n in DIGIT_NAMES)
    ask("letters, new images of the training fonts", "letter", "thing", letters, Look())
    ask("letters, 6 held-out fonts", "letter", "thing", letters, unseen)
    ask("letters of held-out fonts, case aside", "letter", "letter", tuple(f"letter {c}" for c in LETTERS[26:]), unseen)
    ask("rendered digits, held-out fonts", "digit", "thing", plain, unseen)
    ask("marks, held-out fonts", "mark", "thing", MARKS, unseen)
    ask("textures, new images", "texture", "thing", TEXTURES, Look(), "a photo of {}.")
    data, _ = described_data(2000, 77, "colour", unseen)
    found["colour of the ink, held-out fonts"] = (10, zero_shot(backbone, data, tuple(COLOURS), "a photo of a {} thing."))
    data, _ = described_data(2000, 77, "kind", unseen)
    found["letter, digit, mark or texture"] = (len(KINDS), zero_shot(backbone, data, KINDS, "a photo of a {}."))
    found["handwritten digits, test split (never seen)"] = (10, zero_shot(backbone, digits("test"), plain, "a photo of a {}."))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--until", type=int, default=UNTIL, help="end after so many of the steps; 0 = after all")
    parser.add_argument("--card-only", action="store_true", help="evaluate and write the card again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    if given.card_only:
        backbone = open_clip_model(f"local-dir:{FOLDER}")
    else:
        backbone = pretrain(given.seed, given.steps, given.until or given.steps)
        save(backbone.whole_state())
        print(f"{time.process_time() - start:.0f} s of processor time")
    write_card(report(backbone), sum(p.numel() for p in backbone.parameters()), given.seed, given.steps,
               given.until or given.steps)  # fmt: skip


def write_card(found: dict[str, tuple[int, float]], size: int, seed: int, steps: int,
               until: int) -> None:  # fmt: skip
    file: Path = FOLDER / "open_clip_model.safetensors"
    letters = f"letters, digits and marks in {len(TRAIN_FONTS)} fonts of matplotlib, textures, and sentences about them"
    loss = "image-to-text and text-to-image cross-entropy, a row's target spread over all sentences that are true of it"
    names = "cross-entropy of every image among all names of things, letters, colours and kinds, each in a sentence"
    rows = "\n".join(f"| {what} | {n} | {acc:.1f} | {100 / n:.1f} |" for what, (n, acc) in found.items())
    text = f"""# glyph_clip

| | |
|---|---|
| sha256 of `glyph_clip/open_clip_model.safetensors` | `{file_digest(file)}` |
| parameters | {size:,}; both towers and one scale; 64 features |
| input | 16 x 16 pixels (bilinear), mean 0.5, std 0.5; at most 40 tokens, byte pairs of `glyph_clip/merges.txt.gz` |
| data | `cl_bench.data.described` at 32 x 32: {letters} |
| recipe | image tower from `glyph_vit`, {LAYERS - 3} blocks added; {until:,} steps of {BATCH} pairs; \
AdamW, weight decay {DECAY}, one-cycle learning rate of {LR} planned for {steps:,} steps; {names}; \
on every second batch plus {loss}; \
the share of images that are light on black falls from {PLAIN:.0%} to {Look().plain:.0%} until the middle |
| seed | {seed} |
| command | `python tools/pretrain_clip.py --seed {seed} --steps {steps} --until {until}` |
| made with | PyTorch {torch.__version__.split("+")[0]}, {platform.machine()}, one thread |

| zero-shot accuracy | classes | % | chance, % |
|---|---|---|---|
{rows}

Held-out fonts: {", ".join(HELD_OUT_FONTS)}. No handwriting is in the pretraining; rendered digits are. Characters are scaled
to one height, so that case is often undecidable (o and O).
OpenCLIP alone reads the folder: `open_clip.create_model("local-dir:.../glyph_clip")`; its tokenizer wants the place of
the merges: `open_clip.get_tokenizer("local-dir:...", bpe_path=".../merges.txt.gz")`.
"""
    (WEIGHTS / "glyph_clip.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
