"""Where a paper, its released code and copies in toolboxes differ: declared by a method, listed in docs/errata.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Differs:
    """One difference.

    Attributes:
        what: what differs, in a sentence.
        where: ``owner/repository@commit file:line`` of the code that does it.
        table: which of them the published table came from, where that is known.
        here: two settings of the method to be measured against each other, what the default is first; none: no choice here.
    """

    what: str
    where: str
    table: str = "not known"
    here: tuple[dict[str, Any], ...] = ()
