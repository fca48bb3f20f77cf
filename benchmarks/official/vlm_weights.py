"""Official CLIP-SVD, R-AMT, MoE-Adapters, PROOF and ENGINE on the embedded CLIP, beside ours."""

from __future__ import annotations

import importlib
import types
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.registry import find
from cl_bench.testing import _engine as engine

from .checkouts import Row
from .vlm import BOUND, HEADS, NAMES, SPACE, STAND_INS, STEPS, apart, embedded, images, official_clip, sizes, theirs


def _batch(x: Tensor, y: Tensor) -> Any:
    return types.SimpleNamespace(x=x, y=y)


def _logits(clip: Any, backbone: Any, x: Tensor) -> Tensor:
    """Logits of an official model for the classes."""
    words = backbone.tokenize([SPACE.templates[0].format(n) for n in NAMES])
    text, image = F.normalize(clip.encode_text(words), dim=-1), F.normalize(clip.encode_image(backbone.preprocess(x)), dim=-1)
    return backbone.logit_scale * image @ text.T


def clip_svd(tree: Path) -> list[Row]:
    """Attention split into its maps, every linear decomposed, three steps of AdamW on the singular values."""
    backbone, shown = embedded(), images(16, 9)[0]
    torch.manual_seed(0)
    mine = engine.built(find("cl_bench.methods", "clip_svd"), embedded(), {"weight_decay": 0.0, "lr": 1e-3})
    mine.seen = mine.current = SPACE
    with theirs(tree):
        model, split = importlib.import_module("clip.model"), importlib.import_module("svf_utils.PlainHeadAttention")
        clip = official_clip(model, backbone)
        for tower in (clip.visual.transformer, clip.transformer):
            for block in tower.resblocks:
                plain = split.PlainMultiHeadAttention(embed_dim=block.attn.embed_dim, num_heads=HEADS).double()
                plain.set_parameters(block.attn)
                block.attn = plain
        clip = importlib.import_module("svf_utils.svf_torch").resolver(clip.double()).double()
        values = [p for n, p in clip.named_parameters() if "vector_S" in n]
        for p in clip.parameters():
            p.requires_grad_(False)
        for p in values:
            p.requires_grad_(True)
        start = apart(_logits(clip, backbone, shown), mine.predict(shown, SPACE))
        sides = [(values, lambda x, y: F.cross_entropy(_logits(clip, backbone, x), y)),
                 (mine.trained(), lambda x, y: mine.training_step(_batch(x, y), 0))]  # fmt: skip
        for parameters, loss in sides:
            optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
            for k in range(STEPS):
                optimizer.zero_grad()
                loss(*images(8, k)).backward()
                optimizer.step()
        end = apart(_logits(clip, backbone, shown), mine.predict(shown, SPACE))
        assert max(float(p.abs().max()) for p in mine.trained()) > 1e-4, "nothing moved"
    return [Row("clip_svd", f"logits of 16 images at the start, {len(values)} matrices decomposed", start, BOUND),
            Row("clip_svd", f"logits after {STEPS} steps of AdamW without decay", end, BOUND),
            Row("clip_svd", "how many singular values are trained", float(abs(sum(p.numel() for p in values) - sum(
                p.numel() for p in mine.trained()))), 0.0)]  # fmt: skip


