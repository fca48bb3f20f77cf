"""Every linear tuner of Hugging Face PEFT (Mangrulkar et al., 2022, github.com/huggingface/peft) as an adapter kind."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UserError
from ..ranges import Text
from ._base import Adapter

__all__ = ["Peft"]

# What makes them start as a no-op, or what PEFT asks for without needing it here.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "c3a": {"init_weights": True}, "fourierft": {"init_weights": True}, "ia3": {"feedforward_modules": []},
}
# Those whose output is one matrix times the input and that need nothing outside their own layer. Others route by the
# input, move biases or share state between layers (VeRA, VB-LoRA, RandLoRA); prompt learning needs a Hugging Face model.
LINEAR = ("boft", "c3a", "delora", "fourierft", "gralora", "hira", "hra", "ia3", "loha", "lokr", "lora", "miss", "oft",
          "osf", "road", "shira", "waveft")


class Peft(Adapter):
    """PEFT's own layer around the frozen weight: LoHa, LoKr, OFT, BOFT, HRA, HiRA, FourierFT, SHiRA, IA3, ...

    The layer is shown the identity, and what it answers is the adapted weight: the kind works wherever a weight is
    adapted (groups of rows of a fused projection, convolutions as matrices, ``nn.MultiheadAttention``), merges exactly,
    and several of them can share one weight. What a tuner cuts out of its base weight when it starts (PiSSA, OSF) is
    remembered, so that switching it off restores the pretrained weight.

    ``lora``, ``dora``, ``pissa``, ``adalora``, ``corda`` and ``osft`` are also kinds of their own, because they must do
    what PEFT's do not: AdaLoRA's orthogonality term with models that return no ``loss``, OSFT's projection of factors.

    Args:
        tuner: PEFT's name of the tuner, in lower case.
        config: its configuration, e.g. ``{r: 4}``; ``target_modules`` is what ``at`` says.

    Raises:
        UserError: for an unknown tuner, or a configuration that PEFT refuses.
    """

    paper: ClassVar[str] = "Mangrulkar et al., PEFT, 2022"

    def __init__(self, weight: Tensor, tuner: Text = "loha", config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if tuner not in LINEAR:
            raise UserError(f"tuner={tuner!r} is none of {', '.join(LINEAR)}.")
        self.tuner, self.config = tuner, dict(config or {})
        self.host, cut = self.build(weight)
        self.register_buffer("cut", cut)

    def build(self, weight: Tensor) -> tuple[nn.Module, Tensor | None]:
        """PEFT's layer on ``weight`` (o, i) without a copy of it, and what it took from the weight at its start."""
        from peft import PeftType, inject_adapter_in_model
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
        base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        settings = {**_DEFAULTS.get(self.tuner, {}), **self.config}
        try:
            chosen = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.tuner.upper())](target_modules=["site"], **settings)
            host = inject_adapter_in_model(chosen, nn.Sequential(OrderedDict(site=base)))
        except (TypeError, ValueError) as fault:
            raise UserError(f"PEFT refuses {self.tuner} {self.config} on a weight {tuple(weight.shape)}: {fault}") from fault
        moved = base.weight.detach() - weight.detach()
        base.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)  # each pass lends the frozen weight
        return host, moved if weight.device.type != "meta" and bool(moved.any()) else None

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        host, cut = self.build(weight)
        for mine, fresh in zip((*self.host.parameters(), *self.host.buffers()), (*host.parameters(), *host.buffers()),
                               strict=True):
            mine.copy_(fresh)
        self.cut = cut

    def forward(self, weight: Tensor) -> Tensor:
        lent = weight if self.cut is None else weight + self.cut
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return functional_call(self.host, {"site.base_layer.weight": lent}, (eye,)).T

    def peft_state(self) -> tuple[dict[str, Tensor], Any]:
        """(tensors by their name below the layer, configuration) as PEFT stores them."""
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(self.host)
        return {k.removeprefix("site."): v for k, v in found.items()}, self.host.peft_config["default"]

    def read_peft_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over PEFT's tensors, named as in :meth:`peft_state`."""
        from peft import set_peft_model_state_dict

        answer = set_peft_model_state_dict(self.host, {f"site.{k}": v for k, v in tensors.items()})
        if answer.unexpected_keys:
            raise UserError(f"{self.tuner} has no tensor {answer.unexpected_keys[0]}.")

    @classmethod
    def count(cls, out: int, inp: int, tuner: str = "loha", config: dict[str, Any] | None = None, **settings: Any) -> int:
        made = cls(torch.zeros(out, inp), tuner, config)
        return sum(p.numel() for p in made.parameters() if p.requires_grad)
