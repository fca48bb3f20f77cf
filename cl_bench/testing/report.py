"""What a check found."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import UserError

__all__ = ["Finding", "Report"]


@dataclass(frozen=True)
class Finding:
    """One promise of the contract: ``passed``, ``failed``, ``exempt`` or ``skipped``, and what was seen."""

    check: str
    state: str
    note: str = ""


@dataclass
class Report:
    """All findings about one method or scenario."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not any(f.state == "failed" for f in self.findings)

    def raise_if_failed(self) -> None:
        """AssertionError that lists what failed, for a test."""
        failed = [f"{f.check}: {f.note}" for f in self.findings if f.state == "failed"]
        if failed:
            raise AssertionError(f"{self.name} breaks its contract:\n  " + "\n  ".join(failed))

    def run(self, check: str, question: Callable[[], str | None], exempt: dict[str, str]) -> None:
        """Ask ``question`` (a sentence = what is wrong, None = well) and keep the answer."""
        if check in exempt:
            self.findings.append(Finding(check, "exempt", exempt[check]))
            return
        try:
            wrong = question()
        except UserError as fault:
            wrong = str(fault)
        except Exception as fault:
            last = traceback.extract_tb(fault.__traceback__)[-1]
            wrong = f"{type(fault).__name__}: {fault} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        self.findings.append(Finding(check, "failed" if wrong else "passed", wrong or ""))
