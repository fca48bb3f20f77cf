"""Pretrain the embedded backbones on rendered letters and write their weights and cards.

    python tools/pretrain_backbones.py glyph_vit        # a few minutes on one core
    python tools/pretrain_backbones.py glyph_resnet

Training sees characters of `TRAIN_FONTS` only, letters only: no digit, rendered or handwritten. The handwritten
digits are used once, after training, to write the card. The same machine, thread count and seed give the same weights
bit for bit.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_bench.backbones.base import Backbone
from cl_bench.backbones.glyph import WEIGHTS, glyph_resnet, glyph_vit
from cl_bench.data.digits import digits
from cl_bench.data.files import file_digest
from cl_bench.data.glyphs import HELD_OUT_FONTS, LETTERS, TRAIN_FONTS, glyph_batches, glyphs
from cl_bench.data.tensor import TensorData, batches

MAKERS = {"glyph_vit": glyph_vit, "glyph_resnet": glyph_resnet}


@dataclass(frozen=True)
class Recipe:
    """AdamW on cross-entropy with label smoothing, one-cycle learning rate; images of `size` pixels."""

    steps: int
    lr: float
    size: int
    batch: int = 128
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip: float = 1.0


RECIPES = {
    "glyph_vit": Recipe(steps=3000, lr=2e-3, size=16),
    "glyph_resnet": Recipe(steps=2000, lr=4e-3, size=32),
}


def pretrain(name: str, seed: int, steps: int | None = None) -> Backbone:
    """A backbone trained from `seed` on glyph letters; prints its progress."""
    recipe = RECIPES[name]
    total = steps or recipe.steps
    backbone = MAKERS[name](pretrained=False, seed=seed).train()
    many = [p for p in backbone.parameters() if p.ndim > 1]
    single = [p for p in backbone.parameters() if p.ndim <= 1]  # biases and norms are not decayed
    optimizer = torch.optim.AdamW(
        [{"params": many, "weight_decay": recipe.weight_decay}, {"params": single, "weight_decay": 0.0}], lr=recipe.lr
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=0.1)
    stream = glyph_batches(recipe.batch, classes="letters", size=recipe.size, seed=seed, fonts=TRAIN_FONTS)
    start = time.perf_counter()
    for step in range(1, total + 1):
        x, y = next(stream)
        loss = F.cross_entropy(backbone(x), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == total:
            print(f"{name} step {step}/{total} loss {loss.item():.3f} {time.perf_counter() - start:.0f} s", flush=True)
    return backbone.eval()


@torch.no_grad()
def outputs(backbone: Backbone, data: TensorData) -> tuple[Tensor, Tensor]:
    """Features (N, num_features) and logits (N, 52) of a data set."""
    assert backbone.head is not None
    features = torch.cat([backbone.forward_features(x) for x, _ in batches(data, 256)])
    return features, backbone.head(features)


def ncm_accuracy(backbone: Backbone) -> float:
    """Percent of the digits' test split that is nearest, by cosine, to its class mean on the training split
    (SimpleCIL).
    """
    train, test = digits("train"), digits("test")
    features, queries = outputs(backbone, train)[0], outputs(backbone, test)[0]
    means = torch.stack([features[train.y == c].mean(0) for c in range(10)])
    predicted = (F.normalize(queries, dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    return 100.0 * (predicted == test.y).float().mean().item()


def letter_accuracy(backbone: Backbone, fonts: tuple[str, ...], size: int) -> tuple[float, float]:
    """Percent of 4,000 new letters of these fonts told right, and told right if case does not count."""
    data = glyphs(4000, classes="letters", size=size, seed=20_000, fonts=fonts)
    predicted = outputs(backbone, data)[1].argmax(1)
    exact = 100.0 * (predicted == data.y).float().mean().item()
    return exact, 100.0 * (predicted % 26 == data.y % 26).float().mean().item()


def card(name: str, backbone: Backbone, seed: int, digest: str, seconds: float) -> str:
    """The card's text: what the weights are, how they were made, what they reach."""
    recipe = RECIPES[name]

    def letters(fonts: tuple[str, ...]) -> str:
        return "{:.1f} / {:.1f}".format(*letter_accuracy(backbone, fonts, recipe.size))

    count = sum(p.numel() for p in backbone.parameters())
    how = backbone.info["preprocess"]
    facts = {
        f"sha256 of `{name}.safetensors`": f"`{digest}`",
        "parameters": f"{count:,} with the head of {len(LETTERS)} letters; {backbone.num_features} features",
        "input": f"{how['size']} x {how['size']} pixels ({how['interpolation']}), "
        f"mean {how['mean'][0]}, std {how['std'][0]}",
        "data": f"`cl_bench.data.glyphs` at {recipe.size} x {recipe.size}, letters A-Z a-z only, "
        f"{len(TRAIN_FONTS)} fonts of matplotlib; no digit, rendered or handwritten",
        "recipe": f"{recipe.steps} steps of {recipe.batch}, AdamW, learning rate {recipe.lr:g} one-cycle, "
        f"weight decay {recipe.weight_decay:g}, label smoothing {recipe.label_smoothing:g}",
        "seed": str(seed),
        "command": f"`python tools/pretrain_backbones.py {name} --seed {seed}`",
        "made with": f"PyTorch {torch.__version__.partition('+')[0]}, {platform.machine()}, one thread, "
        f"{seconds:.0f} s of processor time",
    }
    chance = f"{100 / 52:.1f} / {100 / 26:.1f} (chance)"
    accuracies = {
        "letters, new images of the training fonts (52 classes / case aside)": (letters(TRAIN_FONTS), chance),
        f"letters, {len(HELD_OUT_FONTS)} held-out fonts (52 classes / case aside)": (letters(HELD_OUT_FONTS), chance),
        "handwritten digits, test split, nearest class mean by cosine on frozen features": (
            f"{ncm_accuracy(backbone):.1f}",
            f"{ncm_accuracy(MAKERS[name](pretrained=False, seed=seed)):.1f}",
        ),
    }
    lines = [f"# {name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "| accuracy, % | pretrained | random weights |", "|---|---|---|"]
    lines += [f"| {key} | {ours} | {random} |" for key, (ours, random) in accuracies.items()]
    lines += ["", f"Held-out fonts: {', '.join(HELD_OUT_FONTS)}."]
    lines += [
        "Characters are scaled to one height, so that case is often undecidable (o and O): see the second figure."
    ]
    lines += [f"Classes of the head, in order: {''.join(LETTERS)}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MAKERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights and the card")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.process_time()
    backbone = pretrain(args.name, args.seed)
    seconds = time.process_time() - start
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{args.name}.safetensors"
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, file)
    text = card(args.name, backbone, args.seed, file_digest(file), seconds)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