def ramt(tree: Path) -> list[Row]:
    """The masked image tower, and the gradient of its scores after the drop, step by step."""
    backbone, shown = embedded(), images(16, 9)[0]
    rate = 2e-3  # at the published one no score crosses the level in three steps
    mine = engine.built(find("cl_bench.methods", "ramt"), embedded(), {"lr": rate})
    mine.seen = mine.current = SPACE
    written = {"d_model * 4": "d_model * 2", "QuickGELU()": "nn.GELU()"}
    with theirs(tree / "code", {"modules/visiontransformer.py": written}, (*STAND_INS, "datasets", "loss")):
        importlib.import_module("dassl.engine").TRAINER_REGISTRY.register.return_value = lambda cls: cls
        model = importlib.import_module("clip.model")
        model.LayerNorm.forward = nn.LayerNorm.forward
        trainer, vision = importlib.import_module("trainers.masktuning"), importlib.import_module("modules.visiontransformer")
        origin = official_clip(model, backbone).visual
        image = sizes(backbone)
        tower = vision.MaskVisionTransformer(image.side, image.patch, image.width, image.blocks, HEADS, backbone.num_features,
                                             mask_init="1s", threshold=5e-3, mask_mlp=False)  # fmt: skip
        if isinstance(origin.ln_pre, nn.Identity):
            tower.ln_pre = nn.Identity()
        made = types.SimpleNamespace(vit=True, image_encoder=tower, shared=None)
        with mock.patch.object(nn.Sequential, "add_module", lambda *a: None):
            trainer.MASKCLIP.make_model(made, origin)
        tower = tower.double()
        scores = {n: p for n, p in tower.named_parameters() if "mask_real" in n}
        for n, p in tower.named_parameters():
            p.requires_grad_(n in scores)
        text, scale = mine.head.embeddings(SPACE).double().detach(), backbone.logit_scale.detach()
        ours = dict(zip(sorted(scores), _in_their_order(mine, sorted(scores)), strict=True))
        optimizers = [torch.optim.Adam(list(scores.values()), lr=rate), torch.optim.Adam(mine.trained(), lr=rate)]
        kl, worst, start = trainer.KLLoss(T=1.0), 0.0, 0.0
        shell = types.SimpleNamespace(
            _models={"m": tower}, _optims={"m": optimizers[0]}, get_model_names=lambda names: ["m"],
            model_zero_grad=lambda names: optimizers[0].zero_grad(), detect_anomaly=lambda v: None,
        )  # fmt: skip
        for k in range(STEPS):
            x, y = images(8, k)
            draws = {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(100 * k + i)).double()
                     for i, (n, p) in enumerate(sorted(scores.items()))}  # fmt: skip
            tower.train()
            logits = scale * F.normalize(tower(backbone.preprocess(x)), dim=-1) @ text.T
            before = scale * F.normalize(origin(backbone.preprocess(x)), dim=-1) @ text.T
            loss = F.cross_entropy(logits, y) + 1e-4 * sum(torch.norm(p.view(-1), 2) for p in scores.values())
            with mock.patch.object(torch, "rand", side_effect=[draws[n] for n, _ in tower.named_parameters() if n in scores]):
                trainer.MaskTuning.graddrop_backward_and_update(shell, loss, kl(logits, before, y), 1.0)
            optimizers[1].zero_grad()
            own = mine.training_step(_batch(x, y), 0)
            start = max(start, apart(own, loss))
            own.backward()
            at = {id(p): draws[n] for n, p in ours.items()}
            with mock.patch.object(torch, "rand", side_effect=[at[id(p)].reshape(p.shape) for p in mine.trained()]):
                mine.on_after_backward()
            for n, p in scores.items():
                worst = max(worst, apart(p.grad, ours[n].grad.reshape(p.shape)))  # type: ignore[arg-type, union-attr]
            optimizers[1].step()
        tower.eval()
        end = apart(scale * F.normalize(tower(backbone.preprocess(shown)), dim=-1) @ text.T, mine.predict(shown, SPACE))
        off = sum(int((p <= 5e-3).sum()) for p in scores.values())
    return [Row("ramt", f"loss in {STEPS} steps", start, BOUND),
            Row("ramt", "gradients of the scores after the drop, same draws", worst, BOUND),
            Row("ramt", f"logits of 16 images with the masks learned ({off} weights off)", end, BOUND)]


def _in_their_order(mine: Any, names: list[str]) -> list[Tensor]:
    """Our scores where theirs stand."""
    at = {key: adapter.score for key, adapter in mine.masks.each()}
    return [at[n.removesuffix(".mask_real")] for n in names]


def moe_adapters(tree: Path) -> list[Row]:
    """Both towers with experts, routers of two experiences and random weights."""
    backbone, shown = embedded(), images(16, 9)[0]
    torch.manual_seed(0)
    mine = engine.built(find("cl_bench.methods", "moe_adapters"), embedded(), {"experts": 6, "bottleneck": 64})
    for _ in range(2):
        for m in mine.mixtures():
            m.grow(next(mine.backbone.parameters()))
    with theirs(tree / "mtil"):
        model = importlib.import_module("clip.model")
        args = Namespace(task_id=1, apply_moe=True, is_train=False, topk=2, experts_num=6, ffn_adapt=True, ffn_num=64,
                         ffn_option="parallel", autorouter=True, ffn_adapt_where="AdapterDoubleEncoder")  # fmt: skip
        clip = official_clip(model, backbone, args=args)
        blocks = [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]
        for block, m in zip(blocks, mine.mixtures(), strict=True):
            for e, other in enumerate(block.adaptmlp_list):
                for part in (m.down[e], m.up[e]):
                    nn.init.normal_(part.weight, std=0.2)
                for a, b in ((other.down_proj, m.down[e]), (other.up_proj, m.up[e])):
                    a.weight.data, a.bias.data = b.weight.data.double().clone(), b.bias.data.double().clone()
            for r, gate in enumerate(m.gates):
                nn.init.normal_(gate)
                block.router_list[r].data.copy_(gate.data)
        mine.double()
        rows = list[Row]()
        words = backbone.tokenize([SPACE.templates[0].format(n) for n in NAMES])
        for router in (-1, 0, 1):
            mine.route(router)
            image = apart(clip.encode_image(backbone.preprocess(shown), router), mine.backbone.forward_features(shown))
            text = apart(clip.encode_text(words, router), mine.backbone.encode_tokens(words))
            what = f"router {router}" if router >= 0 else "no router"
            rows += [Row("moe_adapters", f"image features of 16 images, {what}", image, BOUND),
                     Row("moe_adapters", f"text features of {len(NAMES)} classes, {what}", text, BOUND)]
    return rows


