"""The base of every test-time method: a deployed copy of the learned classifier that adapts itself while it answers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..heads import align_columns
from ..method import Method
from ..ranges import Amount, Count, Whole, hints
from ..state import moved
from ..types import Experience, LabelSpace, StreamFacts

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..heads import Head

__all__ = ["Deployed", "Learning", "TestTimeMethod"]

Learning: TypeAlias = Any  # of ``**learning``: learn_lr, epochs and batch_size as TestTimeMethod takes them

COUNTED = ("batches", "selected", "steps", "skipped", "nonfinite", "resets")


class Deployed(nn.Module):
    """A copy of a learned classifier, in evaluation mode and without gradients until a method asks for some.

    ``features``: images (N, 3, H, W) in [0, 1] to (N, d); ``classify``: features to logits; calling it does both.
    Logits are over ``space``, which is the head's unless :meth:`narrow` restricted it to the classes asked for
    (ImageNet-R asks 200 of 1,000: the others must not take part in an entropy).
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        # One copy of both: a head that is also the backbone's own layer stays one layer.
        self.backbone, self.head = copy.deepcopy((backbone, head))
        if len(list(self.parameters())) != len({id(p) for m in (backbone, head) for p in m.parameters()}):
            raise RuntimeError("the deployed copy does not share parameters as the learned model does")
        self.space = self.head.space
        self.eval()
        self.requires_grad_(False)

    @property
    def classes(self) -> int:
        """How many classes the logits have."""
        return len(self.space)

    @property
    def where(self) -> torch.device:
        """The device of the weights."""
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def features(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] to features (N, d), in the precision of the weights."""
        weight = next(self.parameters(), x)
        return self.backbone.forward_features(x.to(weight.dtype))

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, d) to logits (N, classes)."""
        return align_columns(self.head(features), self.head.space, self.space)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def narrow(self, space: LabelSpace) -> None:
        """Answer among the classes of ``space`` that the head knows, in the head's order."""
        wanted = set(space.ids)
        keep = [k for k, i in enumerate(self.head.space.ids) if i in wanted]
        names = self.head.space.names
        ids = tuple(self.head.space.ids[k] for k in keep)
        self.space = LabelSpace(ids, tuple(names[k] for k in keep) if names else ())


