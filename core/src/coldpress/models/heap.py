"""Memory that is free, given back to the system."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim_heap() -> None:
    """Give the pages of freed tensors back to the system, where its allocator would keep them; else do nothing.

    glibc serves tensors of less than 32 MiB from a heap in which those that live longer keep holes open: a run over
    many stages would come to hold as much memory as the whole model.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return found