def c3box(tree: Path) -> list[Row]:
    """PROOF's attention and losses, and ENGINE's Gaussian over two experiences."""
    fusion, gaussian = (importlib.import_module(f"cl_bench_methods.vision_language.{m}") for m in ("_fusion", "_gaussian"))
    rng = torch.Generator().manual_seed(0)
    names = (*STAND_INS[:-3], "sympy", "matplotlib", "easydict", "ipdb", "utils.data_manager", "utils.data")
    names = tuple(n for n in names if n not in ("data", "utils"))
    with theirs(tree, None, names):
        projections = importlib.import_module("backbone.projections")
        attention = projections.MultiHeadAttention(1, 16, 16, 16, dropout=0.1).double().eval()
        mine = fusion.Fusion(16).double().eval()
        pairs = ((mine.q, attention.w_qs), (mine.k, attention.w_ks), (mine.v, attention.w_vs), (mine.out, attention.fc),
                 (mine.norm, attention.layer_norm))  # fmt: skip
        for a, b in pairs:
            a.load_state_dict(b.state_dict())
        sequence = torch.randn(4, 9, 16, generator=rng, dtype=torch.float64)
        rows = [Row("proof", "attention over 9 tokens", apart(attention(sequence, sequence, sequence), mine(sequence)), BOUND)]
        net = importlib.import_module("utils.inc_net")
        loss = importlib.import_module("utils.toolkit").ClipLoss()
        v, image, w, text, proto = (torch.randn(n, 16, generator=rng, dtype=torch.float64) for n in (4, 4, 3, 3, 3))
        v, w, y = F.normalize(v, dim=-1), F.normalize(w, dim=-1), torch.tensor([0, 1, 2, 1])
        scale = torch.tensor(14.0, dtype=torch.float64)
        want = F.cross_entropy(image @ text.T, y) + F.cross_entropy(image @ proto.T, y) + loss(v, w[y], scale)
        rows.append(Row("proof", "loss of a batch", apart(fusion.proof_loss(image, text, proto, v, w, y, scale), want), BOUND))
        shell = types.SimpleNamespace(visual_forward_=lambda x: x)
        parts = [(torch.randn(40, 16, generator=rng, dtype=torch.float64), torch.arange(40) % 3 + 3 * k) for k in range(2)]
        with mock.patch.object(torch, "eye", _double(torch.eye)), mock.patch.object(torch, "ones", _double(torch.ones)):
            for k, (h, labels) in enumerate(parts):
                net.Engine.update_stat(shell, 3 * k, 3 * k + 3, [(None, h, labels)], "cpu")
    centres, inverse = gaussian.gaussian_of(F.normalize(parts[0][0], dim=-1), parts[0][1], [0, 1, 2])
    mu, other = gaussian.gaussian_of(F.normalize(parts[1][0], dim=-1), parts[1][1], [3, 4, 5])
    inverse, centres = gaussian.merged(centres, inverse, mu, other), torch.cat([centres, mu])
    h = F.normalize(torch.randn(8, 16, generator=rng, dtype=torch.float64), dim=-1)
    got = gaussian.gaussian_scores(h, centres, inverse)
    relative = apart(inverse, shell.cov_inv) / float(inverse.abs().max())
    rows += [Row("engine", "inverse covariance after two experiences, relative", relative, BOUND),
             Row("engine", "scores of 8 features", apart(got, F.normalize(h @ shell.W + shell.b, dim=-1)), BOUND)]  # fmt: skip
    return rows


def _double(make: Any) -> Any:
    return lambda *a, **k: make(*a, **{"dtype": torch.float64, **k})