class TestTimeMethod(Method):
    """A method that adapts a deployed copy of its classifier to the unlabelled images of a test stream.

    Learning (``begin``, ``fit``, ``end``) works on ``backbone`` and ``head`` as in :class:`cl_bench.Method` and is
    never touched by adaptation. :meth:`deploy` copies them to ``self.model`` and lets the subclass :meth:`build` what
    it needs; ``begin`` of a further experience takes the deployed copy away again. Before any ``deploy``, ``predict``
    answers with the learned model as it is.

    A subclass writes :meth:`build` (norm mode -> parameters -> teachers and anchors -> ``self.optimise(...)``, in this
    order) and :meth:`adapt` (answer and adapt, one step). All state is kept in attributes: tensors, modules,
    ``torch.optim`` optimizers, plain containers, ``self.rng``; nothing else survives ``mark``/``reset`` or a file.

    Args:
        lr: step size of adaptation.
        optimizer: ``adam`` (betas 0.9, 0.999; the field's choice for CIFAR) or ``sgd`` (momentum 0.9; ImageNet).
        learn_lr, epochs, batch_size: how a classifier is learned where the scenario has experiences to learn. A subclass
            takes them as ``**learning: Learning`` and passes them on.

    Attributes:
        output: what :meth:`adapt` returns: ``logits``; ``logit_sum`` of two networks; ``scaled_logits`` (multiplied by
            a prior correction whose mean over classes is 1 / classes); ``probs``. ``predict`` converts all of them so
            that their softmax is a probability.
        nesterov: whether SGD uses Nesterov's momentum (the repositories differ).
        stream: how images will arrive (:class:`cl_bench.StreamFacts`); exists after ``deploy``, as all below.
        model: the deployed classifier (:class:`Deployed`).
        opt: its optimizer, if any.
        counts: plain integers: batches adapted to, samples selected by a filter, optimizer steps, steps skipped because
            no sample was selected, steps skipped because loss or gradient was not finite, resets by the method itself.
            Part of the state: ``reset()`` takes them back to the mark.
    """

    __test__ = False  # not a pytest class

    adapts: ClassVar[bool] = True
    family: ClassVar[str] = "test-time"
    output: ClassVar[Literal["logits", "logit_sum", "scaled_logits", "probs"]] = "logits"
    nesterov: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A constructor with ``**learning: Learning`` states the three options of learning as if it listed them."""
        made = cls.__dict__.get("__init__")
        if made is not None:
            own = inspect.signature(made)
            rest = [p for p in own.parameters.values() if p.kind is p.VAR_KEYWORD and p.annotation in ("Learning", Learning)]
            if rest:
                given, types = inspect.signature(TestTimeMethod.__init__).parameters, hints(TestTimeMethod)
                options = [given[name].replace(annotation=types[name]) for name in ("learn_lr", "epochs", "batch_size")]
                listed = [p for p in own.parameters.values() if p not in rest]
                made.__signature__ = own.replace(parameters=[*listed, *options])
                made.__annotations__ = {**{k: v for k, v in made.__annotations__.items() if k != rest[0].name},
                                        **{p.name: p.annotation for p in options}}
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        backbone: Backbone,
        *,
        lr: Amount = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        learn_lr: Amount = 1e-3,
        epochs: Whole = 5,
        batch_size: Count = 32,
    ) -> None:
        super().__init__(backbone, lr=lr, epochs=epochs, batch_size=batch_size)
        if optimizer not in ("adam", "sgd"):
            raise UserError(f"optimizer {optimizer!r} is not known; use adam or sgd.")
        self.optimizer, self.learn_lr = optimizer, learn_lr
        self.counts = dict.fromkeys(COUNTED, 0)
        self.last_loss, self.last_selected = 0.0, 0
        self._built: list[str] = []

    # ------------------------------------------------------------------ what a subclass writes
    def build(self, source: Experience | None) -> None:
        """Make ``self.model``, a fresh copy of what was learned, ready to adapt. ``source`` only where ``needs`` it."""

    def adapt(self, x: Tensor) -> Tensor:
        """Answer for images (N, 3, H, W) and adapt to them; gradients are on. Returns (N, model.classes)."""
        return self.outputs(x)

    def outputs(self, x: Tensor) -> Tensor:
        """What the current state answers without adapting, of the same kind as :meth:`adapt`; gradients are off."""
        return self.model(x)

    def narrowed(self) -> None:
        """Called when ``model.space`` has changed: start per-class state anew."""

    # ------------------------------------------------------------------ given
    def begin(self, exp: Experience) -> None:
        self.withdraw()
        super().begin(exp)

    def configure_optimizers(self) -> Any:
        """AdamW for learning; adaptation has an optimizer of its own."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.learn_lr)

    def deploy(self, source: Experience | None, stream: StreamFacts = StreamFacts()) -> None:  # noqa: B008 - frozen
        """Copy the learned classifier and build everything test-time from it, afresh.

        Raises:
            UserError: if the method needs source data and none was given.
        """
        if "source" in self.needs and source is None:
            raise UserError(f"{type(self).__name__} needs source data; choose a scenario that gives it.")
        self.withdraw()
        known = self._names()
        self.stream = stream
        self.model = Deployed(self.backbone, self.head)
        self.counts = dict.fromkeys(COUNTED, 0)
        with torch.enable_grad():
            self.build(source)
        self._built = sorted(self._names() - known)

    def withdraw(self) -> None:
        """Take the deployed copy and all that was built with it away; the learned model stays."""
        for name in self._built:
            delattr(self, name)
        self._built = []

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        """Adapt to images ``x`` and answer them in one step: logits (N, len(space))."""
        if not self._built:
            return self.answer(x, space)
        self._narrow(space)
        self.counts["batches"] += self.adapts
        with torch.enable_grad():
            out = self.adapt(x).detach()
        return align_columns(self._as_logits(out), self.model.space, space)

    @torch.no_grad()
    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        """Logits (N, len(space)) from the current state, adapting nothing."""
        if not self._built:
            return super().predict(x, space)
        self._narrow(space)
        return align_columns(self._as_logits(self.outputs(x)), self.model.space, space)

    def counters(self) -> dict[str, int | float]:
        """Plain numbers for the record: ``counts`` and the size of what is trained."""
        trained = sum(p.numel() for p in self.trained()) if hasattr(self, "opt") else 0
        return {**self.counts, "trained_parameters": trained}

    def optimise(self, *groups: Iterable[nn.Parameter]) -> None:
        """Train exactly these parameters: sets ``requires_grad``, ``self.opt`` and the values for :meth:`restart`.

        The first group is the deployed model's, further ones are extra modules' (a projector).
        """
        lists = [list(g) for g in groups]
        if not lists or not lists[0]:
            raise UserError(f"{type(self).__name__} found no parameter to adapt; it needs a network with norm layers.")
        for p in (p for g in lists for p in g):
            p.requires_grad_(True)
        self.opt = self._optimizer(lists)
        self.start = [p.detach().clone() for p in self.trained()]

    def _optimizer(self, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        described = [{"params": list(g)} for g in groups]
        if self.optimizer == "sgd":
            return torch.optim.SGD(described, lr=self.lr, momentum=0.9, nesterov=self.nesterov)
        return torch.optim.Adam(described, lr=self.lr)

    def trained(self) -> list[nn.Parameter]:
        """The adapted parameters of the deployed model."""
        return list(self.opt.param_groups[0]["params"])

    def restart(self) -> None:
        """A reset by the method itself: trained parameters as deployed, a fresh optimizer; counted."""
        with torch.no_grad():
            for p, value in zip(self.trained(), self.start, strict=True):
                p.copy_(value)
        self.opt = self._optimizer([g["params"] for g in self.opt.param_groups])
        self.counts["resets"] += 1

    def gradient(self, loss: Tensor, selected: Tensor | None = None) -> bool:
        """Fill fresh gradients of ``loss`` and say whether a step may follow.

        No step may follow where ``selected`` (a bool mask (N,)) selects nothing, or where the loss or its gradient is
        not finite; either is counted and leaves no gradient behind. Reads the device once and keeps what it read:
        ``last_loss`` and ``last_selected``.
        """
        self.opt.zero_grad()
        loss.backward()
        grads = [p.grad for g in self.opt.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        kept = torch.ones_like(norm) if selected is None else selected.sum().to(norm)
        self.last_loss, size, number = torch.stack((loss.detach().to(norm), norm, kept)).tolist()
        self.last_selected = int(number) if selected is not None else 0
        finite = math.isfinite(self.last_loss) and math.isfinite(size)
        fault = "skipped" if number == 0 else "" if finite else "nonfinite"
        if fault:
            self.counts[fault] += 1
            self.opt.zero_grad()
        return not fault

    def step(self, loss: Tensor, selected: Tensor | None = None) -> bool:
        """:meth:`gradient`, then one optimizer step if it may be taken; says whether it was."""
        if not self.gradient(loss, selected):
            return False
        self.take_step()
        return True

    def take_step(self) -> None:
        """The optimizer's step with the gradients at hand; counted. Gradients are cleared."""
        self.opt.step()
        self.opt.zero_grad()
        torch.clear_autocast_cache()  # mixed precision keeps copies of the weights until the whole batch is answered
        self.counts["steps"] += 1
        self.counts["selected"] += self.last_selected

    def _narrow(self, space: LabelSpace) -> None:
        have = self.model.space
        if space.ids == have.ids:
            return
        if not set(space.ids) <= set(self.model.head.space.ids) and self.model.head.can_answer(space):  # it reads names
            for module in self.modules():
                if isinstance(module, Deployed):
                    module.head.grow(space)
        wanted = {i for i in space.ids if i in self.model.head.space}
        if wanted and wanted != set(have.ids):
            self.model.narrow(space)
            for module in self.modules():  # teachers and anchors answer among the same classes
                if isinstance(module, Deployed):
                    module.narrow(space)
            self.narrowed()

    def _as_logits(self, out: Tensor) -> Tensor:
        if self.output == "probs":
            return out.clamp_min(torch.finfo(out.dtype).tiny).log()
        if self.output == "logit_sum":
            return out / 2
        if self.output == "scaled_logits":
            return out * out.shape[1]
        return out

    def _names(self) -> set[str]:
        return {*self.__dict__, *self._modules, *self._parameters, *self._buffers}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """``.to()`` and ``.double()`` also move plain tensors and optimizer state, which torch leaves behind."""
        super()._apply(fn, recurse)
        for name in self._built:
            if name in self.__dict__:
                self.__dict__[name] = moved(self.__dict__[name], fn)
        return self

