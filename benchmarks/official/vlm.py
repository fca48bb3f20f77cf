"""Official functions for CLIP on the embedded model: theirs are given its weights, the same images, the same draws."""

from __future__ import annotations

import importlib
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import LabelSpace, StreamFacts
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.data.digits import digits
from cl_bench.data.tensor import as_float
from cl_bench.registry import find
from cl_bench.testing import _engine as engine

from .checkouts import Row, importable

NAMES = tuple(f"digit {n}" for n in ("zero", "one", "two", "three", "four"))
SPACE = LabelSpace(tuple(range(5)), NAMES, ("a photo of a {}.",))
STAND_INS = ("clip.simple_tokenizer", "dassl", "data", "ipdb", "torchattacks", "tqdm", "utils", "ftfy", "regex",
             "trainers.imagenet_templates")  # fmt: skip
BOUND, STEPS = 1e-5, 3
WIDTH, HEADS = 64, 4  # of the text tower; heads of both


def embedded() -> VisionLanguageBackbone:
    """The embedded CLIP in double precision."""
    made: VisionLanguageBackbone = find("cl_bench.backbones", "glyph_clip")()
    return made.double()


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Handwritten digits 0 to 4 with their labels, in double precision."""
    data = digits("test")
    rows = (data.y < len(NAMES)).nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]
    return as_float(data.x[rows]).double(), data.y[rows]


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.detach().double() - b.detach().double()).abs().max())


@contextmanager
def theirs(tree: Path, replaced: dict[str, dict[str, str]] | None = None, names: tuple[str, ...] = STAND_INS) -> Iterator[Any]:
    """Inside, ``tree`` is imported from, its CLIP computes in double precision, and nothing is cast to half.

    Args:
        replaced: by file, text that stands for sizes of ViT-B/16, and what it is for the embedded model.
    """
    for file, pairs in (replaced or {}).items():
        text = (tree / file).read_text()
        for old, new in pairs.items():
            assert old in text, f"{file} has no {old}"
            text = text.replace(old, new)
        (tree / file).write_text(text)
    import packaging.version

    sys.modules.setdefault("pkg_resources", types.SimpleNamespace(packaging=packaging))  # type: ignore[arg-type]
    same = {"half": lambda self: self}
    with importable(tree, names), mock.patch.multiple(torch.Tensor, **same), mock.patch.multiple(nn.Module, **same), \
            mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self):  # fmt: skip
        yield


def sizes(backbone: VisionLanguageBackbone) -> Any:
    """Side of the image, blocks, width and patch of the image tower."""
    tower: Any = backbone.model
    return Namespace(side=tower.image_size[0], blocks=len(tower.transformer.resblocks), width=tower.conv1.out_channels,
                     patch=tower.conv1.kernel_size[0])  # fmt: skip


def official_clip(model: Any, backbone: VisionLanguageBackbone, **more: Any) -> Any:
    """``model.CLIP`` of a repository with the sizes and weights of ``backbone``; heads, width of the MLP and activation,
    which official code fixes, are set afterwards."""
    image, text = sizes(backbone), backbone.language
    made = model.CLIP(backbone.num_features, image.side, image.blocks, image.width, image.patch, backbone.context_length,
                      text.vocab_size, WIDTH, HEADS, len(text.transformer.resblocks), **more)  # type: ignore[union-attr, arg-type]
    model.LayerNorm.forward = nn.LayerNorm.forward
    for tower in (made.visual.transformer, made.transformer):
        for block in tower.resblocks:
            width = block.attn.embed_dim
            block.attn.num_heads, block.attn.head_dim = HEADS, width // HEADS
            block.mlp = nn.Sequential(OrderedDict(
                c_fc=nn.Linear(width, 2 * width), gelu=nn.GELU(), c_proj=nn.Linear(2 * width, width)))  # fmt: skip
    if isinstance(backbone.model.ln_pre, nn.Identity):
        made.visual.ln_pre = nn.Identity()
    unexpected = made.load_state_dict(backbone.whole_state(), strict=False).unexpected_keys
    assert not unexpected, unexpected
    made.visual.input_resolution = image.side
    return made.double().eval().requires_grad_(False)


def tokens(backbone: VisionLanguageBackbone) -> Any:
    """Their ``tokenize`` with our vocabulary."""
    return lambda texts, **kw: backbone.tokenize([texts] if isinstance(texts, str) else list(texts))


class Scaler:
    """A gradient scaler that scales by 1."""

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, optimizer: Any) -> None:
        optimizer.step()

    def update(self) -> None:
        return None


# ----------------------------------------------------------------------------------------------------- test time
def _tuned(tree: Path, name: str, script: str, what: str) -> list[Row]:
    backbone = embedded()
    method = engine.built(find("cl_bench.methods", name), backbone, {"views": 32, "share": 0.2})
    method.deploy(None, StreamFacts(1, SPACE))
    method.double().eval()
    method._narrow(SPACE)
    method.restart_memory()
    shown, _ = images(32)
    f = F.normalize(method.model.features(shown), dim=-1)
    ours, logits = method.tuned(f), method.score(f, method.text)
    with theirs(tree):
        custom, model = importlib.import_module("clip.custom_clip"), importlib.import_module("clip.model")
        official = official_clip(model, backbone)
        if hasattr(custom, "ImageNormalizer"):  # R-TPT normalises inside, with OpenAI's numbers
            custom.mu, custom.std = (0.5,) * 3, (0.5,) * 3
        with mock.patch.multiple(custom, load=lambda *a, **k: (official, 64, None), tokenize=tokens(backbone)):
            tuning = custom.ClipTestTimeTuning("cpu", NAMES, None, n_ctx=4, ctx_init="a_photo_of_a")
        if name == "c_tpt":
            tuning.l2_norm_cal = True
        tuning.double().requires_grad_(False)
        tuning.prompt_learner.ctx.requires_grad_(True)
        optimizer = torch.optim.AdamW([tuning.prompt_learner.ctx], 5e-3)
        args = Namespace(cocoop=False, tta_steps=1, selection_p=0.2, run_type="tpt_ctpt" if name == "c_tpt" else "tpt",
                         two_step=False, lambda_term=50.0)  # fmt: skip
        run = importlib.import_module(script)
        entered = backbone.preprocess(shown)
        if name == "r_tpt":
            entered = entered * backbone.std + backbone.mean  # at the tower's size, and not yet normalised
        run.test_time_tuning(tuning, entered, optimizer, Scaler(), args)
        with torch.no_grad():
            want = tuning(entered)
        if name == "r_tpt":
            score = run.get_top_sim((f @ f.T)[None].masked_fill(torch.eye(len(f), dtype=torch.bool), 1.0))
            want = ((score / 0.01).softmax(-1) @ want)[0]
        else:
            want = want[0]
        context = tuning.prompt_learner.ctx
    return [Row(what, "context words after one step on 32 images as views", apart(ours, context), BOUND),
            Row(what, "the answer, logits", apart(logits, want), BOUND)]


def tpt(tree: Path) -> list[Row]:
    """TPT's test_time_tuning."""
    return _tuned(tree, "tpt", "tpt_classification", "tpt")


