"""The front door of the command line; what it opens is in ``command/``."""

from __future__ import annotations

from .command.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
