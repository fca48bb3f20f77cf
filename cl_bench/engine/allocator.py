"""Memory that a process of ours keeps between two batches.

glibc hands large pieces of memory back to the kernel as soon as they are free, and asks for them again with the next batch:
every page is then cleared and mapped anew, which takes up to a quarter of a batch. The thresholds are of a whole process, so
only processes that are ours are touched: the command line's and its workers', never the one that a program calls us from.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["ASKED", "as_asked", "keep_memory"]

ASKED = "CL_BENCH_ALLOCATOR"  # what the workers of a process are to do: "keep", or nothing
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 * 2**20  # the largest piece that glibc allows to come from the heap
_TRIM = 2**31 - 1


def keep_memory() -> bool:
    """Keep what is free for the next batch, here and in the workers that this process starts; whether this machine's allocator
    can be told (glibc's). Changes no number."""
    if not sys.platform.startswith("linux"):
        return False
    os.environ[ASKED] = "keep"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _TRIM))


def as_asked() -> None:
    """In a worker: what the process that started it was told."""
    if os.environ.get(ASKED) == "keep":
        keep_memory()
