"""CODA-Prompt's learner, and L2P's and DualPrompt's, themselves beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .aper import VIT
from .checkouts import Row
from .ease import Bar
from .learners import Epochs, Recorded, bare, digits, embedded, looking, modules, ncm, on_the_cpu
from .toys import difference


class Named(Epochs):
    """The recorded epochs as (images, labels, task)."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(x, y, y) for _, x, y in super().__iter__()])


def seeing(vit: Any) -> Any:
    """An official network with the embedded weights, behind our preprocessing."""
    state = {k: v for k, v in embedded().model.state_dict().items() if not k.startswith("head")}
    told = vit.load_state_dict(state, strict=False)
    if told.unexpected_keys:
        raise ValueError(f"{told.unexpected_keys} have no place in the official network")
    looking(vit)
    return vit.requires_grad_(False)


def both(tree: Path) -> list[Row]:
    """CODA-Prompt's repository: its own learner, and its DualPrompt."""
    names = "learners.prompt", "learners.default", "models.zoo", "models.vit"
    with modules(tree, *names, empty=("learners", "models", "utils")) as (module, default, zoo, vits), on_the_cpu():
        default.accumulate_acc = lambda *a, **kw: None
        return [*coda(module, zoo, vits), *dualprompt(module, zoo, vits)]


def learner_of(cls: Any, zoo: Any, vits: Any, kind: str, prompt: nn.Module, epochs: int, told: Any) -> tuple[Any, Any]:
    """An official learner on the embedded network under ``prompt``, and the network."""
    shape = {k: v for k, v in VIT.items() if k != "num_classes"}
    net = bare(zoo.ViTZoo, feat=seeing(vits.VisionTransformer(**shape)), last=nn.Linear(64, 6), prompt_flag=kind, task_id=None,
               prompt=prompt).double()
    config = {"schedule": [epochs], "gpuid": [-1], "lr": 0.01, "weight_decay": 0.0, "optimizer": "Adam", "momentum": 0.9}
    return bare(cls, log=told, config=config, model=net, reset_optimizer=True, overwrite=True, gpu=False, dw=False, top_k=1,
                schedule_type="cosine", schedule=[epochs], memory_size=0, task_count=0, last_valid_out_dim=0,
                criterion_fn=nn.CrossEntropyLoss(reduction="none"), dw_k=torch.ones(7), data_weighting=lambda data: None), net


def same_rows(method: Any, last: Any, known: int) -> None:
    """The head's newest two rows, ours to theirs."""
    with torch.no_grad():
        last.weight[known - 2 : known] = method.head.weight[known - 2 : known]
        last.bias[known - 2 : known] = method.head.bias[known - 2 : known]


