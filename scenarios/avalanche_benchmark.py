"""Any benchmark of Avalanche (Lomonaco et al., CVPR workshops 2021) as a scenario."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_bench import Experience, LabelSpace, Scenario, TestSet, UserError
from cl_bench.data.labels import whole_labels
from cl_bench.identity import arguments
from cl_bench.ranges import LegacySeed
from cl_bench.rng import seeded

from ._data import Deferred, digest_of
from .split import Answers, gives_of

__all__ = ["AvalancheBenchmark"]


class AvalancheBenchmark(Scenario):
    """An Avalanche benchmark: its train stream is learned, its test stream measured.

    The factory is called when data are first wanted, with Python's, numpy's and torch's generators seeded by ``seed``
    and put back afterwards. Where it takes ``train_transform`` and ``eval_transform`` and none is given, both are
    ``ToTensor()``, since a backbone does its own normalisation. Label ids are the benchmark's.

    Args:
        factory: ``module:attribute`` of what makes the benchmark, e.g. ``avalanche.benchmarks.classic:SplitMNIST``.
        args: its arguments, e.g. ``{n_experiences: 5, dataset_root: data}``.
        answers: ``seen`` (class-incremental), ``task`` (a benchmark whose experiences have label ids of their own) or
            ``all`` (domain-incremental).
        seed: of what the factory draws, such as a class order.
        in_memory: hold images as uint8; without it they are read one by one.
    """

    family: ClassVar[str] = "interoperation"
    paper: ClassVar[str] = "Lomonaco et al., CVPR workshops 2021"

    def __init__(
        self,
        *,
        factory: str = "",
        args: dict[str, Any] | None = None,
        answers: Answers = "seen",
        seed: LegacySeed = 0,
        in_memory: bool = True,
    ) -> None:
        self.factory, self.args, self.answers = factory, args, answers
        self.seed, self.in_memory = seed, in_memory
        self.gives = gives_of(answers, False)

    def build(self) -> Any:
        """The benchmark itself.

        Raises:
            UserError: if no factory is named, or it cannot be found.
        """
        module, _, attribute = self.factory.partition(":")
        if not attribute:
            raise UserError(
                "avalanche_benchmark needs factory=module:attribute, e.g. avalanche.benchmarks.classic:SplitMNIST."
            )
        try:
            make = getattr(importlib.import_module(module), attribute)
            known = inspect.signature(make).parameters
        except Exception as fault:  # no module, no attribute, nothing that is called, or what the module's own code meets
            raise UserError(f"there is no {self.factory!r}; give module:attribute of an Avalanche benchmark.") from fault
        args = dict(self.args or {})
        for name in ("train_transform", "eval_transform"):
            if name in known and name not in args:
                from torchvision.transforms import ToTensor

                args[name] = ToTensor()
        try:
            with seeded(self.seed):
                return make(**args)
        except UserError:
            raise
        except Exception as fault:  # wrong arguments, files that are missing, whatever the factory's own code meets
            reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:160]
            raise UserError(f"{self.factory} cannot make its benchmark ({reason}): mend args or its data.") from fault

    def streams(self) -> dict[str, list[tuple[LabelSpace, Dataset]]]:
        """(classes, data) of every experience of both streams, built once."""
        return self._streams

    @cached_property
    def _streams(self) -> dict[str, list[tuple[LabelSpace, Dataset]]]:
        benchmark = self.build()
        streams = {
            part: [self._convert(e.dataset, f"experience {k} of the {part} stream")
                   for k, e in enumerate(benchmark.streams[part], 1)]
            for part in ("train", "test")
        }
        self._check(*([space for space, _ in streams[part]] for part in ("train", "test")))
        return streams

    def _check(self, train: list[LabelSpace], test: list[LabelSpace]) -> None:
        """Refuse label ids that mean several things, and test classes that nothing teaches."""
        for k, space in enumerate(train):
            shared = [i for other in train[:k] for i in other if i in space]
            if self.answers == "task" and shared:
                raise UserError(
                    f"experience {k + 1} of {self.factory} has label {shared[0]} in common with an earlier one: with "
                    "answers=task every experience needs label ids of its own, or the tasks fold into one another; make "
                    "the benchmark so, or use answers=all."
                )
        taught = {i for space in train for i in space}
        for k, space in enumerate(test, 1):
            if strange := [i for i in space if i not in taught]:
                raise UserError(
                    f"test experience {k} of {self.factory} holds class {strange[0]}, which no training experience has; "
                    "check the benchmark's streams."
                )

    def _convert(self, dataset: Any, source: str) -> tuple[LabelSpace, Dataset]:
        y = whole_labels(list(dataset.targets), f"{source} of {self.factory}")
        space = LabelSpace(tuple(dict.fromkeys(sorted(y.tolist()))))
        images = Images(dataset, y)
        if not self.in_memory:
            return space, images
        return space, Deferred(lambda: torch.stack([images[k][0] for k in range(len(images))]), y)

    def experiences(self) -> Sequence[Experience]:
        return self._experiences

    @cached_property
    def _experiences(self) -> list[Experience]:
        return [Experience(f"step {k}", s, d) for k, (s, d) in enumerate(self.streams()["train"], 1)]

    def test_sets(self) -> Sequence[TestSet]:
        return self._test_sets

    @cached_property
    def _test_sets(self) -> list[TestSet]:
        test, taught = self.streams()["test"], [set(s) for s, _ in self.streams()["train"]]
        # Avalanche pairs the k-th experiences of both streams, which holds where they teach and ask the same classes.
        pairs = len(test) == len(taught) and all(set(s) <= t for (s, _), t in zip(test, taught, strict=True))
        return [TestSet(f"step {k}", s, d, of=f"step {k}") if pairs else TestSet(f"test {k}", s, d)
                for k, (s, d) in enumerate(test, 1)]

    def protocol(self) -> Mapping[str, Any]:
        return {
            "factory": self.factory,
            "args": arguments(type(self), {"args": self.args or {}})["args"],
            "data": {part: [digest_of(d) for _, d in self.streams()[part]] for part in ("train", "test")},
            "order_policy": "the benchmark's own",
            "answers": self.answers,
        }


class Images(Dataset):
    """An Avalanche data set's images as uint8 (3, H, W), in its evaluation transforms."""

    def __init__(self, dataset: Any, y: Tensor) -> None:
        self.dataset, self.y = dataset.eval(), y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.dataset[index]
        if int(item[1]) != int(self.y[index]):
            raise UserError(
                f"item {index} of an Avalanche data set carries label {int(item[1])}, its targets say {int(self.y[index])}: "
                "a target_transform that targets do not know; give the benchmark targets that items carry."
            )
        return _as_image(item[0]), self.y[index]


def _as_image(x: Any) -> Tensor:
    """A PIL image, or a tensor (C, H, W) or (H, W), uint8 or float in [0, 1], as uint8 (3, H, W).

    Raises:
        UserError: for values outside [0, 1], which a normalisation leaves.
    """
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.asarray(x.convert("RGB"))).permute(2, 0, 1)
    x = x[None] if x.ndim == 2 else x
    if x.dtype != torch.uint8:
        if float(x.min()) < -1e-4 or float(x.max()) > 1 + 1e-4:
            raise UserError("the benchmark's images leave [0, 1]: give it transforms without Normalize, e.g. ToTensor().")
        x = x.mul(255).round().clamp(0, 255).to(torch.uint8)
    return x.expand(3, -1, -1).contiguous() if len(x) == 1 else x
