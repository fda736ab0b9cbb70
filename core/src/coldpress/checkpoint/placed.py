"""A safetensors file whose tensors are written in any order, by several threads: their places are known beforehand."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from coldpress.checkpoint.disk import checksum, disk_errors
from coldpress.checkpoint.shard import bytes_of, header_of
from coldpress.errors import BrokenPluginError

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape."""


class PlacedFile:
    """A context: entered, the file has its header and its size; `finish` makes it durable.

    Args:
        path: of the file; replaced if it is there.
        kinds: name of each tensor to what it will be.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        self.path, self._kinds = path, dict(kinds)
        order, self._header = header_of(kinds)
        self._places: dict[str, int] = {}
        position = len(self._header)
        for name in order:
            self._places[name] = position
            dtype, shape = kinds[name]
            position += math.prod(shape) * dtype.itemsize
        self._size = position
        self._missing = set(kinds)
        self._descriptor = -1

    def __enter__(self) -> "PlacedFile":
        with disk_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._descriptor, 0, self._size)  # a disk that is too full is known now
                else:
                    os.ftruncate(self._descriptor, self._size)
                self._write(memoryview(self._header), 0)
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Raises:
            BrokenPluginError: it is not of the dtype and shape that were announced.
            CheckpointError: the disk fails.
        """
        found = (tensor.dtype, tuple(tensor.shape))
        if self._kinds.get(name) != found:
            raise BrokenPluginError(f"the format makes {name!r} {found} where it was {self._kinds.get(name)} before")
        self.write_bytes(name, 0, bytes_of(tensor))
        self._missing.discard(name)

    def write_bytes(self, name: str, begin: int, content: memoryview) -> None:
        """Write some bytes of a tensor."""
        with disk_errors(self.path):
            self._write(content, self._places[name] + begin)

    def note_whole(self, name: str) -> None:
        """All bytes of a tensor have been written by `write_bytes`."""
        self._missing.discard(name)

    def finish(self) -> str:
        """Make the file durable; returns its SHA-256, in hexadecimal.

        Raises:
            BrokenPluginError: a tensor was not written.
        """
        if self._missing:
            raise BrokenPluginError(
                f"{len(self._missing)} tensors were not written, the first is {min(self._missing)!r}"
            )
        with disk_errors(self.path):
            os.fsync(self._descriptor)
        digest = checksum(self.path)
        self.close()
        return digest

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, content: memoryview, position: int) -> None:
        while content:
            count = os.pwrite(self._descriptor, content, position)
            content, position = content[count:], position + count
