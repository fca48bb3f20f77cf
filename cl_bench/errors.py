"""The one exception for mistakes a user can make and mend, an end that was asked for, and where an unforeseen one happened."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["Helped", "Terminated", "UserError", "no_room", "putting_off", "refuse", "refused", "told"]


class UserError(Exception):
    """A bad config, file, checkpoint, name or class path.

    The message is one sentence that says what is wrong and what to do. The command line prints it alone and exits
    with code 2; ``--debug`` shows the traceback.
    """


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): an interrupt like the user's, by another hand."""


class Helped(SystemExit):
    """Help was asked for and printed: the one exit that is no failure."""


_PUT_OFF: ContextVar[bool] = ContextVar("put_off", default=False)


@contextmanager
def putting_off() -> Iterator[None]:
    """While a user's file is imported: a class of it that is refused is refused when it is named or built, so that the other
    classes of the file can be used."""
    before = _PUT_OFF.set(True)
    try:
        yield
    finally:
        _PUT_OFF.reset(before)


def refuse(cls: type, why: str) -> None:
    """Refuse a class as it is defined.

    Raises:
        UserError: ``why``; within :func:`putting_off` later, by whoever asks for :func:`refused` or builds the class.
    """
    if not _PUT_OFF.get():
        raise UserError(why)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise UserError(why)

    type.__setattr__(cls, "_refused", why)
    type.__setattr__(cls, "__new__", never)


def refused(target: object) -> str:
    """Why a class was refused when it was defined; "" where it was not."""
    return str(getattr(target, "_refused", "")) if isinstance(target, type) else ""


def told(fault: BaseException) -> str:
    """An error in one line: its type, its message, and the last line of code outside of installed packages that led to it.

    ``KeyError: 'x' (mine.py, line 12)``; a user's own file is what they can mend, whatever library raised.
    """
    text = f"{type(fault).__name__}: {' '.join(str(fault).split())}".rstrip(": ")
    if isinstance(fault, SyntaxError):
        return text  # says file and line itself
    if "view size is not compatible" in text:
        text += " Feature maps of convolutions lie with their channels last: call reshape, or run with --layout contiguous."
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