def c_tpt(tree: Path) -> list[Row]:
    """C-TPT's test_time_tuning."""
    return _tuned(tree, "c_tpt", "tpt_classification", "c_tpt")


def r_tpt(tree: Path) -> list[Row]:
    """R-TPT's test_time_tuning and its ensemble."""
    return _tuned(tree, "r_tpt", "rtpt", "r_tpt")


# ----------------------------------------------------------------------------------------------------- prompts
def ours(name: str, backbone: VisionLanguageBackbone, **options: Any) -> Any:
    """Our method in double precision, as it is when an experience has begun."""
    torch.manual_seed(0)
    method = engine.built(find("cl_bench.methods", name), backbone, options)
    method.seen = method.current = SPACE
    method.learned = True
    return method.double()


def stepped(loss: Any, parameters: list[Tensor], lr: float) -> None:
    """Steps of SGD with momentum 0.9 on three batches, which must move the parameters."""
    before = parameters[0].detach().clone()
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=5e-4)
    for k in range(STEPS):
        optimizer.zero_grad()
        loss(*images(8, k)).backward()
        optimizer.step()
    assert apart(before, parameters[0]) > 1e-6, "nothing moved"


def coop(tree: Path) -> list[Row]:
    """CoOp's prompt learner and text encoder."""
    backbone = embedded()
    mine = ours("coop", backbone, words=4)
    shown, _ = images(16, 9)
    with theirs(tree):
        trainer, model = importlib.import_module("trainers.coop"), importlib.import_module("clip.model")
        cfg = Namespace(TRAINER=Namespace(COOP=Namespace(N_CTX=4, CTX_INIT="", CSC=False, CLASS_TOKEN_POSITION="end")),
                        INPUT=Namespace(SIZE=(sizes(backbone).side,) * 2))  # fmt: skip
        with mock.patch.object(trainer.clip, "tokenize", tokens(backbone)):
            other = trainer.CustomCLIP(cfg, NAMES, official_clip(model, backbone)).double()
        other.requires_grad_(False)
        other.prompt_learner.ctx.data.copy_(mine.context.data)
        other.prompt_learner.ctx.requires_grad_(True)
        start = apart(other(backbone.preprocess(shown)), mine.predict(shown, SPACE))
        stepped(lambda x, y: F.cross_entropy(other(backbone.preprocess(x)), y), [other.prompt_learner.ctx], 2e-3)
        stepped(lambda x, y: mine.training_step(types.SimpleNamespace(x=x, y=y), 0), [mine.context], 2e-3)
        end = apart(other(backbone.preprocess(shown)), mine.predict(shown, SPACE))
    return [Row("coop", "logits of 16 images at the start", start, BOUND),
            Row("coop", f"logits after {STEPS} steps", end, BOUND)]


