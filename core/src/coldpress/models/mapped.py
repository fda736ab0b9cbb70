"""Weights that are mapped from their file get memory of their own.

transformers maps safetensors files, so that the first write to each page of a weight copies that page: a fault every
4 kB, which for a run that writes every weight takes longer than to read the file at once.
"""

import ctypes
import mmap
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from coldpress.models.heap import glibc

_MAPS, _MEMORY = Path("/proc/self/maps"), Path("/proc/meminfo")
_DONTNEED = 4  # of madvise, in mman.h

Range = tuple[int, int]


def own_memory(model: nn.Module) -> None:
    """Copy parameters and buffers that are mapped from a file, and let go of the pages that were read of it.

    Tied parameters stay tied.  Tensors that share bytes in any other way stay as they are, and so does everything where
    the system does not say what is mapped, and a model that is larger than half of the memory that is free: the system
    can take mapped pages back.
    """
    mapped = _mapped_files()
    found = {id(x): x for x in chain(model.parameters(), model.buffers())}.values()
    inside = sorted((x for x in found if _is_inside(x, mapped)), key=_range)
    alone = [group[0] for group in _overlapping(inside) if len(group) == 1]
    if not alone or 2 * sum(x.nbytes for x in alone) > _free_memory():
        return
    for x in alone:
        old = _range(x)
        x.data = x.data.clone()
        _forget(*old)


def _overlapping(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors, in the order of their places, in groups that share bytes."""
    groups: list[list[Tensor]] = []
    end = 0
    for x in tensors:
        start, stop = _range(x)
        if start < end:
            groups[-1].append(x)
        else:
            groups.append([x])
        end = max(end, stop)
    return groups


def _mapped_files() -> list[Range]:
    """Where the private mappings of files lie, in order; none where the system does not say."""
    if not sys.platform.startswith("linux") or not _MAPS.exists():
        return []
    return sorted(_file_ranges(_MAPS.read_text(encoding="utf-8", errors="surrogateescape")))


def _free_memory() -> int:
    """Bytes that the system says are available; 0 where it does not."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMORY.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _file_ranges(maps: str) -> Iterator[Range]:
    for line in maps.splitlines():
        place, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights.endswith("p") and name and name[0].startswith("/"):
            start, stop = (int(end, 16) for end in place.split("-"))
            yield start, stop


def _is_inside(x: Tensor, ranges: list[Range]) -> bool:
    """Whether all bytes of a tensor lie in one of the ranges."""
    if x.device.type != "cpu" or x.layout != torch.strided or not x.is_contiguous() or not x.nbytes:
        return False
    start, stop = _range(x)
    place = bisect_right(ranges, (start, sys.maxsize)) - 1
    return place >= 0 and stop <= ranges[place][1]


def _range(x: Tensor) -> Range:
    return x.data_ptr(), x.data_ptr() + x.nbytes


def _forget(start: int, stop: int) -> None:
    """Take the whole pages of a mapped file, which were only read, out of the process; the file still has them."""
    advise = glibc("madvise")
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    size = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
    if advise is not None and size > 0:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(size), _DONTNEED)
