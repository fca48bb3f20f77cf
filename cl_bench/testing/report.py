"""What a check found, and how one is asked."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError

__all__ = ["WORDS", "Finding", "Note", "Report", "Unanswerable", "blamed", "pressed"]

WORDS = {"boundaries", "names", "source", "task_id", "labels"}  # what a scenario can give


class Note(str):
    """The answer to a question that is well, and yet has something to say."""


class Unanswerable(Exception):
    """A question that cannot be asked because an earlier one failed; says which."""


@dataclass(frozen=True)
class Finding:
    """One promise of the contract: ``passed``, ``failed``, ``exempt`` or ``skipped``, and what was seen."""

    check: str
    state: str
    note: str = ""


@dataclass
class Report:
    """All findings about one method or scenario.

    Attributes:
        files: where the author's code lives, for faults to be told at its line rather than at the harness's.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    files: Sequence[str] = ()

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
        """Ask ``question`` (a sentence = what is wrong, None or a :class:`Note` = well) and keep the answer."""
        if check in exempt:
            self.findings.append(Finding(check, "exempt", exempt[check]))
            return
        state = "failed"
        with _interrupts():
            try:
                wrong = question()
                state = "failed" if wrong and not isinstance(wrong, Note) else "passed"
            except UserError as fault:
                wrong = str(fault)
            except Unanswerable as fault:
                state, wrong = "skipped", str(fault)
            except BaseException as fault:
                if isinstance(fault, KeyboardInterrupt) and pressed():
                    raise
                wrong = blamed(fault, self.files)
        self.findings.append(Finding(check, state, wrong or ""))


def blamed(fault: BaseException, files: Sequence[str] = ()) -> str:
    """A fault as a sentence with the last line of the author's own code that it passed, where it passed any."""
    first: BaseException = fault
    while isinstance(first, (KeyboardInterrupt, SystemExit)) and isinstance(
            first.__cause__ or first.__context__, (KeyboardInterrupt, SystemExit)):
        first = first.__cause__ or first.__context__  # type: ignore[assignment]
    frames = traceback.extract_tb(first.__traceback__)
    passed = [f for f in frames if f.filename in files] or list(frames)
    where = f" ({passed[-1].filename.rpartition('/')[2]}:{passed[-1].lineno})" if passed else ""
    if isinstance(first, SystemExit):
        return f"ends the whole process: SystemExit: {first.code}{where}"
    said = " ".join(str(first).split())
    said = said if len(said) <= 400 else f"{said[:400]} ..."
    return f"{type(first).__name__}: {said}{where}" if said else f"raises {type(first).__name__}{where}"


# ---------------------------------------------------------------------------- the user's Ctrl-C, and a method's
_pressed = False


def pressed() -> bool:
    """Whether a KeyboardInterrupt at hand came from the keyboard: a method can raise one as well."""
    return _pressed


@contextmanager
def _interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def _note(number: int, frame: Any) -> None:
    global _pressed
    _pressed = True
    signal.default_int_handler(number, frame)
