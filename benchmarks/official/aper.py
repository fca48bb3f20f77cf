"""APER's five forms themselves beside ours: tuned on the first experience, then prototypes on both networks together."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkouts import Row
from .ease import Bar, pair, split_qkv
from .learners import Epochs, Recorded, Trunk, bare, digits, embedded, modules, on_the_cpu, whole
from .shipped import dropout
from .toys import difference

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 0}
LEARNERS = {"adapter": "aper_adapter", "ssf": "aper_ssf", "vpt_shallow": "aper_vpt", "vpt_deep": "aper_vpt",
            "finetune": "aper_finetune"}


class Seen(nn.Module):
    """An official network behind our preprocessing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.see, self.out_dim = body, embedded().preprocess, 64

    def forward(self, x: Tensor, *args: Any, **kw: Any) -> Any:
        return self.body(self.see(x), *args, **kw)


def aper(tree: Path) -> list[Row]:
    """What the first session tuned, prototypes and logits of all five forms after three experiences."""
    rows = list[Row]()
    experiences, tests = digits()
    names = [f"models.{name}" for name in sorted(set(LEARNERS.values()))]
    convs = ["convs.vision_transformer_adapter", "convs.vision_transformer_ssf", "convs.vpt"]
    unused = "models.base", "convs.resnet", "timm.models.helpers"
    with modules(tree, *names, *convs, "utils.inc_net", empty=("models", "convs", "utils"), more=unused) as found, on_the_cpu():
        learners, (adapters, ssf, vpt, nets) = dict(zip(names, found, strict=False)), found[len(names):]
        nets.get_convnet = lambda args, pretrained=True: Trunk(embedded()).requires_grad_(False)
        Trunk.out_dim = 64  # type: ignore[attr-defined]
        for pet, name in LEARNERS.items():
            module = learners[f"models.{name}"]
            module.tqdm = Bar
            ours = Recorded("aper", pet=pet, epochs=2, batch_size=8)
            method: Any = ours.method
            tuned, match = official(pet, method, adapters, ssf, vpt)
            net = bare(nets.SimpleVitNet, convnet=tuned, fc=None)
            args = {"convnet_type": f"vit_{pet.partition('_')[0]}".replace("_finetune", ""), "init_cls": 2, "tuned_epoch": 2,
                    "optimizer": "sgd", "device": ["cpu"]}
            learner = bare(module.Learner, _network=net, _device=torch.device("cpu"), args=args, init_lr=0.01, min_lr=0.0,
                           weight_decay=5e-4, _compute_accuracy=lambda *a: 0.0)
            parts: list[tuple[Tensor, Tensor]] = []
            for k, exp in enumerate(experiences):
                def copied(net: Any = net, method: Any = method, match: Any = match, k: int = k, parts: Any = parts) -> None:
                    if k == 0:
                        net.fc = nets.CosineLinear(64, 2)
                        net.fc.weight.data.copy_(method.temporary.weight)
                        parts[:] = match()
                        for mine, theirs in parts:
                            theirs.data.copy_(mine.data)

                ours.learn(exp, k, copied)
                learner._cur_task, learner.train_dataset = k, Namespace(labels=exp.data.y.numpy())  # type: ignore[attr-defined]
                if k:
                    learner._network.update_fc(2 * k + 2)
                learner._train(Epochs(ours.epochs) if k == 0 else None, None, whole(exp))
            with torch.no_grad():
                mine = method.predict(tests, method.seen)
                theirs = learner._network.eval()(tests)["logits"]
            head = method.head
            moved = difference(*zip(*parts, strict=True))
            rows += [Row(f"aper {pet}", f"{len(parts)} tensors tuned on the first experience", moved, 2e-6),
                     Row(f"aper {pet}", "prototypes", difference([head.sums / head.counts[:, None]],
                                                                 [learner._network.fc.weight.data]), 2e-6),
                     Row(f"aper {pet}", "logits of 60 test images", difference([mine], [theirs]), 2e-6)]
    return rows


def official(pet: str, method: Any, adapters: Any, ssf: Any, vpt: Any) -> tuple[nn.Module, Any]:
    """The official network with the embedded weights, and what pairs our tuned tensors with its own."""
    state = embedded().model.state_dict()
    each = list(method.adapters.each("default")) if hasattr(method, "adapters") else []
    if pet == "finetune":
        tuned: nn.Module = Trunk(copy.deepcopy(method.backbone))
        return tuned, lambda: list(zip(method.backbone.model.parameters(), tuned.body.model.parameters(), strict=True))  # type: ignore[union-attr, operator]
    if pet == "adapter":
        config = Namespace(ffn_adapt=True, ffn_option="parallel", ffn_adapter_layernorm_option="none", vpt_on=False, vpt_num=0,
                           ffn_adapter_init_option="lora", ffn_adapter_scalar="0.1", ffn_num=64, d_model=64)
        body = adapters.VisionTransformer(**VIT, tuning_config=config)
        told = body.load_state_dict(split_qkv(state), strict=False)
        for name, p in body.named_parameters():
            p.requires_grad_(name in told.missing_keys)
        for block in body.blocks:
            block.adaptmlp.dropout = dropout()
        return Seen(body), lambda: [
            both for (_, a), block in zip(each, body.blocks, strict=True)
            for mine, theirs in zip((a.down, a.up), pair(block.adaptmlp), strict=True)
            for both in zip(mine.parameters(), theirs.parameters(), strict=True)]
    if pet == "ssf":
        body = ssf.VisionTransformer(**VIT, weight_init="skip")
        body.load_state_dict(state, strict=False)
        return Seen(body), lambda: [both for at, a in each for both in scaled(body, at, a)]
    body = vpt.VPT_ViT(**VIT, Prompt_Token_num=5, VPT_type="Deep" if pet == "vpt_deep" else "Shallow")
    body.load_state_dict(state, strict=False)
    body.Freeze()
    # ours is a tensor per block, theirs one tensor of all blocks
    return Seen(body), lambda: [(a.prompt, body.Prompt_Tokens[k]) for k, (_, a) in enumerate(each) if len(a.prompt)]


PLACES = {"patch_embed.proj": ("patch_embed", 1), "norm": ("", 1), "norm1": ("", 1), "norm2": ("", 2), "attn.qkv": ("attn", 1),
          "attn.proj": ("attn", 2), "mlp.fc1": ("mlp", 1), "mlp.fc2": ("mlp", 2)}


def scaled(body: nn.Module, at: str, adapter: Any) -> list[tuple[Tensor, Tensor]]:
    """Our scale and shift at a layer, and the official block's."""
    block, _, layer = at.partition(".") if at.startswith("blocks") else ("", "", at)
    if block:
        number, _, layer = layer.partition(".")
        block = f"blocks.{number}"
    inside, k = PLACES[layer]
    owner = body.get_submodule(".".join(part for part in (block, inside) if part))
    return [(adapter.gamma, getattr(owner, f"ssf_scale_{k}")), (adapter.beta, getattr(owner, f"ssf_shift_{k}"))]
