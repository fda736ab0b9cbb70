"""A GGUF file: its metadata and the places of its tensors, read in one pass; tensors are decoded when asked for.

    magic "GGUF" | version | number of tensors | number of values
    value:   key, type, value                       text is a length and UTF-8; an array is a type, a count and values
    tensor:  name, dimensions (innermost first), type, offset
    padding to the alignment, then the tensors

Source: the GGUF specification of the ggml project.  Versions 2 and 3, little-endian.
"""

import mmap
import re
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from coldpress.plugin import CheckpointError, reading

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = 32  # unless general.alignment says otherwise


@frozen
class _Place:
    """Where a tensor lies: its shape, outermost dimension first, the number of its type, its first and last byte."""

    shape: tuple[int, ...]
    kind: int
    begin: int
    end: int


class GgufFile:
    """A GGUF file.

    Attributes:
        path: of the file.
        metadata: key to value; an array is a list.
    """

    def __init__(self, path: str | Path) -> None:
        """Read everything but the tensors.

        Raises:
            CheckpointError: the file is truncated, or not GGUF.
        """
        self.path = Path(path)
        self._bytes = _mapped(self.path)
        size = len(self._bytes)
        with reading(f"{self.path} is corrupt, truncated, or not read", CheckpointError):
            self.metadata, self._places = _read(self._bytes)
        for name, place in self._places.items():
            if place.end > size:
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {place.end}, the file at {size}"
                )

    def names(self) -> list[str]:
        """All tensors, in the order of the file."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, outermost dimension first, as in torch."""
        return self._places[name].shape

    def byte_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor whose rows are bytes."""
        place = self._places[name]
        rows = place.shape[:-1]
        return (*rows, (place.end - place.begin) // prod(rows))

    def raw(self, name: str, number: int | None = None) -> Tensor:
        """The bytes of a tensor, or of one matrix of a stack of them; uint8, a copy."""
        shape, place = self.byte_shape(name), self._place(name, number)
        copied = torch.frombuffer(bytearray(self._bytes[place.begin : place.end]), dtype=torch.uint8)
        return copied.reshape(shape if number is None else shape[1:])

    def get(self, name: str, number: int | None = None) -> Tensor:
        """One tensor, or one matrix of a stack of them, decoded to float32.

        Raises:
            CheckpointError: the package gguf does not decode its type.
        """
        with reading(f"{self.path}: tensor {name!r} cannot be decoded", CheckpointError):
            return self._decoded(self._place(name, number))

    def _decoded(self, place: _Place) -> Tensor:
        import numpy
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = numpy.frombuffer(self._bytes, numpy.uint8, place.end - place.begin, place.begin)
        kind = GGMLQuantizationType(place.kind)
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            plain = raw.view(numpy.float32 if kind == GGMLQuantizationType.F32 else numpy.float16)
            return torch.from_numpy(plain.reshape(place.shape).astype(numpy.float32))
        return torch.from_numpy(dequantize(raw.reshape(*place.shape[:-1], -1), kind).reshape(place.shape))

    def _place(self, name: str, number: int | None) -> _Place:
        """Where a tensor lies, or one of the first dimension of a stack."""
        place = self._places[name]
        if number is None:
            return place
        size = (place.end - place.begin) // place.shape[0]
        begin = place.begin + number * size
        return _Place(place.shape[1:], place.kind, begin, begin + size)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise CheckpointError(f"{path} is not a GGUF file: it has {size} bytes")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read(data: Any) -> tuple[dict[str, Any], dict[str, _Place]]:
    magic, version, tensors, values = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF":
        raise ValueError("it is not a GGUF file: it does not begin with GGUF")
    if version not in (2, 3):
        raise ValueError(f"version {version} of GGUF is not read; versions 2 and 3 are")
    metadata, at = {}, 24
    for _ in range(values):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        metadata[key], at = _value(data, at + 4, kind)
    heads = []
    for _ in range(tensors):
        name, at = _text(data, at)
        (rank,) = struct.unpack_from("<I", data, at)
        *shape, kind, offset = struct.unpack_from(f"<{rank}QIQ", data, at + 4)
        _check_tensor(name, shape)
        heads.append((name, tuple(shape[::-1]), kind, offset))
        at += 4 + struct.calcsize(f"<{rank}QIQ")
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}, and no number of bytes")
    if len({name for name, *_ in heads}) < len(heads):
        twice = next(name for name, count in Counter(name for name, *_ in heads).items() if count > 1)
        raise ValueError(f"two tensors are called {twice!r}")
    start = -(-at // alignment) * alignment
    return metadata, {
        name: _Place(shape, kind, start + offset, start + offset + _size(name, shape, kind))
        for name, shape, kind, offset in heads
    }


def _check_tensor(name: str, shape: list[int]) -> None:
    """Refuse a name that no module has, and a shape that holds nothing."""
    if not re.fullmatch(r"[\w.\-]+", name) or ".." in name:
        raise ValueError(f"{name!r} is not the name of a tensor")
    if not shape or not all(shape):
        raise ValueError(f"tensor {name!r} has the shape {tuple(shape[::-1])}, which holds nothing")


def _size(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"tensor {name!r} is of type {kind}, which the installed package gguf does not know"
        ) from error
    count = 1
    for length in shape:
        count *= length
    if shape[-1] % block:
        raise ValueError(f"tensor {name!r} of shape {shape} does not split into blocks of {block}")
    return count // block * size


def _text(data: Any, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise struct.error(f"a text of {length} bytes at byte {at} goes past the end")
    return data[at + 8 : end].decode("utf-8"), end


def _value(data: Any, at: int, kind: int) -> tuple[Any, int]:
    """The value of a type at a place, and the place after it."""
    if kind == _TEXT:
        return _text(data, at)
    if kind == _ARRAY:
        inner, count = struct.unpack_from("<IQ", data, at)
        return _array(data, at + 12, inner, count)
    form = "<" + _NUMBERS[kind]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def _array(data: Any, at: int, kind: int, count: int) -> tuple[list[Any], int]:
    if count > len(data):
        raise struct.error(f"an array of {count} values at byte {at} goes past the end")
    if kind in _NUMBERS:
        form = f"<{count}{_NUMBERS[kind]}"
        return list(struct.unpack_from(form, data, at)), at + struct.calcsize(form)
    found = []
    for _ in range(count):
        value, at = _value(data, at, kind)
        found.append(value)
    return found, at
