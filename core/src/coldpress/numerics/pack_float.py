"""Codes of narrow floating-point grids packed into bytes, and scales that are powers of two as their exponents.

The bits of a number are its sign, its exponent and its mantissa; without the sign they count the grid from 0 upwards:

    float4    S EE M      0, 0.5, 1, 1.5, 2, 3, 4, 6            two to a byte, the first in the low half
    float6    S EE MMM    0, 1/8, ... 2, 9/4, ... 4, ... 15/2   four to three bytes, the first in the lowest bits
"""

from functools import lru_cache, partial

import torch
from torch import Tensor

from coldpress.schemes import FloatFormat, NumberFormat

_BIAS = 127  # of E8M0
_PIECE = 1 << 18  # codes that are packed at a time on the CPU, so that they stay in a core's cache


def pack_floats(codes: Tensor, grid: NumberFormat) -> Tensor:
    """Pack each row.

    Args:
        codes: [O, I], numbers of the grid in any floating dtype; I a multiple of what fills whole bytes.
        grid: a `FloatFormat` of 4 or 6 bits.

    Returns:
        [O, I * bits / 8], uint8.

    Raises:
        ValueError: the columns do not fill whole bytes.
    """
    together, size = _cell(grid, codes.shape[-1])
    if codes.is_meta:  # for which torch would import its compiler, a second and 80 MB
        return codes.new_empty((*codes.shape[:-1], codes.shape[-1] // together * size), dtype=torch.uint8)
    if codes.dtype == torch.float8_e4m3fn:
        if size == 1 and isinstance(grid, FloatFormat) and (grid.exponent_bits, grid.mantissa_bits) == (2, 1):
            return _pack_float4(codes)
        table = _bits_of_float8(grid).to(codes.device)
        bits = table[codes.contiguous().view(torch.uint8).int()].int()  # [O, I]
    else:
        bits = _bits(codes, grid)
    bits = bits.reshape(*codes.shape[:-1], -1, together)  # [O, C, n]
    word = torch.zeros(bits.shape[:-1], dtype=torch.int32, device=codes.device)  # [O, C]
    for place in range(together):
        word |= bits[..., place] << (place * grid.num_bits)
    parts = [(word >> (8 * byte)) & 0xFF for byte in range(size)]
    return torch.stack(parts, dim=-1).to(torch.uint8).flatten(-2)


def _pack_float4(codes: Tensor) -> Tensor:
    """Two codes a byte, [..., I] float8 -> [..., I/2], by the bits of float8: many codes are worked on as one number.

    The bits of 0, 0.5, 1, 1.5, 2, 3, 4, 6 without their lowest two, which are zero, are 0, 12, 14, 15, 16, 17, 18, 19:
    bits 0 and 1 are those of the code, bit 4 is its bit 2, and 12 alone has bit 2 without bit 1.
    """
    rows = max(1, _PIECE // max(1, codes.shape[-1]))
    if codes.ndim == 2 and codes.device.type == "cpu" and len(codes) > rows:
        packed = torch.empty((len(codes), codes.shape[1] // 2), dtype=torch.uint8)
        for start in range(0, len(codes), rows):
            packed[start : start + rows] = _pack_float4(codes[start : start + rows])
        return packed
    whole = torch.int64 if codes.numel() % 8 == 0 else torch.int16
    number = codes.contiguous().view(torch.uint8).view(-1).view(whole)
    each = partial(_each_byte, size=whole.itemsize)
    top = number >> 2 & each(0x1F)
    half = top >> 2 & ~(top >> 1) & each(0x01)
    bits = top & each(0x03) | top >> 2 & each(0x04) | half | number >> 4 & each(0x08)
    pairs = (bits | bits >> 4).view(torch.int16)  # the second code of a pair above the first
    return pairs.to(torch.uint8).view(*codes.shape[:-1], codes.shape[-1] // 2)


def _each_byte(value: int, *, size: int) -> int:
    """A number of `size` bytes, each of which is this one."""
    return int.from_bytes(bytes([value]) * size, "little")


def _bits(codes: Tensor, grid: NumberFormat) -> Tensor:
    """Sign and place in the grid of each number, the shape of `codes`, int32."""
    bits = torch.searchsorted(_magnitudes(grid, codes.device), codes.float().abs().contiguous()).int()
    return bits | torch.signbit(codes.float()).int() << (grid.num_bits - 1)


@lru_cache
def _bits_of_float8(grid: NumberFormat) -> Tensor:
    """`_bits` of the 256 numbers of float8, [256] uint8; of those that are no points of the grid, any."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return _bits(numbers, grid).clamp(0, 2**grid.num_bits - 1).to(torch.uint8)


def unpack_floats(packed: Tensor, grid: NumberFormat) -> Tensor:
    """The codes that `pack_floats` has packed, in the code dtype of the grid.

    Raises:
        ValueError: bytes are not uint8, or do not end with a code.
    """
    together, size = _cell(grid)
    if packed.dtype != torch.uint8 or packed.shape[-1] % size:
        raise ValueError(f"expected uint8 in rows of {size} bytes or a multiple, got {packed.dtype} {packed.shape}")
    parts = packed.reshape(*packed.shape[:-1], -1, size).int()  # [O, C, bytes]
    word = torch.zeros(parts.shape[:-1], dtype=torch.int32, device=packed.device)  # [O, C]
    for byte in range(size):
        word |= parts[..., byte] << (8 * byte)
    places = [(word >> (place * grid.num_bits)) & (2**grid.num_bits - 1) for place in range(together)]
    bits = torch.stack(places, dim=-1).flatten(-2)  # [O, I]
    sign = 2 ** (grid.num_bits - 1)
    sizes = _magnitudes(grid, packed.device)[bits & (sign - 1)]
    return torch.where(bits & sign != 0, -sizes, sizes).to(grid.code_dtype)


def encode_exponents(scale: Tensor) -> Tensor:
    """Powers of two as E8M0, uint8: the exponent plus 127; the shape of `scale`."""
    if scale.is_meta:  # as in `pack_floats`
        return scale.new_empty(scale.shape, dtype=torch.uint8)
    exponent = torch.frexp(scale.float()).exponent - 1
    return (exponent + _BIAS).clamp_(0, 254).to(torch.uint8)


def decode_exponents(exponents: Tensor) -> Tensor:
    """The inverse of `encode_exponents`, in bfloat16, which holds every one of them."""
    ones = torch.ones_like(exponents, dtype=torch.float32)
    return torch.ldexp(ones, exponents.int() - _BIAS).to(torch.bfloat16)


def _cell(grid: NumberFormat, columns: int = 0) -> tuple[int, int]:
    """How many codes fill how many whole bytes."""
    together, size = (2, 1) if grid.num_bits == 4 else (4, 3)
    if grid.num_bits not in (4, 6) or columns % together:
        raise ValueError(f"{columns} columns of {grid.name} do not fill whole bytes; {together} do")
    return together, size


def _magnitudes(grid: NumberFormat, device: torch.device) -> Tensor:
    """The numbers of the grid that are not negative, ascending, [2^(bits - 1)] float32."""
    assert isinstance(grid, FloatFormat)
    ones = 2**grid.mantissa_bits
    least = 2 - 2 ** (grid.exponent_bits - 1)  # exponent of the smallest normal number
    small = torch.arange(ones) / ones * 2.0**least
    large = [(1 + torch.arange(ones) / ones) * 2.0 ** (least + e) for e in range(2**grid.exponent_bits - 1)]
    return torch.cat([small, *large]).to(device)
