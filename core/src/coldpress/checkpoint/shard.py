"""One safetensors file: its header, read with every check that needs no tensor data, and its bytes, written.

8 bytes      N, the length of the header, little-endian
N bytes      JSON: {"__metadata__": {...}, name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}
the rest     the tensors, little-endian, without holes; offsets count from here
"""

import json
import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch
from attrs import frozen
from torch import Tensor

from coldpress.errors import CheckpointError

# The names are safetensors' own. F4 and other types of less than a byte are left out: torch cannot view them.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the limit that safetensors itself sets


@frozen
class Entry:
    """What a header says of one tensor.

    Attributes:
        dtype: of the tensor.
        shape: of the tensor.
        begin: first byte, counted from the end of the header.
        end: one past the last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, in the order of their bytes.

    Raises:
        CheckpointError: the file is missing, truncated or contradicts itself; names the file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > _LONGEST_HEADER:
                raise _corrupt(path, _what_it_is(path, size))
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) < length:
        raise _corrupt(path, f"it is truncated: its header has {length} bytes, the file {size}")
    entries = _parse(path, text)
    _check_offsets(path, entries, size - _LENGTH_BYTES - length)
    return entries


def read_tensor(path: Path, entry: Entry) -> Tensor:
    """One tensor in memory of its own, which may be written into; nothing of the file stays mapped.

    Args:
        path: a file whose header is sound.
        entry: what that header says of the tensor.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(data_start(file) + entry.begin)
            rest = bytes_of(tensor)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise _corrupt(path, f"it is truncated: {len(rest)} bytes of a tensor are missing")
                rest = rest[count:]
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return tensor


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a new file and fsync it; the same tensors give the same bytes, whatever their order.

    Args:
        path: a file that does not exist yet.
        tensors: on any device, contiguous or not; none is copied as a whole unless it must be moved.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        OSError: the disk is full, the folder read-only, ...; the caller knows what to say.
    """
    order, header = header_of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    digest = sha256(header)
    with path.open("xb") as file:
        file.write(header)
        for name in order:
            content = bytes_of(tensors[name])
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def header_of(kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[list[str], bytes]:
    """The order of tensors in a file, and all that comes before their bytes.

    Args:
        kinds: name to dtype and shape.
    """
    # Wide types first keeps every tensor aligned to its own size, which readers that map the file rely on.
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        dtype, shape = kinds[name]
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return order, len(text).to_bytes(_LENGTH_BYTES, "little") + text


def data_start(file: IO[bytes]) -> int:
    """Where the bytes of tensors begin in an open file whose header is sound."""
    file.seek(0)
    return _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")


def is_storable(dtype: torch.dtype) -> bool:
    """Whether a safetensors file has a name for this dtype."""
    return dtype in _NAMES


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in the order of its elements; its own memory where it is contiguous and on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    # A tensor of one element is contiguous whatever its stride, and then cannot be viewed as bytes.
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().data


def _parse(path: Path, text: bytes) -> dict[str, Entry]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a table of tensors")
    entries = {name: _entry(path, name, value) for name, value in header.items() if name != "__metadata__"}
    return dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"its header describes tensor {name!r} incompletely") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has the dtype {dtype!r}, which this version cannot read")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise _corrupt(path, f"its header gives tensor {name!r} a shape or place that is not a whole number")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise _corrupt(path, f"tensor {name!r} has {end - begin} bytes where its shape and dtype need {expected}")
    return Entry(DTYPES[dtype], shape, begin, end)


def _check_offsets(path: Path, entries: Mapping[str, Entry], data_size: int) -> None:
    position, before = 0, ""
    for name, entry in entries.items():
        if entry.begin < position:
            raise _corrupt(path, f"tensors {before!r} and {name!r} overlap")
        if entry.begin > position:
            raise _corrupt(path, f"{entry.begin - position} bytes before tensor {name!r} belong to nothing")
        position, before = entry.end, name
    if position > data_size:
        raise _corrupt(path, f"it is truncated: {position - data_size} bytes of tensor data are missing at its end")
    if position < data_size:
        raise _corrupt(path, f"{data_size - position} bytes at its end belong to no tensor")


def _what_it_is(path: Path, size: int) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not size:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself; run `git lfs pull`"
    if start.startswith(b"<"):
        return "it looks like a web page, not a tensor file"
    return "its first 8 bytes do not give the length of a header"


def _corrupt(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a sound safetensors file: {what}; fetch or write it again")
