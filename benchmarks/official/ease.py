"""EASE's learner itself beside ours: its blocks with adapters, prototypes in every subspace, reweighted answers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .checkouts import Row
from .learners import Epochs, Recorded, bare, digits, embedded, modules, whole
from .shipped import dropout
from .toys import difference


def ease(tree: Path) -> list[Row]:
    """EASE's adapters, prototypes in every subspace and reweighted logits over three experiences."""
    experiences, tests = digits()
    found = {"adapters": 0.0, "prototypes": 0.0, "logits": 0.0}
    with modules(tree, "models.ease", "backbone.vit_ease", "backbone.linears", empty=("models", "backbone"),
                 more=("utils", "models.base")) as (module, vits, linears):
        ours = Recorded("ease", epochs=2, batch_size=8, r=8)
        body: Any = ours.method.backbone
        config = Namespace(ffn_adapt=True, ffn_option="parallel", ffn_adapter_layernorm_option="none", vpt_on=False, vpt_num=0,
                           ffn_adapter_init_option="lora", ffn_adapter_scalar="0.1", ffn_num=8, d_model=64, attn_bn=8,
                           _device="cpu")
        with mock.patch("builtins.print", lambda *a: None):
            vit = vits.VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0,
                                         num_classes=0, tuning_config=config)
        vit.load_state_dict(split_qkv(embedded().model.state_dict()), strict=False)
        for name, p in vit.named_parameters():
            p.requires_grad_("adapter" in name)
        net = _EaseNet(vit, body)
        args = {"optimizer": "sgd", "scheduler": "cosine", "init_epochs": 2, "later_epochs": 2}
        learner = bare(module.Learner, _network=net, _device=torch.device("cpu"), args=args, weight_decay=5e-4, min_lr=0.0,
                       init_cls=2, inc=2, moni_adam=False, use_init_ptm=False, use_exemplars=False, use_diagonal=False,
                       recalc_sim=True, alpha=0.1, beta=0.0)
        module.tqdm, module.tensor2numpy = Bar, lambda t: t.numpy()
        for k, exp in enumerate(experiences):
            learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
            method: Any = ours.method

            def copied(method: Any = method) -> None:
                net.proxy_fc = linears.CosineLinear(64, 2)
                with torch.no_grad():
                    net.proxy_fc.weight.copy_(method.temporary.weight)
                for (_, mine), theirs in zip(method.adapters.each(method.adapters.names[-1]), vit.cur_adapter, strict=True):
                    theirs.dropout = dropout()
                    for a, b in zip(pair(theirs), (mine.down, mine.up), strict=True):
                        a.load_state_dict(b.state_dict())

            ours.learn(exp, k, copied)
            optimizer = learner.get_optimizer(0.025)
            learner._init_train(Epochs(ours.epochs), None, optimizer, learner.get_scheduler(optimizer, 2))
            mine = [a for _, a in method.adapters.each(method.adapters.names[-1])]
            found["adapters"] = max(found["adapters"], difference(
                [p for a in mine for layer in (a.down, a.up) for p in layer.parameters()],
                [p for a in vit.cur_adapter for layer in pair(a) for p in layer.parameters()]))
            old = net.fc
            net.fc = linears.CosineLinear(64 * (k + 1), 2 * k + 2)
            net.fc.weight.data.zero_()
            if old is not None:
                net.fc.weight.data[: 2 * k, : 64 * k] = old.weight.data
            learner.train_dataset_for_protonet = Namespace(labels=exp.data.y.numpy())  # type: ignore[attr-defined]
            learner.replace_fc(whole(exp))
            table = method.prototypes.permute(1, 0, 2).flatten(1)
            found["prototypes"] = max(found["prototypes"], difference([table], [net.fc.weight.data]))
            with torch.no_grad():
                features = vit(body.preprocess(tests), test=True)
                theirs = net.fc.forward_reweight(features, k, 0.1, 0.0, 2, 2, 64)["logits"]
                found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [theirs]))
            with mock.patch("builtins.print", lambda *a: None):
                vit.add_adapter_to_list()
    return [Row("ease", "adapters of three experiences", found["adapters"], 2e-6),
            Row("ease", "prototypes in every subspace, old ones completed", found["prototypes"], 1e-5),
            Row("ease", "logits of 60 test images after each experience", found["logits"], 1e-5)]


def pair(adapter: Any) -> tuple[Any, Any]:
    """Down and up projection of an official adapter."""
    return adapter.down_proj, adapter.up_proj


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names and shapes as the official blocks have them: q, k and v apart, the MLP's layers in the block."""
    out = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                out[key.replace("qkv", f"{part}_proj")] = rows
        else:
            out[key.replace(".mlp.fc", ".fc")] = value
    return out


class _EaseNet(nn.Module):
    def __init__(self, vit: nn.Module, body: Any) -> None:
        super().__init__()
        self.vit, self.preprocess, self.out_dim = vit, body.preprocess, 64
        self.fc: Any = None
        self.proxy_fc: Any = None

    @property
    def backbone(self) -> Any:
        return Namespace(forward_proto=lambda x, adapt_index: self.vit.forward_proto(self.preprocess(x), adapt_index))  # type: ignore[operator]

    def forward(self, x: Tensor, test: bool = False) -> Any:
        return self.proxy_fc(self.vit(self.preprocess(x), test=test))


class Bar:
    """tqdm without drawing."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __iter__(self) -> Iterator[Any]:
        return iter(self.of)

    def set_description(self, text: str) -> None:
        return None
