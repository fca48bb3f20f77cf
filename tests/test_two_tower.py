"""The program that makes a model of two towers: its regression is ridge regression, and what is kept is what its card says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from cl_bench.data.files import file_digest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="tools are part of a checkout only")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_tower", TOOLS / "two_tower.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_is_ridge_regression_in_which_each_view_is_a_part_of_its_image(tool: ModuleType) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 6, generator=draw, dtype=torch.float64) + 2
    texts = torch.randn(20, 4, generator=draw, dtype=torch.float64)
    weight, bias = tool.ridge(features, texts, 5.0)
    known = Ridge(alpha=15.0).fit(features.flatten(0, 1).numpy(), texts.repeat(3, 1).numpy())  # of three views
    assert torch.allclose(weight, torch.from_numpy(known.coef_)) and torch.allclose(bias, torch.from_numpy(known.intercept_))


def test_every_map_that_is_kept_is_that_of_its_card(tool: ModuleType) -> None:
    maps = sorted(tool.HERE.glob("*.safetensors"))
    assert maps
    for file in maps:
        page = file.with_suffix(".md").read_text(encoding="utf-8")
        assert file_digest(file) in re.findall(r"\b[0-9a-f]{64}\b", page)
        held = load_file(file)
        assert {k: v.shape[0] if v.ndim else 0 for k, v in held.items()} == {
            "weight": tool.WIDTH, "bias": tool.WIDTH, "centre": tool.WIDTH, "scale": 0}
        assert all(v.isfinite().all() for v in held.values()) and file.stat().st_size < 4 * 2**20
