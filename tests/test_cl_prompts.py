"""Prompt pools, prefixes and components, against attention written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cl_vit_toys import backbone, build, experience, images, learned

from cl_bench import UserError
from cl_bench.engine.meter import Meter
from cl_bench.registry import find


def test_l2p_puts_prompts_before_the_class_token_and_reads_their_mean() -> None:
    method = learned("l2p")
    x, model = images(), method.backbone.model
    with torch.no_grad():
        cosine = F.normalize(method.query(x), dim=1) @ F.normalize(method.keys, dim=1).T
        ids = cosine.topk(4, 1).indices
        tokens = model._pos_embed(model.patch_embed(x))
        tokens = torch.cat([method.prompts[ids].flatten(1, 2), tokens], 1)
        for block in model.blocks:
            tokens = block.layer(tokens)
        by_hand = method.head(model.norm(tokens)[:, :8].mean(1))
    assert torch.allclose(method.predict(x, method.seen), by_hand, atol=1e-5)
    votes = method.choose(
        torch.tensor(
            [[9.0, 8, 7, 6, 0, 0, 0, 0, 0, 1], [9, 8, 7, 0, 6, 0, 0, 0, 0, 1], [9, 8, 0, 7, 6, 0, 0, 0, 0, 1]]
        ),
        together=True,
    )
    assert (votes == votes[0]).all() and {0, 1} <= set(votes[0].tolist())


def test_l2p_costs_as_many_images_as_it_sees() -> None:
    method, x = learned("l2p"), images()
    meter = Meter()
    meter.attach(method.backbone, x[:1])
    method.prompted(x, together=True)[0].sum().backward()
    assert (meter.forward_images, meter.backward_images) == (2 * len(x), len(x)), "the query and the prompted pass"


def test_dualprompt_prefixes_are_extra_keys_and_values() -> None:
    from cl_bench.adapters._attention import attend

    layer, x = backbone().model.blocks[0].attn, torch.randn(2, 5, 24)
    far = torch.full((3, 24), -1e4) * torch.ones(3, 24)
    layer.eval()
    plain = layer(x)
    q = layer.qkv(x).chunk(3, -1)[0]
    silent = -1e4 * q.sign()[:, :1]  # the first query's keys of score minus infinity
    got = attend(layer, x, silent, torch.zeros(2, 1, 24))
    assert torch.allclose(got[:, 0], plain[:, 0], atol=1e-5), "a key that nothing attends to changes nothing"
    assert not torch.allclose(attend(layer, x, far, torch.ones(3, 24)), plain, atol=1e-3)
    doubled = attend(layer, x, *layer.qkv(x).chunk(3, -1)[1:])
    assert torch.allclose(doubled, plain, atol=1e-5), "each key twice leaves attention as it was"
    from cl_bench.adapters import attach

    method = learned("dualprompt")
    assert len(method.e) == len(method.keys) == 2
    assert [p.requires_grad for p in method.e] == [False, True]
    with torch.no_grad():  # the nearest key says which E-prompt is used
        method.keys[0].copy_(method.query(images()).mean(0))
        method.keys[1].copy_(-method.keys[0])
        assert torch.allclose(method(images()), method.prompted(images(), method.e[0]), atol=1e-5)
    with pytest.raises(UserError, match="no attention"):
        bad = attach(backbone(), type(next(iter(method.general.each()))[1]), r"blocks\.0\.mlp")
        slot = next(iter(bad.each()))[1]
        slot.lent = torch.zeros(2, 1, 24)
        next(iter(bad.sites.values()))(torch.zeros(1, 5, 24))


def test_coda_components_start_orthonormal_and_old_ones_are_frozen() -> None:
    method = learned("coda_prompt", count=1)
    method.begin(experience(1))
    for parts in (method.P, method.K, method.A):
        new = parts[1].detach().flatten(2)
        old = parts[0].detach().flatten(2)
        for layer in range(2):
            assert torch.allclose(new[layer] @ new[layer].T, torch.eye(2), atol=1e-5)
            assert (new[layer] @ old[layer].T).abs().max() < 2e-2, "new rows start orthogonal to the old ones"
        assert [p.requires_grad for p in parts] == [False, True]
    q = torch.randn(3, 24)
    k, a, p = (torch.cat(list(z), 1)[0] for z in (method.K, method.A, method.P))
    weight = F.cosine_similarity(q[:, None] * a[None], k[None], dim=2)
    expected = (weight[:, :, None, None] * p[None]).sum(1)
    keys, values = method.prefixes(q)[0]
    assert torch.allclose(torch.cat([keys, values], 1), expected, atol=1e-5) and keys.shape == (3, 4, 24)
    with pytest.raises(UserError, match="multiple of tasks"):
        build("coda_prompt", tasks=3)
    for k in range(2, 5):
        method.begin(experience(k))
    with pytest.raises(UserError, match="are used"):
        method.begin(experience(5))


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_prompt_heads_start_at_zero_as_flax_does(name: str) -> None:
    method = build(name)
    method.begin(experience(0))
    assert not method.head.weight.any() and not method.head.bias.any()


@pytest.mark.parametrize("name", ["coda_prompt", "inflora"])
def test_the_scenario_says_how_many_experiences_there_are(name: str) -> None:
    kw = {"at": r"blocks\.\d+\.attn"} if name == "coda_prompt" else {"r": 4}
    method = find("cl_bench.methods", name)(backbone(), epochs=1, **kw)
    method.plan(20)
    assert method.planned == 20
    fixed = find("cl_bench.methods", name)(backbone(), tasks=5, **kw)
    with pytest.raises(UserError, match="5"):
        fixed.plan(6)
    one = find("cl_bench.methods", name)(backbone(), tasks=1, **kw)
    one.begin(experience(0))
    if name == "inflora":
        one.end(experience(0))
    with pytest.raises(UserError):
        one.begin(experience(1))
