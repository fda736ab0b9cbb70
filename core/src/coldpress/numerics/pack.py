"""Integer codes packed into int32 words, as the format pack-quantized stores them.

A row of codes of b bits is one stream of bits without gaps: code i, plus 2^(b-1) so that it is not negative, takes the
bits [i*b, (i+1)*b), least significant first, and the stream is cut into words of 32 bits:

    b = 3    | 0 0 0 1 1 1 2 2 2 ... 9 9 9 A A | A B B B ...
             | word 0, bits 0 to 31            | word 1

Eight codes are always b whole bytes (and fewer of 1, 2, 4 and 8 bits are one), which is how it is computed here.
Words are little-endian, as memory is on the machines that we know of.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of so many bytes

_PIECE = 1 << 18  # codes that are packed at a time on the CPU, so that they stay in a core's cache


def pack_int32(codes: Tensor, num_bits: int) -> Tensor:
    """Pack each row.

    Args:
        codes: [..., I], int8, each in [-2^(num_bits-1), 2^(num_bits-1) - 1].
        num_bits: 1 to 8.

    Returns:
        [..., W], int32, with W = ceil(I * num_bits / 32).

    Raises:
        ValueError: codes are not int8, or `num_bits` is not 1 to 8.
    """
    _check(codes, torch.int8, num_bits)
    if codes.is_meta:  # for which torch would import its compiler, a second and 80 MB
        return codes.new_empty((*codes.shape[:-1], _words(codes.shape[-1], num_bits)), dtype=torch.int32)
    rows = max(1, _PIECE // max(1, codes.shape[-1]))
    if codes.ndim == 2 and codes.device.type == "cpu" and len(codes) > rows:
        packed = torch.empty((len(codes), _words(codes.shape[1], num_bits)), dtype=torch.int32)
        for start in range(0, len(codes), rows):
            packed[start : start + rows] = pack_int32(codes[start : start + rows], num_bits)
        return packed
    width = codes.shape[-1]
    raw = codes.view(torch.uint8) + 2 ** (num_bits - 1)  # [..., I], wraps around: -1 is 255, then 2^(b-1) - 1
    together, _ = _cell(num_bits)
    count = -(-width // 32) * 32 // together  # cells of a row, filled up to whole words
    cells = pad(raw, (0, -width % 32)).reshape(*codes.shape[:-1], count, together)  # [..., C, n]
    bits = _pushed(cells, num_bits)  # [..., C]
    stream = bits.unsqueeze(-1).view(torch.uint8)[..., : together * num_bits // 8]  # [..., C, bytes of a cell]
    return _reinterpret(stream, torch.int32, codes.shape[:-1])[..., : _words(width, num_bits)].contiguous()


def unpack_int32(packed: Tensor, num_bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that `pack_int32` has packed.

    Args:
        packed: [..., W], int32.
        num_bits: 1 to 8.
        shape: of the codes, [..., I].

    Returns:
        Codes, int8, of this shape.

    Raises:
        ValueError: words are not int32, `num_bits` is not 1 to 8, or `packed` is not of the shape that this takes.
    """
    _check(packed, torch.int32, num_bits)
    width = shape[-1]
    expected = (*shape[:-1], _words(width, num_bits))
    if tuple(packed.shape) != expected:
        raise ValueError(f"{tuple(shape)} codes of {num_bits} bits take {expected} words, got {tuple(packed.shape)}")
    together, holder = _cell(num_bits)
    count, size = -(-width // together), together * num_bits // 8  # cells of a row, bytes of a cell
    stream = _reinterpret(packed, torch.uint8, shape[:-1])  # [..., 4*W], bytes
    stream = pad(stream, (0, count * size - stream.shape[-1])).reshape(*shape[:-1], count, size)  # [..., C, size]
    bits = _reinterpret(pad(stream, (0, holder.itemsize - size)), holder, shape[:-1])  # [..., C]
    raw = torch.empty((*shape[:-1], count, together), dtype=torch.uint8, device=packed.device)  # [..., C, n]
    for place in range(together):
        raw[..., place] = (bits >> (place * num_bits)) & (2**num_bits - 1)
    codes = raw.sub_(2 ** (num_bits - 1)).view(torch.int8)  # wraps around, as in `pack_int32`
    return codes.flatten(-2)[..., :width].contiguous()


def pack_rows_int32(codes: Tensor, num_bits: int) -> Tensor:
    """Pack along rows, as zero points are: [O, G] -> [ceil(O * num_bits / 32), G]; see `pack_int32`."""
    return pack_int32(codes.T.contiguous(), num_bits).T.contiguous()


def unpack_rows_int32(packed: Tensor, num_bits: int, shape: tuple[int, int]) -> Tensor:
    """The codes that `pack_rows_int32` has packed: [ceil(O * num_bits / 32), G] -> [O, G]; see `unpack_int32`."""
    rows, columns = shape
    return unpack_int32(packed.T, num_bits, (columns, rows)).T.contiguous()


def _pushed(cells: Tensor, num_bits: int) -> Tensor:
    """The codes of each cell side by side in one number, first in the lowest bits, [..., C, n] -> [..., C].

    Where n bytes are a number that there is, they are read as that, and codes are moved n at a time.
    """
    together, holder = _cell(num_bits)
    whole = _NUMBERS.get(together) if holder == torch.uint8 else None
    if whole is None:
        bits = torch.zeros(cells.shape[:-1], dtype=holder, device=cells.device)  # [..., C]
        for place in range(together):
            bits |= cells[..., place].to(holder) << (place * num_bits)
        return bits
    number = _reinterpret(cells, whole, cells.shape[:-2])  # [..., C], code i in bits 8*i and up
    bits = number
    for place in range(1, together):  # the lowest byte fills, and what lies above it is dropped
        bits = bits | number >> (place * (8 - num_bits))
    return bits.to(torch.uint8)


def _cell(num_bits: int) -> tuple[int, torch.dtype]:
    """How many codes fill whole bytes together, and a dtype that holds them: a byte for 1, 2, 4 and 8 bits."""
    return (8 // num_bits, torch.uint8) if 8 % num_bits == 0 else (8, torch.int64)


def _reinterpret(x: Tensor, dtype: torch.dtype, rows: tuple[int, ...]) -> Tensor:
    """The bytes of `x` as another dtype, [*rows, ...]; viewed flat, since a dimension of size 1 may have any stride."""
    flat = x.contiguous().view(-1).view(dtype)
    return flat.view(*rows, flat.numel() // max(1, math.prod(rows)))


def _words(width: int, num_bits: int) -> int:
    return -(-width * num_bits // 32)


def _check(x: Tensor, dtype: torch.dtype, num_bits: int) -> None:
    if x.dtype != dtype:
        raise ValueError(f"expected {dtype}, got {x.dtype}")
    if not 1 <= num_bits <= 8:
        raise ValueError(f"num_bits must be 1 to 8, got {num_bits}")
