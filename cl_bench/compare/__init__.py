"""From records to what is said of them: tables, tests, selection, the page. No torch, no MLflow."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """The package is also the function ``cl_bench.compare``: both have that name, so one object is both."""

    def __call__(self, runs: Iterable[Any], by: str = "scenario", mix: bool = False) -> Any:
        """Tables of runs: see :func:`cl_bench.compare.comparison.compare`."""
        from .comparison import compare
        from .table import Compared

        made = compare(runs, by, mix)
        return Compared(made.groups, made.problems)


sys.modules[__name__].__class__ = _Package
