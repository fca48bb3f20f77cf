"""cl-bench: one benchmark harness for continual learning and test-time adaptation.

Names are loaded when first used, so that ``import cl_bench`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "AccuracyMatrix": "numbers.matrix",
    "Adapter": "adapters",
    "AdapterSet": "adapters",
    "Amount": "ranges",
    "Backbone": "backbones",
    "Batch": "types",
    "CosineHead": "heads",
    "Count": "ranges",
    "Experience": "types",
    "Head": "heads",
    "LabelSpace": "types",
    "LinearHead": "heads",
    "Method": "method",
    "Metric": "numbers.metrics",
    "Pixels": "ranges",
    "Positive": "ranges",
    "PrototypeHead": "heads",
    "Rng": "rng",
    "Scenario": "scenario",
    "Seed": "ranges",
    "Share": "ranges",
    "Size": "ranges",
    "StreamFacts": "types",
    "TensorData": "data",
    "TestSet": "types",
    "Text": "ranges",
    "TextHead": "heads",
    "UserError": "errors",
    "Whole": "ranges",
    "Wrapper": "scenario",
    "align_columns": "heads",
    "attach": "adapters",
    "batches": "data",
    "bounded": "ranges",
    "check_method": "testing",
    "check_scenario": "testing",
    "columns_of": "heads",
    "compare": "compare",
    "load": "api",
    "run": "api",
    "select": "heads",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'cl_bench' has no attribute {name!r}")
    module = importlib.import_module(f".{_WHERE[name]}", __name__)
    return module if name == _WHERE[name] else getattr(module, name)  # cl_bench.compare is a package that can be called


def __dir__() -> list[str]:
    return [*globals(), *__all__]
