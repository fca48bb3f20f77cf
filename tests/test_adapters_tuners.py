"""PEFT's own tuners as a kind: what they are on a plain PEFT model they are here, saved, read and merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cl_bench import Backbone, LabelSpace, Method
from cl_bench.adapters import FUSED4, attach, load_peft, save_peft
from cl_bench.backbones.base import Preprocess
from cl_bench.errors import UserError

peft = pytest.importorskip("peft")

from test_adapters import images, keeps_its_promises, stir, vit  # noqa: E402

from cl_bench.adapters.peft_tuner import LINEAR  # noqa: E402

AT = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
CONFIGS: dict[str, dict[str, Any]] = {
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 24},
    "fourierft": {"n_frequency": 20},
    "miss": {"r": 4},
    "oft": {"oft_block_size": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "waveft": {"n_frequency": 20},
}
pytestmark = [pytest.mark.filterwarnings("ignore")]  # of PEFT's about kernels that it does not find


@pytest.mark.parametrize("tuner", LINEAR)
def test_a_tuner_starts_as_a_no_op_switches_off_and_merges_exactly(tuner: str) -> None:
    torch.manual_seed(0)
    model, x = vit().double(), images().double()
    before = model(x)
    adapters = attach(model, "peft", FUSED4, tuner=tuner, config=CONFIGS.get(tuner))
    trained = [p for p in adapters.parameters() if p.requires_grad]
    assert all(g is not None for g in torch.autograd.grad(model(x).sum(), trained))
    keeps_its_promises(model, x, before, adapters)


@pytest.mark.parametrize("tuner", LINEAR)
def test_peft_reads_what_a_tuner_writes_and_back(tmp_path, tuner: str) -> None:
    torch.manual_seed(0)
    model, x = vit(), images()
    adapters = attach(model, "peft", AT, tuner=tuner, config=CONFIGS.get(tuner))
    stir(adapters)
    expected = model(x)
    save_peft(adapters, tmp_path)
    theirs = peft.PeftModel.from_pretrained(vit(), str(tmp_path)).eval()
    assert torch.allclose(theirs(x), expected, atol=1e-4), "PEFT's model answers otherwise"
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = vit()
    load_peft(again, tmp_path / "theirs")
    assert torch.allclose(again(x), expected, atol=1e-4)


def test_a_tuner_sits_where_pefts_own_wrapper_cannot() -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(12, 3, batch_first=True).eval(), torch.randn(2, 5, 12)
    block = nn.Sequential(layer)
    before = layer.in_proj_weight.detach().clone()
    adapters = attach(block, "peft", "0", rows=("q", "v"), tuner="hra", config={"r": 4})
    stir(adapters)
    moved = layer.in_proj_weight - before
    assert moved[:12].abs().max() > 1e-3 < moved[24:].abs().max() and moved[12:24].abs().max() < 1e-6, "keys are not adapted"
    answer = layer(x, x, x)[0]
    twin = copy.deepcopy(block)
    adapters.merge_()
    assert torch.allclose(layer(x, x, x)[0], answer, atol=1e-5) and torch.allclose(twin[0](x, x, x)[0], answer, atol=1e-6)


def test_singular_starts_restore_the_pretrained_weight_when_off() -> None:
    torch.manual_seed(0)
    model, x = vit(), images()
    before = model(x)
    adapters = attach(model, "peft", FUSED4, tuner="lora", config={"r": 4, "init_lora_weights": "pissa"})
    assert all(a.cut is not None for _, a in adapters.each()), "PiSSA takes its part out of the weight"
    assert torch.allclose(model(x), before, atol=1e-4)
    stir(adapters)
    with adapters.off():
        assert torch.equal(model(x), before)


class Tuned(Method):
    def __init__(self, backbone: Backbone, *, tuner: str = "loha") -> None:
        super().__init__(backbone)
        self.tuner = tuner
        self.adapters = attach(backbone, "peft", FUSED4, tuner=tuner, config=CONFIGS.get(tuner))


def test_a_checkpoint_carries_a_tuner() -> None:
    from cl_bench.engine.checkpoint import restore, snapshot

    def build(tuner: str) -> Tuned:
        torch.manual_seed(0)
        return Tuned(Backbone(vit(), num_features=24, preprocess=Preprocess(8)), tuner=tuner).eval()

    for tuner in ("loha", "oft", "osf", "fourierft", "shira"):
        method, x = build(tuner), images()
        method.head.grow(LabelSpace((0, 1)))
        stir(method.adapters)
        twin = restore(*snapshot(method), build(tuner)).eval()
        assert torch.equal(twin(x), method(x)), tuner


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="is none of"):
        attach(vit(), "peft", FUSED4, tuner="vera")
    with pytest.raises(UserError, match="PEFT refuses loha"):
        attach(vit(), "peft", FUSED4, tuner="loha", config={"rank": 4})
