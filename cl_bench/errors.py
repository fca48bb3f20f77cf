"""The one exception for mistakes a user can make and mend, an end that was asked for, and where an unforeseen one happened."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

__all__ = ["Helped", "Terminated", "UserError", "no_room", "told"]


class UserError(Exception):
    """A bad config, file, checkpoint, name or class path.

    The message is one sentence that says what is wrong and what to do. The command line prints it alone and exits
    with code 2; ``--debug`` shows the traceback.
    """


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): an interrupt like the user's, by another hand."""


class Helped(SystemExit):
    """Help was asked for and printed: the one exit that is no failure."""


def told(fault: BaseException) -> str:
    """An error in one line: its type, its message, and the last line of code outside of installed packages that led to it.

    ``KeyError: 'x' (mine.py, line 12)``; a user's own file is what they can mend, whatever library raised.
    """
    text = f"{type(fault).__name__}: {' '.join(str(fault).split())}".rstrip(": ")
    if isinstance(fault, SyntaxError):
        return text  # says file and line itself
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if not {"site-packages", "lib"} & set(Path(f.filename).parts)] or frames
    return f"{text} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else text


def no_room(fault: BaseException) -> bool:
    """Whether a full disk (or a quota) is what is behind an error, in whatever a library put it."""
    chain: list[BaseException] = []
    behind: BaseException | None = fault
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    return any(getattr(f, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)) or "os error 28" in str(f)
               for f in chain)
