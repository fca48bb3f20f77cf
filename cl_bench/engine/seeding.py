"""One seed makes every generator, and a position in the run names its seed, so that resuming between two steps needs no
generator state; inside a step the states are kept."""

from __future__ import annotations

import hashlib

from ..rng import generators, seeded, set_generators

__all__ = ["derive", "generators", "seeded", "set_generators"]


def derive(seed: int, *position: object) -> int:
    """A 63-bit seed for a named position ("learn", 3); unrelated positions get unrelated seeds."""
    text = "/".join(str(p) for p in (seed, *position))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
