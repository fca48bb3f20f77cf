"""Scripts of benchmarks/ as modules, for tests of what they compute."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["BENCHMARKS", "needs_checkout", "script"]

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
needs_checkout = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks are part of a checkout only")


def script(name: str) -> ModuleType:
    """``benchmarks/NAME.py``, executed anew."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