def coda(module: Any, zoo: Any, vits: Any) -> list[Row]:
    """Components, keys, attentions, head, rates and logits over three experiences of two components each."""
    experiences, tests = digits()
    found = {"parts": 0.0, "head": 0.0, "logits": 0.0}
    ours = Recorded("coda_prompt", epochs=3, batch_size=8, pool=6, tasks=3, lr=0.01)
    method: Any = ours.method
    rates, mine_rates = list[float](), list[float]()

    def told(*words: Any) -> None:
        rates.extend([words[1]] if words[0] == "LR:" else [])

    learner, net = learner_of(module.CODAPrompt, zoo, vits, "coda", zoo.CodaPrompt(64, 3, [6, 8, 0.0], key_dim=64), 3, told)
    step = method.__dict__["training_step"]

    def watched(batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            mine_rates.append(method.trainer.optimizers[0].param_groups[0]["lr"])
        return step(batch, batch_idx)

    method.__dict__["training_step"] = watched
    for k, exp in enumerate(experiences):
        known = learner.valid_out_dim = 2 * k + 2
        if k:
            net.prompt.process_task_count()

        def copied(known: int = known) -> None:
            with torch.no_grad():
                for name, parts in (("p", method.P), ("k", method.K), ("a", method.A)):
                    for layer, mine in enumerate(parts[-1]):
                        getattr(net.prompt, f"e_{name}_{layer}")[known - 2 : known] = mine
            same_rows(method, net.last, known)

        ours.learn(exp, k, copied)
        learner.learn_batch(Named(ours.epochs), None, "")
        for name, parts in (("p", method.P), ("k", method.K), ("a", method.A)):
            mine = torch.cat(list(parts), 1)
            theirs = torch.stack([getattr(net.prompt, f"e_{name}_{layer}")[:known] for layer in range(3)])
            found["parts"] = max(found["parts"], difference([mine], [theirs]))
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias],
                                                      [net.last.weight[:known], net.last.bias[:known]]))
        with torch.no_grad():
            found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [net(tests)[:, :known]]))
    shown = ", ".join(f"{r:.5f}" for r in rates[:3])
    return [Row("coda_prompt", f"rates of nine epochs ({shown} in each experience)",
                max(abs(a - b) for a, b in zip(mine_rates, rates, strict=True)), 1e-12),
            Row("coda_prompt", "components, keys and attentions of three layers", found["parts"], 2e-6),
            Row("coda_prompt", "head", found["head"], 2e-6),
            Row("coda_prompt", "logits of 60 test images after each experience", found["logits"], 1e-5)]


def dualprompt(module: Any, zoo: Any, vits: Any) -> list[Row]:
    """CODA-Prompt's DualPrompt has keys per layer; on three blocks one layer has E-prompts, and so one set of keys, as in the
    authors' own code. Its key loss is a sum over the batch of eight, and its rate that of CODA-Prompt's schedule."""
    experiences, tests = digits()
    found = {"prompts": 0.0, "keys": 0.0, "head": 0.0, "logits": 0.0}
    ours = Recorded("dualprompt", epochs=1, batch_size=8, lr=0.01, pull=8.0, clip=1e9, e_at=r"blocks\.2\.attn")
    method: Any = ours.method
    prompt = zoo.DualPrompt(64, 3, [3, 10, 10], key_dim=64)
    learner, net = learner_of(module.DualPrompt, zoo, vits, "dual", prompt, 2, lambda *words: None)
    learner.config["schedule"] = [1]  # the schedule of two epochs has a full rate in the first
    for k, exp in enumerate(experiences):
        known = learner.valid_out_dim = 2 * k + 2
        net.task_id = k

        def copied(k: int = k, known: int = known) -> None:
            with torch.no_grad():
                for layer in (0, 1):
                    getattr(prompt, f"g_p_{layer}").copy_(method.g[layer].flatten(0, 1))
                prompt.e_p_2[k] = method.e[-1][0].flatten(0, 1)
                prompt.e_k_2[k] = method.keys[-1]
            same_rows(method, net.last, known)

        ours.learn(exp, k, copied)
        learner.learn_batch(Named(ours.epochs), None, "")
        mine = [method.g[0].flatten(0, 1), method.g[1].flatten(0, 1), *(e[0].flatten(0, 1) for e in method.e)]
        found["prompts"] = max(found["prompts"], difference(mine, [prompt.g_p_0, prompt.g_p_1, *prompt.e_p_2[: k + 1]]))
        found["keys"] = max(found["keys"], difference(list(method.keys), list(prompt.e_k_2[: k + 1])))
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias],
                                                      [net.last.weight[:known], net.last.bias[:known]]))
        prompt.e_pool_size, kept = k + 1, prompt.e_k_2
        prompt.e_k_2 = nn.Parameter(kept[: k + 1].detach())  # keys of tasks to come are drawn there, and could be nearest
        with torch.no_grad():
            found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [net(tests)[:, :known]]))
        prompt.e_k_2 = kept
    told = {"prompts": "G- and E-prompts over three experiences", "keys": "keys", "head": "head",
            "logits": "logits of 60 test images after each experience"}
    return [Row("dualprompt", told[key], value, 1e-5 if key == "logits" else 2e-6) for key, value in found.items()]


