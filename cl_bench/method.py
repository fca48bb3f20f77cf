"""The contract of a method: one class, a LightningModule, that learns experiences and answers for images."""

from __future__ import annotations

import copy
from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import ranks
from .errors import UserError, refuse
from .heads import Head, LinearHead, align_columns, columns_of
from .ranges import Amount, Count, Whole, bounded
from .rng import Rng
from .state import HARNESS, own
from .types import Batch, Experience, LabelSpace, StreamFacts

if TYPE_CHECKING:
    from .backbones import Backbone

__all__ = ["Method"]


class Method(LightningModule):
    """Learns a sequence of experiences and answers for test images.

    A subclass writes down its algorithm and nothing else. Every hyper-parameter is a keyword of ``__init__`` with the
    published default, kept under its own name; there is no config object. The base class is a working method: it
    fine-tunes the backbone and a growing linear head with cross-entropy.

    The runner calls ``plan(number of experiences)`` once; then, per experience, ``begin(exp)`` -> Lightning's ``fit``
    (``training_step``, ``configure_optimizers`` and any other Lightning hook) for ``epochs_for(exp)`` epochs ->
    ``end(exp)``. For a test stream it calls ``deploy(source, stream)`` once and then ``predict`` for each arriving batch.

    What a method can see: images and labels of the experience at hand, what it stored itself, and the images of test
    batches. It never holds a test set, test labels, or an identity of the experience behind a test image.

    Attributes:
        needs: what the scenario must reveal (``Scenario.gives``).
        adapts: True for test-time adaptation: ``predict`` changes the model.
        family, paper: shown by ``cl-bench list methods``.
        reference: what tables show beside methods and never as one of them: ``upper bound``, ``lower bound`` or
            ``no adaptation``. Empty for a method that competes; a subclass competes unless it says so itself.
        shares_batches: declared by each class for itself: several processes may share its batches. Its loss is a mean over
            the rows of a batch (beside terms that no row enters), what it keeps of a batch is of ``whole(batch)``, and what it
            adds to one is ``share``d.
        presets: published values for other data than the defaults', by name: ``{"imagenet": {"lr": 2.5e-4}}``; a suite or
            ``--method.preset NAME`` chooses one, and the record says which.
        exempt: checks of :mod:`cl_bench.testing` that do not apply, each with its reason; printed by the checker.
        backbone: images (N, 3, H, W) in [0, 1] to features (N, num_features).
        head: features to logits over ``head.space``.
        rng: the method's own generators, ``self.rng.on(device)``; seeded by the runner. ``predict`` must draw from
            these alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    adapts: ClassVar[bool] = False
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    shares_batches: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    exempt: ClassVar[dict[str, str]] = {}
    WIRING: ClassVar[frozenset[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass that overrides what is final, however it does so: the engine's promises rest on it."""
        super().__init_subclass__(**kwargs)
        bounded(cls)
        for name, kind in FACTS.items():
            if not isinstance(value := getattr(cls, name), kind):
                refuse(cls, f"{cls.__name__}.{name} is a {type(value).__name__}: it is a fact of the class and must be a "
                            f"{kind.__name__.lower()}.")
        for name in FINAL:
            if getattr(cls, name) is not getattr(Method, name):
                refuse(cls, f"{cls.__name__} overrides {name}, which is final: a method adapts and answers in predict "
                            "and learns in training_step; remove it.")

    @bounded
    def __init__(self, backbone: Backbone, *, lr: Amount = 1e-3, epochs: Whole = 5, batch_size: Count = 32) -> None:
        super().__init__()
        self.lr, self.epochs, self.batch_size = lr, epochs, batch_size
        self.backbone = backbone
        self.head: Head = self.make_head()
        self.rng = Rng()
        self.seen = LabelSpace()
        self.current = LabelSpace()

    def make_head(self) -> Head:
        """The classifier: the one that came with the weights where there is one, else a growing linear head."""
        return self.backbone.make_head()

    # ------------------------------------------------------------------ learning
    def plan(self, experiences: int) -> None:
        """Before any work: how many experiences the scenario will bring, for methods that divide something among them.

        Raises:
            UserError: if that does not fit the method's own settings.
        """

    def begin(self, exp: Experience) -> None:
        """Before optimizers exist: grow the head, add an adapter. Call ``super().begin(exp)``."""
        self.current = exp.space
        self.seen = self.seen | exp.space
        if self.head.misnamed(exp.space):  # a classifier that came with the weights, for classes of other names
            self.head = LinearHead(self.backbone.num_features).to(self.device)
        self.head.grow(exp.space)

    def training_data(self, exp: Experience) -> Dataset:
        """What ``fit`` iterates over; joint training returns all that it stored."""
        return exp.data

    def epochs_for(self, exp: Experience) -> int:
        """Passes of ``fit`` over the training data; 0 skips ``fit``."""
        return self.epochs

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits over ``head.space``."""
        return self.head(self.backbone.forward_features(x))

    def loss(self, logits: Tensor, y: Tensor, among: LabelSpace | None = None) -> Tensor:
        """Cross-entropy of global labels ``y``; ``among`` restricts the softmax to some classes ("masked CE")."""
        among = among or self.head.space
        return F.cross_entropy(align_columns(logits, self.head.space, among), columns_of(y, among))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lightning's hook; the working default is cross-entropy over all classes seen so far."""
        return self.loss(self(batch.x), batch.y)

    def configure_optimizers(self) -> Any:
        """Lightning's hook; AdamW on what is trainable. None is fine for gradient-free methods."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)

    def end(self, exp: Experience) -> None:
        """After ``fit``: Fisher, exemplars, prototypes, merging."""

    # ------------------------------------------------------------------ answering
    def deploy(self, source: Experience | None, stream: StreamFacts = StreamFacts()) -> None:  # noqa: B008 - frozen
        """Before a test stream: ``source`` is given only to methods whose ``needs`` name it; ``stream`` says how images
        will arrive."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        """Logits (N, len(space)) for images ``x``; a test-time method overrides it: adapt and answer, one step."""
        return self._plainly(x, space)

    def answer(self, x: Tensor, space: LabelSpace) -> Tensor:
        """Like :meth:`predict` but never adapting: used where a stream is too fast for the method. A test-time method
        answers from its current state."""
        return self._plainly(x, space)

    def _plainly(self, x: Tensor, space: LabelSpace) -> Tensor:
        if not set(space.ids) <= set(self.head.space.ids) and self.head.can_answer(space):  # one that reads names
            return self.head.over(self.backbone.forward_features(x), space)
        return align_columns(self(x), self.head.space, space)

    def feedback(self, x: Tensor, y: Tensor) -> None:
        """Late labels of the stream, where the scenario gives ``labels`` and the method needs them."""

    def counters(self) -> dict[str, int | float]:
        """Plain counts for the record: optimizer steps, samples selected, resets, skipped non-finite losses."""
        return {}

    def stored_samples(self) -> int:
        """How many training images the method keeps in its memories; counted into the record."""
        return sum(getattr(m, "samples", 0) for m in self.modules() if m is not self)  # ``samples`` may be its setting

    # ------------------------------------------------------------------ several processes
    def whole(self, batch: Batch) -> Batch:
        """The batch of which this process has a share, the same in every process; in one process, the batch."""
        return Batch(ranks.whole(batch.x), ranks.whole(batch.y))

    def portion(self, batch: Batch) -> Batch:
        """This process's share of rows that every process holds, to be trained beside its share of the batch, as one mean."""
        mine = Batch(ranks.share(batch.x), ranks.share(batch.y))
        if (rows := self.__dict__.get("_rows")) is not None:
            rows[0], rows[1] = rows[0] + len(mine.y), rows[1] + len(batch.y)
        return mine

    # ------------------------------------------------------------------ given, final
    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Hands a batch of images to the engine, which asks for the answer and keeps it. Nothing else is in a batch."""
        self.__dict__["_answers"](batch)

    def mark(self) -> None:
        """Remember this state for :meth:`reset`: one deep copy of model, optimizers and everything else together."""
        self.__dict__.pop("_marked", None)
        self.__dict__["_marked"] = copy.deepcopy(own(self))

    def reset(self) -> None:
        """Back to the last :meth:`mark`, bit for bit: weights, buffers, optimizers, memories, counters, generators.

        Raises:
            RuntimeError: if nothing was marked.
        """
        if "_marked" not in self.__dict__:
            raise RuntimeError("reset() before mark()")
        fresh = copy.deepcopy(self.__dict__["_marked"])
        for key in own(self).keys() - fresh.keys():
            del self.__dict__[key]
        self.__dict__.update(fresh)

    def marked(self) -> dict[str, Any] | None:
        """What :meth:`mark` remembered; for checkpoints."""
        return self.__dict__.get("_marked")

    def mark_as(self, state: dict[str, Any] | None) -> None:
        """The inverse of :meth:`marked`."""
        if state is not None:
            self.__dict__["_marked"] = state

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FINAL:
            raise UserError(f"{type(self).__name__} sets {name}, which is final; use another name.")
        if name in FACTS:
            raise UserError(f"{type(self).__name__} sets {name}, which is a fact of the class: write it into the class.")
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        """A copy that shares neither Trainer nor mark with the original."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        LightningModule.__init__(twin)
        twin.__dict__.update(copy.deepcopy(own(self), memo))
        return twin


FACTS = {"needs": Set, "adapts": bool, "exempt": dict}
FINAL = ("test_step", "mark", "mark_as", "marked", "reset", "__deepcopy__", "__setattr__")

# Attributes that Lightning keeps on a module are runtime wiring, not state of a method; so is the harness's own.
Method.WIRING = frozenset(HARNESS) | (
    frozenset(LightningModule().__dict__) - frozenset(nn.Module().__dict__) - {"_device", "_dtype"}) | {
    "_hparams", "_hparams_initial", "_hparams_name", "_hparams_property", "_metric_attributes", "_jit_is_scripting",
    "setup", "on_fit_start", "on_train_start",  # silenced by the engine where a fit is resumed
}