def _multimodal(tree: Path, name: str, section: str, file: str, module: str) -> list[Row]:
    backbone = embedded()
    mine = ours(name, backbone)
    shown, _ = images(16, 9)
    side = sizes(backbone).side
    written = {"768": str(sizes(backbone).width), "torch.empty(n_ctx, 512)": f"torch.empty(n_ctx, {WIDTH})"}
    if name == "coprompt":
        written["Adapter(512, 4)"] = f"Adapter({backbone.num_features}, 4)"
    depth = len(mine.deeper) + 1
    with theirs(tree, {file: written}), mock.patch.object(sys.modules[find("cl_bench.methods", "coprompt").__module__],
            "cropped", lambda x, *a: x):  # fmt: skip
        trainer, model = importlib.import_module(module), importlib.import_module("clip.model")
        settings = Namespace(N_CTX=2, CTX_INIT="a photo of a", PROMPT_DEPTH=depth, PREC="fp32")
        cfg = Namespace(TRAINER=Namespace(**{section: settings}, DISTILL="cosine", W=1.0), INPUT=Namespace(SIZE=(side, side)),
                        DATASET=Namespace(NAME="Caltech101"))  # fmt: skip
        design = {"trainer": section if name == "coprompt" else "MaPLe", "vision_depth": 0, "language_depth": 0,
                  "vision_ctx": 0, "language_ctx": 0, "maple_length": 2}  # fmt: skip
        official = official_clip(model, backbone, design_details=design)
        with mock.patch.object(trainer.clip, "tokenize", tokens(backbone)):
            if name == "coprompt":
                plain = official_clip(model, backbone, design_details=design | {"trainer": "CoOp"})
                told = torch.stack([mine_plain(backbone)])
                other = trainer.CustomCLIP(cfg, NAMES, official, plain, told)
            else:
                other = trainer.CustomCLIP(cfg, NAMES, official)
        other = other.double().requires_grad_(False)
        learner = other.prompt_learner
        pairs = [(learner.ctx, mine.context), *zip(learner.compound_prompts_text, mine.deeper, strict=True)]
        maps = [learner.proj, *learner.compound_prompt_projections]
        pairs += [pair for a, b in zip(maps, mine.maps, strict=True) for pair in ((a.weight, b.weight), (a.bias, b.bias))]
        if name == "coprompt":
            mine.plain = [told[0]]
            for a, b in ((other.adapter_image, mine.on_image), (other.adapter_text, mine.on_text)):
                pairs += [(a.fc[k].weight, b[k].weight) for k in (0, 2)]
        for a, b in pairs:
            a.data.copy_(b.data)
            a.requires_grad_(True)
        learner.eval()
        start = apart(other(backbone.preprocess(shown)), mine.predict(shown, SPACE))
        learner.train()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x = backbone.preprocess(x)
            return other(x, x, y) if name == "coprompt" else other(x, y)

        stepped(loss, [a for a, _ in pairs], 3.5e-3)
        stepped(lambda x, y: mine.training_step(types.SimpleNamespace(x=x, y=y), 0), [b for _, b in pairs], 3.5e-3)
        learner.eval()
        end = apart(other(backbone.preprocess(shown)), mine.predict(shown, SPACE))
    return [Row(name, f"logits of 16 images at the start, prompts in {depth} blocks", start, BOUND),
            Row(name, f"logits after {STEPS} steps", end, BOUND)]


def mine_plain(backbone: VisionLanguageBackbone) -> Tensor:
    """Features of other sentences about the classes."""
    return backbone.encode_tokens(backbone.tokenize([f"a picture of a {n}." for n in NAMES])).detach()


def maple(tree: Path) -> list[Row]:
    """MaPLe's prompts in both towers."""
    return _multimodal(tree, "maple", "MAPLE", "trainers/maple.py", "trainers.maple")


def coprompt(tree: Path) -> list[Row]:
    """CoPrompt's prompts, adapters and consistency."""
    return _multimodal(tree, "coprompt", "CoPrompt", "trainers/coprompt.py", "trainers.coprompt")