class Looked(nn.Module):
    """PILOT's frozen query network: ours, unprompted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = embedded().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pre_logits": self.body.forward_features(x)}


def pilot(tree: Path) -> list[Row]:
    """PILOT: SimpleCIL and L2P."""
    return [*ncm(tree), *l2p(tree)]


def l2p(tree: Path) -> list[Row]:
    """Prompts, keys, head and logits over three experiences. PILOT's prompts have a learned position, here zero as in the
    authors' JAX code; it votes over a test batch too, so it is asked image by image."""
    experiences, tests = digits()
    found = {"prompts": 0.0, "keys": 0.0, "head": 0.0, "logits": 0.0}
    unused = "models.base", "utils.inc_net"
    with modules(tree, "models.l2p", "backbone.vit_l2p", empty=("models", "utils", "backbone"), more=unused) as (module, vits):
        module.tqdm = Bar
        ours = Recorded("l2p", epochs=2, batch_size=8, lr=0.01, pool=6, length=3, top_k=2, clip=1e9)
        method: Any = ours.method
        vit = vits.VisionTransformer(**{**VIT, "num_classes": 6}, prompt_length=3, prompt_pool=True,
                                     prompt_key=True, pool_size=6, top_k=2, batchwise_prompt=True, head_type="prompt")
        state = {k: v for k, v in embedded().model.state_dict().items() if not k.startswith("head")}
        place = state.pop("pos_embed")
        vit.load_state_dict(state, strict=False)
        vit.pos_embed.data = torch.cat([place[:, :1], torch.zeros(1, 6, 64), place[:, 1:]], 1)
        looking(vit)
        for name, p in vit.named_parameters():
            p.requires_grad_(name.startswith(("prompt", "head")))
        net = nn.Module()
        net.backbone, net.original_backbone = vit, Looked()

        def answered(x: Tensor, task_id: int = -1, train: bool = False) -> Any:
            return vit(x, task_id=task_id, cls_features=net.original_backbone(x)["pre_logits"], train=train)

        net.forward = answered  # PromptVitNet.forward
        args = {"optimizer": "adam", "scheduler": "constant", "tuned_epoch": 2, "pull_constraint": True,
                "pull_constraint_coeff": 1.0, "prompt_pool": True, "shared_prompt_pool": False, "shared_prompt_key": False,
                "reinit_optimizer": False}
        learner = bare(module.Learner, _network=net, _device=torch.device("cpu"), args=args, init_lr=0.01, weight_decay=0.0,
                       _compute_accuracy=lambda *a: 0.0)
        for k, exp in enumerate(experiences):
            learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2

            def copied(k: int = k) -> None:
                with torch.no_grad():
                    vit.prompt.prompt.copy_(method.prompts)
                    vit.prompt.prompt_key.copy_(method.keys)
                same_rows(method, vit.head, 2 * k + 2)

            ours.learn(exp, k, copied)
            learner._train(Epochs(ours.epochs), None)
            known = 2 * k + 2
            found["prompts"] = max(found["prompts"], difference([method.prompts], [vit.prompt.prompt]))
            found["keys"] = max(found["keys"], difference([method.keys], [vit.prompt.prompt_key]))
            found["head"] = max(found["head"], difference([method.head.weight, method.head.bias],
                                                          [vit.head.weight[:known], vit.head.bias[:known]]))
            vit.eval()
            with torch.no_grad():
                theirs = torch.cat([net.forward(one)["logits"][:, :known] for one in tests.split(1)])
                found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [theirs]))
    told = {"prompts": "prompts over three experiences", "keys": "keys", "head": "head",
            "logits": "logits of 60 test images after each experience, one by one"}
    return [Row("l2p (PILOT)", told[key], value, 1e-5 if key == "logits" else 2e-6) for key, value in found.items()]
