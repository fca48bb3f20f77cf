"""InfLoRA's and SD-LoRA's learners themselves beside ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from cl_bench import Batch

from .aper import VIT
from .checkouts import Row
from .ease import Bar
from .learners import Epochs, Recorded, bare, digits, embedded, looking, modules, on_the_cpu, whole
from .toys import difference


def inflora(tree: Path) -> list[Row]:
    """Starts, trained updates, spaces kept and logits over three experiences, at two shares of the energy: one whose spaces
    grow, and one whose spaces are replaced by their complements."""
    unused = "methods.base", "ipdb", "sklearn.cluster", "models.zoo"
    names = "methods.inflora", "models.vit_inflora", "models.sinet_inflora"
    with (modules(tree, *names, empty=("methods", "models", "utils"), more=unused) as (module, vits, nets), on_the_cpu()):
        module.tqdm = Bar
        module.deepcopy = lambda matrix: matrix.numpy().copy()  # numpy's svd of a tensor no longer gives arrays
        return [row for lamda in (0.5, 0.9999) for row in low_rank(lamda, module, vits, nets)]


def low_rank(lamda: float, module: Any, vits: Any, nets: Any) -> list[Row]:
    experiences, tests = digits()
    ours = Recorded("inflora", epochs=3, batch_size=8, r=4, lamda=lamda, tasks=3, lr=0.005)
    method: Any = ours.method
    vit = nets.ViT_lora_co(**VIT, n_tasks=3, rank=4, weight_init="skip")
    vit.load_state_dict(embedded().model.state_dict(), strict=False)
    looking(vit)
    for part in vit.modules():
        if isinstance(part, vits.Attention_LoRA):
            part.init_param()
    net = bare(nets.SiNet, image_encoder=vit, class_num=2, numtask=0,
               classifier_pool=nn.ModuleList([nn.Linear(64, 2) for _ in experiences]))
    learner = bare(module.InfLoRA, _network=net, _device=torch.device("cpu"), _multiple_gpus=[0], optim="adam", init_lr=0.005,
                   lrate=0.005, init_epoch=3, epochs=3, init_weight_decay=0.0, weight_decay=0.0, lamb=lamda, lame=1.0,
                   total_sessions=3, debug=False, feature_list=[], project_type=[])
    found, spaces, wrong = {"updates": 0.0, "head": 0.0, "bases": 0.0, "logits": 0.0}, list[str](), 0
    start = {at: method.adapters.weight(at).clone() for at in method.adapters.sites}
    for k, exp in enumerate(experiences):
        learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
        net.update_fc(2 * k + 2)

        def copied(k: int = k) -> None:
            with torch.no_grad():
                net.classifier_pool[k].weight.copy_(method.head.weight[2 * k : 2 * k + 2])
                net.classifier_pool[k].bias.copy_(method.head.bias[2 * k : 2 * k + 2])

        ours.learn(exp, k, copied)
        data = [Batch(x, y) for _, x, y in whole(exp)]
        learner._train(Epochs([data, *ours.epochs, data]), None)
        parts = [m for m in vit.modules() if isinstance(m, vits.Attention_LoRA)]
        kept_now = zip(start.items(), parts, learner.feature_list, learner.project_type, strict=True)
        for (at, before), part, basis, kind in kept_now:
            moved = method.adapters.weight(at) - before
            theirs = torch.cat([torch.zeros(64, 64), *(sum(b.weight @ a.weight for a, b in zip(left, right, strict=True))
                                for left, right in ((part.lora_A_k, part.lora_B_k), (part.lora_A_v, part.lora_B_v)))])
            found["updates"] = max(found["updates"], difference([moved], [theirs]))
            mine, kept = method.bases[at], torch.as_tensor(basis)
            wrong += method.complement[at] != (kind == "retain") or mine.shape != kept.shape
            if mine.shape == kept.shape:
                found["bases"] = max(found["bases"], difference([mine @ mine.T], [kept @ kept.T]))
        spaces.append("/".join(f"{b.shape[1]}{'c' if t == 'retain' else ''}" for b, t in
                               zip(learner.feature_list, learner.project_type, strict=True)))
        heads = [torch.cat([getattr(c, name) for c in net.classifier_pool[: k + 1]]) for name in ("weight", "bias")]
        found["head"] = max(found["head"], difference([method.head.weight, method.head.bias], heads))
        with torch.no_grad():
            found["logits"] = max(found["logits"], difference([method.predict(tests, method.seen)], [net.interface(tests)]))
    told = {"updates": "updates of keys and values after each of three experiences", "head": "heads",
            "bases": "projections on the spaces kept", "logits": "logits of 60 test images after each experience"}
    what = f"inflora, lamda={lamda}"
    exact = f"spaces of another size or kind; columns per block and experience {', '.join(spaces)} (c: complement)"
    return [Row(what, exact, float(wrong), 0.0),
            *(Row(what, told[key], value, 2e-6 if key != "bases" else 1e-5) for key, value in found.items())]


def sdlora(tree: Path) -> list[Row]:
    """Directions, magnitudes, head and logits over three experiences."""
    experiences, tests = digits()
    found = {"directions": 0.0, "magnitudes": 0.0, "head": 0.0, "logits": 0.0}
    evaluated = 0.0
    unused = "models.base", "einops", "backbone.base_vit"
    with (modules(tree, "models.sdlora", "backbone.lora", "utils.inc_net", empty=("models", "backbone", "utils"), more=unused)
          as (module, loras, nets), on_the_cpu(), tempfile.TemporaryDirectory() as where,
          mock.patch("torch.load", lambda file, real=torch.load: real(file, weights_only=False))):
        module.tqdm = Bar
        ours = Recorded("sdlora", epochs=2, batch_size=8, r=4, lr=0.05)
        method: Any = ours.method
        net = bare(nets.IncrementalNet, backbone=None, fc=None, model_type="vit", _device=torch.device("cpu"))
        args = {"init_epoch": 2, "epochs": 2, "init_lr": 0.05, "lrate": 0.05, "init_milestones": [99], "milestones": [99],
                "init_lr_decay": 0.1, "lrate_decay": 0.1, "filepath": f"{where}/", "increment": 2}
        learner = bare(module.Learner, _network=net, _device=torch.device("cpu"), _multiple_gpus=[0], args=args,
                       _compute_accuracy=lambda *a: 0.0)

        def fresh(index: bool) -> Any:
            plain = looking(embedded().model)
            made = loras.LoRA_ViT_timm(vit_model=plain.eval(), r=4, num_classes=10, index=index, increment=2,
                                       filepath=f"{where}/", cur_task_index=learner._cur_task)
            made.out_dim = 64
            return made

        for k, exp in enumerate(experiences):
            learner._cur_task, learner._known_classes, learner._total_classes = k, 2 * k, 2 * k + 2
            begun = fresh(index=k == 0)  # here and not in `copied`, where nothing is written into weights as shipped
            if k == 0:
                net.backbone = begun
            net.update_fc(2 * k + 2)

            def copied(k: int = k, begun: Any = begun) -> None:
                groups = [a for _, a in method.adapters.each(method.adapters.names[-1])]
                with torch.no_grad():
                    for a, b, mine in zip(begun.w_As, begun.w_Bs, groups, strict=True):
                        a.weight.copy_(mine.A)
                        b.weight.copy_(mine.B)
                    net.fc.weight[2 * k :] = method.head.weight[2 * k :]
                    net.fc.bias[2 * k :] = method.head.bias[2 * k :]

            ours.learn(exp, k, copied)
            learner.update_network = lambda index=True, made=begun: made
            learner._train(Epochs(ours.epochs), None)
            newest = [a for _, a in method.adapters.each(method.adapters.names[-1])]
            pairs = [(mine, theirs.weight) for a, down, up in zip(newest, net.backbone.w_As, net.backbone.w_Bs, strict=True)
                     for mine, theirs in ((a.A, down), (a.B, up))]
            found["directions"] = max(found["directions"], difference(*zip(*pairs, strict=True)))
            mine = [next(a for _, a in method.adapters.each(name)).magnitude for name in method.adapters.names]
            theirs = [*(p.param for p in net.backbone.wrapped_param_prev[:k]), net.backbone.wrapped_param[0].param]
            found["magnitudes"] = max(found["magnitudes"], difference([m.reshape(1) for m in mine], theirs))
            found["head"] = max(found["head"], difference([method.head.weight, method.head.bias], [net.fc.weight, net.fc.bias]))
            with torch.no_grad():
                answer = method.predict(tests, method.seen)
                found["logits"] = max(found["logits"], difference([answer], [net(tests)["logits"]]))
        torch.save(torch.zeros(20, 20), f"{where}/scaling_factor2.pt")  # is read there and not used
        vit = net.backbone.base_vit
        for at, block in enumerate(vit.blocks):
            block.attn.qkv = loras._LoRA_qkv_timm_eval(3, block.attn.qkv, *saved(where), at, 4, net.backbone.wrapped_param,
                                                       net.backbone.wrapped_param_prev, f"{where}/")
        with torch.no_grad():
            other = net.fc(vit.forward_head(vit.forward_features(tests), pre_logits=True))["logits"]
            evaluated = float((answer - other).abs().max())
    told = {"directions": "A and B after each of three experiences", "magnitudes": "magnitudes, one per task",
            "head": "head", "logits": "logits of 60 test images after each experience"}
    return [*(Row("sdlora", told[key], value, 2e-6) for key, value in found.items()),
            Row("sdlora", "logits by the class for evaluation", evaluated, 1e-3,
                expected="that class overwrites the sum of directions with the newest")]


def saved(where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The directions of three tasks as they were written."""
    found = [{f"saved_{side.upper()}_{k}": torch.load(f"{where}/lora_w_{side}_{k}.pt") for k in range(3)} for side in "ab"]
    return found[0], found[1]

