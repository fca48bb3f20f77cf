"""No adaptation: the error that every test-time method must beat."""

from __future__ import annotations

from typing import ClassVar

from cl_bench.adaptation import TestTimeMethod

__all__ = ["Source"]


class Source(TestTimeMethod):
    """Answers with the learned model as it is, in evaluation mode; nothing adapts."""

    adapts: ClassVar[bool] = False
    paper: ClassVar[str] = "lower bound"
    reference: ClassVar[str] = "no adaptation"
