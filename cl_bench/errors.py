"""The one exception for mistakes a user can make and mend."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """A bad config, file, checkpoint, name or class path.

    The message is one sentence that says what is wrong and what to do. The command line prints it alone and exits
    with code 2; ``--debug`` shows the traceback.
    """
