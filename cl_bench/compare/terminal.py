"""Tables on a terminal, and in a log or pipe, where each row is one line. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PIPE", "terminal", "trimmed"]

PIPE = 4000  # columns where nothing limits them


def terminal(console: Console) -> Console:
    """The console itself, or for a log or a pipe, which have no width of their own, one on which each row is one line."""
    from rich.console import Console

    return console if console.is_terminal else Console(file=console.file, width=PIPE)


def trimmed(console: Console, table: object) -> None:
    """Print a table; into a file or pipe without blanks at the ends of lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as caught:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in caught.get().splitlines()))
