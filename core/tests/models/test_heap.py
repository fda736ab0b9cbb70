import resource
import sys

import pytest
import torch

from coldpress.models.heap import steady_heap, tidy_heap, trim_heap

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="options of glibc")
PIECE = 24 << 20  # bytes, small enough for the heap
PAGES = 4 * PIECE // resource.getpagesize()


def use_and_free() -> None:
    pieces = [torch.zeros(PIECE, dtype=torch.uint8) for _ in range(4)]
    for piece in pieces:
        piece.fill_(1)


def pages_of(repeats: int) -> int:
    """Pages that the system hands out meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        use_and_free()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_freed_memory_is_used_again():
    with steady_heap():
        use_and_free()
        assert pages_of(10) <= 2 * PAGES  # and not 10 times as many


def test_it_is_given_back_afterwards():
    trim_heap()
    before = resident()
    with steady_heap():
        use_and_free()
        assert resident() > before + 2 * PIECE
    assert resident() < before + PIECE


def test_a_stage_can_give_it_back_inside():
    with steady_heap():
        trim_heap()
        before = resident()
        use_and_free()
        trim_heap()
        assert resident() < before + PIECE


def test_it_is_given_back_between_passes_through_wide_stages_only():
    with steady_heap():
        use_and_free()
        before = resident()
        tidy_heap(1 << 20)
        kept = resident()
        tidy_heap(100 << 20)

        assert before - kept < PIECE
        assert kept - resident() > 2 * PIECE
