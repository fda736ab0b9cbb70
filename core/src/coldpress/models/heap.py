"""Memory that is free: kept while tensors come and go, and given back to the system when a stage is done."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # what glibc calls them in malloc.h
_KEPT = 256 << 20  # bytes at the end of the heap that stay with the process while it calibrates
_USUAL = 64 << 20  # what glibc comes to keep by itself
_WIDE = 16 << 20  # bytes of weights of a wide stage: trimming costs a pass through narrow ones a tenth of its time
_LARGE = 32 << 20  # bytes from which on a tensor is no part of the heap: the most that glibc allows


def trim_heap() -> None:
    """Give the pages of freed tensors back to the system, where its allocator would keep them; else do nothing.

    glibc serves tensors of less than 32 MiB from a heap in which those that live longer keep holes open: a run over
    many stages would come to hold as much memory as the whole model.
    """
    trim = glibc("malloc_trim")
    if trim is not None:
        trim(0)


def tidy_heap(weights: int) -> None:
    """`trim_heap` between passes of data through so many bytes of weights, where they take far longer than that.

    What a pass leaves free would stand beside the matrices that are made of it, which are no part of the heap.
    """
    if weights >= _WIDE:
        trim_heap()


@contextmanager
def steady_heap() -> Iterator[None]:
    """Inside, freed memory is used again instead of being given back and asked for anew, page by page.

    By itself glibc returns what is free at the end of its heap beyond some 64 MiB: in a calibration that is every few
    operations, and the system clears every page that it hands out.
    """
    set_option = glibc("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE)
        set_option(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        if set_option is not None:
            set_option(_TRIM_THRESHOLD, _USUAL)
            trim_heap()


@cache
def glibc(name: str) -> Callable[..., Any] | None:
    """A function of the system's C library; None where there is no such thing, as with musl."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return found
