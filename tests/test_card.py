"""A record says on which GPU it was made, and times of two kinds of card are not taken for those of one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from records import record, write_learner

from cl_bench.command.config import parse, plan_from
from cl_bench.compare.health import mixed_hosts
from cl_bench.engine.runner import _opened
from cl_bench.records.results import load_all


def test_a_record_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card, {device.index}")
    plan = plan_from(parse(["--scenario", "split_digits", "--method", "ncm"]))
    assert _opened(plan, {}, torch.device("cuda", 1))["environment"]["card"] == "a card, 1"
    assert _opened(plan, {}, torch.device("cpu"))["environment"]["card"] is None


def test_two_cards_are_two_machines(tmp_path: Path) -> None:
    for seed, card in enumerate(("NVIDIA H100 80GB HBM3", "NVIDIA H200")):
        write_learner(tmp_path, "lora", seed, environment={**record()["environment"], "device": "cuda", "card": card})
    runs = load_all(tmp_path)
    assert len(mixed_hosts(runs)) == 2 and mixed_hosts(runs[:1]) == []
