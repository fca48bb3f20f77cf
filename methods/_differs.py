"""Where a paper, its released code and copies in toolboxes differ: declared by a method, listed in docs/errata.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Differs:
    """One difference.

    Attributes:
        what: what differs, in a sentence.
        where: ``owner/repository@commit file:line`` of the code that does it.
        table: which of them the published table came from, where that is known.
        here: two settings of the method to be measured against each other, what the default is first; none: no choice here.
        both: what else is set on both sides, where defaults do not learn in the few steps there are, or say nothing.
    """

    what: str
    where: str
    table: str = "not known"
    here: tuple[dict[str, Any], ...] = ()
    both: dict[str, Any] = field(default_factory=dict)
