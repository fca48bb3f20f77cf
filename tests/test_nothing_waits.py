"""What is looked up once is not looked up again with every step, batch or experience: on a GPU each such look-up waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from cl_bench import LabelSpace, TensorData
from cl_bench.engine import trainer as trainers
from cl_bench.engine.compute import Compute
from cl_bench.engine.feed import Pool
from cl_bench.heads import align_columns, columns_of


class Calls(TorchDispatchMode):
    """The names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def made(do: Any) -> set[str]:
    """Operators of the second call that make a tensor of numbers of Python's, or copy one to another device."""
    do()
    with Calls() as calls:
        do()
    return {name for name in calls.names if name in ("aten::lift_fresh", "aten::_to_copy", "aten::sort")}


def test_the_watch_sees_what_it_is_for():
    assert made(lambda: torch.tensor([3, 1]).sort()) == {"aten::lift_fresh", "aten::sort"}


def test_columns_are_looked_up_once():
    labels, logits, space = torch.tensor([7, 3]), torch.rand(2, 3), LabelSpace((7, 5, 3))
    assert columns_of(labels, space).tolist() == [0, 2] and not made(lambda: columns_of(labels, space))
    for want, expected in ((LabelSpace((3, 7)), logits[:, [2, 0]]),
                           (LabelSpace((3, 9)), torch.stack([logits[:, 2], torch.full((2,), -torch.inf)], 1))):
        assert torch.equal(align_columns(logits, space, want), expected)
        assert not made(lambda want=want: align_columns(logits, space, want))


def test_a_table_made_inside_inference_mode_can_be_trained_with():
    space, weight = LabelSpace((11, 4, 8)), torch.ones(2, 3, requires_grad=True)
    with torch.inference_mode():
        columns_of(torch.tensor([4]), space)
        align_columns(torch.rand(2, 3), space, LabelSpace((8, 4)))
    align_columns(weight * 2, space, LabelSpace((8, 4))).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[0, 2, 2], [0, 2, 2]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 9), st.randoms(use_true_random=False))
def test_images_of_several_sets_come_in_the_order_that_is_asked_for(sizes, batch, random):
    whole = torch.arange(sum(sizes), dtype=torch.float32).view(-1, 1, 1, 1)
    pool = Pool([TensorData(x, torch.zeros(len(x), dtype=torch.int64)) for x in whole.split(sizes)], batch, torch.device("cpu"))
    order = [random.randrange(sum(sizes)) for _ in range(random.randrange(1, 20))]
    given_out = list(pool.batches(torch.tensor(order)))
    assert [len(rows) for rows, _ in given_out[:-1]] == [batch] * (len(given_out) - 1)
    assert torch.cat([rows for rows, _ in given_out]).tolist() == order
    assert torch.cat([x for _, x in given_out]).flatten().tolist() == order
    assert list(pool.batches(torch.tensor([], dtype=torch.int64))) == []


def test_packages_are_asked_for_callbacks_once_and_their_callbacks_are_in_every_trainer(monkeypatch):
    asked: list[str] = []

    class Offered:
        def load(self) -> Any:
            return lambda: [Callback()]

    def entry_points(group: str) -> list[Offered]:
        asked.append(group)
        return [Offered()]

    monkeypatch.setattr(trainers, "entry_points", entry_points)
    trainers._factories.cache_clear()
    try:
        with trainers.quiet():
            a, b = (trainers.make_trainer(Compute(device="cpu"), 1) for _ in range(2))
    finally:
        trainers._factories.cache_clear()
    assert len(asked) == 1
    mine = [[c for c in t.callbacks if type(c) is Callback] for t in (a, b)]
    assert len(mine[0]) == len(mine[1]) == 1 and mine[0][0] is not mine[1][0]


def test_a_lightning_that_asks_in_another_way_is_left_alone(monkeypatch):
    monkeypatch.delattr(trainers.callback_connector, "_load_external_callbacks")
    with pytest.raises(NameError), trainers.quiet():  # Lightning's own name is gone, and nobody put another there
        trainers.make_trainer(Compute(device="cpu"), 1)
    assert not hasattr(trainers.callback_connector, "_load_external_callbacks")
