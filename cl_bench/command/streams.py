"""What is said to a terminal or a pipe: signs that it lacks are replaced, and nobody's leaving ends the work."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

__all__ = ["ASCII", "said"]

# What stands for a sign on a terminal that has only ASCII: marks stay distinct.
ASCII = {"●": "*", "○": "o", "◌": ".", "†": "+", "±": "+-", "−": "-", "–": "-", "↑": "^", "↓": "v", "×": "x", "·": ".",
         "…": "...", "≤": "<=", "—": "-", "“": '"', "”": '"', "’": "'"}


def _in_ascii(fault: UnicodeError) -> tuple[str, int]:
    assert isinstance(fault, UnicodeEncodeError)
    return "".join(ASCII.get(c, "?") for c in fault.object[fault.start:fault.end]), fault.end


codecs.register_error("cl-bench", _in_ascii)


class _Patient:
    """A stream whose reader may leave (``cl-bench run ... | head``): what comes after is written nowhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self.leave()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self.leave()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Standard output and error as this program writes to them; as they were afterwards."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if isinstance(stream, _Patient) or stream is None:
            continue
        if hasattr(stream, "reconfigure"):  # a terminal or pipe that knows no "↑" shows "^", and the command goes on
            utf = (stream.encoding or "utf-8").lower().startswith("utf")
            stream.reconfigure(errors="backslashreplace" if utf else "cl-bench")
        setattr(sys, name, _Patient(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Patient):
                try:
                    stream.flush()
                except (OSError, ValueError):  # told already, by whoever wrote to it; no second complaint when Python ends
                    stream.leave()
        sys.stdout, sys.stderr = before
