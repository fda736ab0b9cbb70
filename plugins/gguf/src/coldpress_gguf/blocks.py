"""Codes and scales as the blocks of ggml, and back: bits are moved, and no number is rounded but a minimum.

Legend: `O` out, `I` in, `B` blocks of a row, `S` super-blocks of 256, `n` groups in one, `u` codes counted from 0.

    type    of  bytes   what a code stands for
    Q4_0    32   18     d (u - 8)              d float16, then nibbles: the first half of a block low, the second high
    Q4_1    32   20     d u + m                d, m float16
    Q5_0    32   22     d (u - 16)             d, the fifth bits, nibbles
    Q5_1    32   24     d u + m
    Q8_0    32   34     d c                    d, bytes
    MXFP4   32   17     2^(e - 127) c          e, a byte; nibbles
    NVFP4   64   36     s c                    s, float8 E4M3 of each 16; nibbles, halves of each 16
    Q4_K   256  144     d s u - dmin m         d, dmin, 8 pairs (s, m) of 6 bits, nibbles
    Q5_K   256  176     the same               and the fifth bits
    Q6_K   256  210     d s (u - 32)           low nibbles, two high bits, s int8 of each 16, d

Source: `ggml-common.h` of llama.cpp.  The tests decode every type with the library gguf.
"""

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from coldpress.numerics import decode_exponents, encode_exponents, pack_floats, unpack_floats
from coldpress.plugin import QuantizationArgs, Quantized, Scheme, number_format

SUPER_BLOCK = 256

_BLOCK, _HALF = 32, 16


@frozen
class BlockType:
    """How a row is cut into blocks.

    Attributes:
        name: that ggml has for it.
        size: columns of a block.
        nbytes: of a block.
        pack: what a layer is in blocks, [O, I / size * nbytes] uint8.
        unpack: the inverse: blocks and the scheme to the layer; of NVFP4 without its global scale.
    """

    name: str
    size: int
    nbytes: int
    pack: Callable[[Quantized], Tensor]
    unpack: Callable[[Tensor, Scheme], Quantized]

    def width(self, nbytes: int) -> int:
        """Columns of a row of so many bytes.

        Raises:
            ValueError: they are not whole blocks.
        """
        if nbytes % self.nbytes:
            raise ValueError(f"{nbytes} bytes are not whole blocks of {self.name}, which have {self.nbytes}")
        return nbytes // self.nbytes * self.size


def _symmetric(quantized: Quantized) -> tuple[Tensor, Tensor]:
    """Codes in blocks of 32, [O, B, 32], and the scale of each as bytes of float16, [O, B, 2]."""
    codes, scale, _ = _parts(quantized)
    codes = codes.reshape(len(codes), -1, _BLOCK)
    return codes, _as_bytes(_spread(scale, codes.shape[1]))


def _asymmetric(quantized: Quantized) -> tuple[Tensor, Tensor]:
    """Codes counted from 0, [O, B, 32], and scale and minimum of each block as bytes of float16, [O, B, 4]."""
    codes, scale, zero_point = _parts(quantized)
    half = 2 ** (_args(quantized.scheme).num_bits - 1)
    codes = codes.reshape(len(codes), -1, _BLOCK) + half
    minimum = -(zero_point.float() + half) * scale.float()  # [O, G]; the one number that float16 may round
    pair = (_as_bytes(_spread(part, codes.shape[1])) for part in (scale, minimum))
    return codes, torch.cat(list(pair), dim=-1)


def _pack_q4_0(quantized: Quantized) -> Tensor:
    codes, scale = _symmetric(quantized)
    return _joined(scale, _nibbles(codes + 8))


def _pack_q4_1(quantized: Quantized) -> Tensor:
    codes, pair = _asymmetric(quantized)
    return _joined(pair, _nibbles(codes))


def _pack_q5_0(quantized: Quantized) -> Tensor:
    codes, scale = _symmetric(quantized)
    return _joined(scale, _fifth_bits(codes + 16), _nibbles((codes + 16) & 15))


def _pack_q5_1(quantized: Quantized) -> Tensor:
    codes, pair = _asymmetric(quantized)
    return _joined(pair, _fifth_bits(codes), _nibbles(codes & 15))


def _pack_q8_0(quantized: Quantized) -> Tensor:
    codes, scale = _symmetric(quantized)
    return _joined(scale, codes.contiguous().view(torch.uint8))


def _pack_mxfp4(quantized: Quantized) -> Tensor:
    codes, scale, _ = _parts(quantized)
    bits = _float_bits(codes, quantized.scheme).reshape(len(codes), -1, _BLOCK)
    return _joined(encode_exponents(scale)[..., None], _nibbles(bits))


def _pack_nvfp4(quantized: Quantized) -> Tensor:
    codes, scale, _ = _parts(quantized)
    bits = _float_bits(codes, quantized.scheme).reshape(len(codes), -1, 4, _HALF)  # [O, B, 4, 16]
    scales = scale.to(torch.float8_e4m3fn).view(torch.uint8).reshape(len(codes), -1, 4)  # [O, B, 4]
    return _joined(scales, _nibbles(bits).flatten(-2))


def _pack_q4_k(quantized: Quantized) -> Tensor:
    codes, pairs, ends = _super_blocks(quantized)
    return _joined(ends, pairs, _runs_of_nibbles(codes))


def _pack_q5_k(quantized: Quantized) -> Tensor:
    codes, pairs, ends = _super_blocks(quantized)
    high = (codes >> 4).reshape(*codes.shape[:2], 8, _BLOCK)  # [O, S, 8, 32]
    places = torch.arange(8, device=codes.device)[:, None]
    fifth = (high.int() << places).sum(2).to(torch.uint8)  # [O, S, 32]
    return _joined(ends, pairs, fifth, _runs_of_nibbles(codes & 15))


def _pack_q6_k(quantized: Quantized) -> Tensor:
    codes, scale, _ = _parts(quantized)
    codes = (codes + 32).to(torch.uint8).reshape(len(codes), -1, 2, 4, _BLOCK)  # [O, S, halves, quarters, 32]
    low = codes & 15
    nibbles = low[:, :, :, :2] | low[:, :, :, 2:] << 4  # [O, S, 2, 2, 32]
    places = 2 * torch.arange(4, device=codes.device)[:, None]
    high = ((codes >> 4).int() << places).sum(3).to(torch.uint8)  # [O, S, 2, 32]
    steps, unit = _multiples(scale.reshape(len(codes), -1, SUPER_BLOCK // _HALF), 127)
    return _joined(nibbles.flatten(2), high.flatten(2), steps.to(torch.int8).view(torch.uint8), _as_bytes(unit))


def _unpack_q4_0(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 18)
    return _restored(_of_nibbles(rows[..., 2:]) - 8, rows[..., :2], scheme)


def _unpack_q4_1(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 20)
    return _restored_with_minimum(_of_nibbles(rows[..., 4:]), rows[..., :4], scheme)


def _unpack_q5_0(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 22)
    codes = _of_nibbles(rows[..., 6:]) + 16 * _of_fifth_bits(rows[..., 2:6])
    return _restored(codes - 16, rows[..., :2], scheme)


def _unpack_q5_1(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 24)
    codes = _of_nibbles(rows[..., 8:]) + 16 * _of_fifth_bits(rows[..., 4:8])
    return _restored_with_minimum(codes, rows[..., :4], scheme)


def _unpack_q8_0(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 34)
    return _restored(rows[..., 2:].contiguous().view(torch.int8), rows[..., :2], scheme)


def _unpack_mxfp4(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 17)
    codes = _of_float_bits(_of_nibbles(rows[..., 1:]).flatten(1), scheme)
    return _quantized(scheme, codes, decode_exponents(rows[..., 0].contiguous()))


def _unpack_nvfp4(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 36)
    nibbles = _of_nibbles(rows[..., 4:].reshape(*rows.shape[:2], 4, 8))  # [O, B, 4, 16]
    scale = rows[..., :4].contiguous().view(torch.float8_e4m3fn).to(torch.bfloat16).flatten(1)  # [O, G]
    return _quantized(scheme, _of_float_bits(nibbles.flatten(1), scheme), scale)


def _unpack_q4_k(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 144)
    return _restored_super_blocks(_of_runs_of_nibbles(rows[..., 16:]), rows, scheme)


def _unpack_q5_k(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 176)
    places = torch.arange(8, device=blocks.device)[:, None]
    fifth = (rows[..., 16:48].unsqueeze(2).int() >> places) & 1  # [O, S, 8, 32]
    codes = _of_runs_of_nibbles(rows[..., 48:]) + 16 * fifth.flatten(2).to(torch.int8)
    return _restored_super_blocks(codes, rows, scheme)


def _unpack_q6_k(blocks: Tensor, scheme: Scheme) -> Quantized:
    rows = blocks.reshape(len(blocks), -1, 210)
    nibbles = rows[..., :128].reshape(*rows.shape[:2], 2, 2, _BLOCK)
    low = torch.cat([nibbles & 15, nibbles >> 4], dim=3)  # [O, S, 2, 4, 32]
    places = 2 * torch.arange(4, device=blocks.device)[:, None]
    high = (rows[..., 128:192].reshape(*rows.shape[:2], 2, 1, _BLOCK).int() >> places) & 3
    codes = (low.int() + 16 * high - 32).to(torch.int8).reshape(len(rows), -1)
    steps = rows[..., 192:208].contiguous().view(torch.int8).float()  # [O, S, 16]
    return _quantized(scheme, codes, (steps * _of_bytes(rows[..., 208:])).flatten(1))


TYPES = {
    one.name: one
    for one in (
        BlockType("Q4_0", 32, 18, _pack_q4_0, _unpack_q4_0),
        BlockType("Q4_1", 32, 20, _pack_q4_1, _unpack_q4_1),
        BlockType("Q5_0", 32, 22, _pack_q5_0, _unpack_q5_0),
        BlockType("Q5_1", 32, 24, _pack_q5_1, _unpack_q5_1),
        BlockType("Q8_0", 32, 34, _pack_q8_0, _unpack_q8_0),
        BlockType("MXFP4", 32, 17, _pack_mxfp4, _unpack_mxfp4),
        BlockType("NVFP4", 64, 36, _pack_nvfp4, _unpack_nvfp4),
        BlockType("Q4_K", 256, 144, _pack_q4_k, _unpack_q4_k),
        BlockType("Q5_K", 256, 176, _pack_q5_k, _unpack_q5_k),
        BlockType("Q6_K", 256, 210, _pack_q6_k, _unpack_q6_k),
    )
}
"""Name to type, of those that are written."""


def _args(scheme: Scheme) -> QuantizationArgs:
    assert scheme.weights is not None
    return scheme.weights


def _parts(quantized: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    assert quantized.codes is not None
    assert quantized.scale is not None
    zero_point = quantized.zero_point
    return quantized.codes, quantized.scale, torch.zeros_like(quantized.scale) if zero_point is None else zero_point


def _quantized(scheme: Scheme, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Quantized:
    points = torch.zeros_like(scale, dtype=torch.int8) if zero_point is None else zero_point
    return Quantized(scheme, codes=codes, scale=scale, zero_point=points)


def _spread(numbers: Tensor, blocks: int) -> Tensor:
    """Numbers of groups, rows or the whole tensor, for each block, [O, B] or [1, B]."""
    numbers = numbers.reshape(1, 1) if numbers.ndim == 1 else numbers
    return numbers.repeat_interleave(blocks // numbers.shape[1], dim=1)


def _gathered(numbers: Tensor, scheme: Scheme, width: int) -> Tensor:
    """The inverse of `_spread`: the number of the first block of each group, or row, or tensor."""
    args = _args(scheme)
    if args.strategy == "tensor":
        return numbers[:1, 0].clone(memory_format=torch.contiguous_format)
    size = args.group_size if args.strategy == "group" and args.group_size else width
    return numbers[:, :: size // _BLOCK].clone(memory_format=torch.contiguous_format)


def _restored(codes: Tensor, scale: Tensor, scheme: Scheme) -> Quantized:
    """From codes, [O, B, 32], and the bytes of scales, [O, B, 2]."""
    codes = codes.flatten(1).contiguous()
    return _quantized(scheme, codes, _gathered(_of_bytes(scale).squeeze(-1), scheme, codes.shape[1]))


def _restored_with_minimum(codes: Tensor, pair: Tensor, scheme: Scheme) -> Quantized:
    """From codes counted from 0, [O, B, 32], and the bytes of scales and minima, [O, B, 4]."""
    half, codes = 2 ** (_args(scheme).num_bits - 1), codes.flatten(1)
    ends = _of_bytes(pair)  # [O, B, 2]
    scale, minimum = (_gathered(ends[..., place], scheme, codes.shape[1]) for place in (0, 1))
    points = (-minimum.float() / scale.float()).round().nan_to_num(0) - half
    return _quantized(scheme, (codes - half).contiguous(), scale, points.to(torch.int8))


def _super_blocks(quantized: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """Codes counted from 0, [O, S, 256]; the pairs of 6 bits, [O, S, 12]; the bytes of d and dmin, [O, S, 4]."""
    codes, scale, zero_point = _parts(quantized)
    half = 2 ** (_args(quantized.scheme).num_bits - 1)
    scale = scale.reshape(len(codes), -1, 8)  # [O, S, 8]
    minimum = (zero_point.float().reshape(scale.shape) + half) * scale  # exact but for the last bits of half
    (steps, unit), (low, low_unit) = _multiples(scale, 63), _multiples(minimum, 63, half * 2**-22 * scale.float())
    codes = (codes + half).to(torch.uint8).reshape(len(codes), -1, SUPER_BLOCK)
    return codes, _pack_pairs(steps, low), torch.cat([_as_bytes(unit), _as_bytes(low_unit)], dim=-1)


def _restored_super_blocks(codes: Tensor, rows: Tensor, scheme: Scheme) -> Quantized:
    """From codes counted from 0, [O, S, 256], and blocks that begin with d, dmin and pairs."""
    half = 2 ** (_args(scheme).num_bits - 1)
    ends = _of_bytes(rows[..., :4])  # [O, S, 2]
    steps, low = _unpack_pairs(rows[..., 4:16])
    scale = (steps * ends[..., :1]).flatten(1)  # [O, G]
    points = (low * ends[..., 1:]).flatten(1) / scale - half
    return _quantized(scheme, (codes.flatten(1).to(torch.int16) - half).to(torch.int8), scale, points.nan_to_num(0))


def _multiples(numbers: Tensor, most: int, tolerance: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Numbers as multiples of one float16 for each row of them: [O, S, n] to whole numbers, and the unit, [O, S, 1].

    Whoever chose the numbers made the largest `most` times the unit, as a rule; every smaller multiple is tried too.
    A number may be off by 1e-5 of itself and by `tolerance`.

    Raises:
        ValueError: there is no such unit.
    """
    numbers = numbers.float()
    largest = numbers.amax(-1, keepdim=True)  # [O, S, 1]
    steps, unit = torch.zeros_like(numbers), torch.zeros_like(largest)
    if numbers.is_meta:  # shapes are all that is asked for
        return steps, unit
    open_ = largest > 0
    for multiple in range(most, 0, -1):
        if not open_.any():
            return steps, unit
        guess = (largest / multiple).half().float()
        found = (numbers / guess.clamp(min=torch.finfo(torch.float32).tiny)).round()
        near = ((found * guess - numbers).abs() <= 1e-5 * numbers.abs() + tolerance).all(-1, keepdim=True)
        near &= open_ & (found.amax(-1, keepdim=True) <= most)
        steps, unit = torch.where(near, found, steps), torch.where(near, guess, unit)
        open_ &= ~near
    if open_.any():
        raise ValueError(f"scales of a super-block are not multiples, up to {most}, of a float16")
    return steps, unit


def _pack_pairs(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight pairs of 6 bits, [O, S, 8] each, in 12 bytes, [O, S, 12]."""
    s, m = scales.to(torch.uint8), minima.to(torch.uint8)
    first = s[..., :4] | (s[..., 4:] >> 4) << 6
    second = m[..., :4] | (m[..., 4:] >> 4) << 6
    third = (s[..., 4:] & 15) | (m[..., 4:] & 15) << 4
    return torch.cat([first, second, third], dim=-1)


def _unpack_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `_pack_pairs`, float32."""
    first, second, third = torch.split(packed, 4, dim=-1)
    scales = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], dim=-1)
    minima = torch.cat([second & 63, third >> 4 | (second >> 6) << 4], dim=-1)
    return scales.float(), minima.float()


def _nibbles(codes: Tensor) -> Tensor:
    """Numbers below 16, the first half of the last dimension in the low halves of bytes, the second in the high."""
    low, high = codes.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4


def _of_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `_nibbles`, int8."""
    return torch.cat([packed & 15, packed >> 4], dim=-1).to(torch.int8)


def _runs_of_nibbles(codes: Tensor) -> Tensor:
    """[O, S, 256] to [O, S, 128]: four runs of 64 codes."""
    return _nibbles(codes.reshape(*codes.shape[:2], 4, 64)).flatten(2)


def _of_runs_of_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `_runs_of_nibbles`."""
    return _of_nibbles(packed.reshape(*packed.shape[:2], 4, 32)).flatten(2)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 numbers, [O, B, 32], as the bits of four bytes, [O, B, 4]."""
    bits = ((codes.to(torch.uint8) >> 4) & 1).reshape(*codes.shape[:-1], 4, 8)
    return (bits.int() << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def _of_fifth_bits(packed: Tensor) -> Tensor:
    """The inverse of `_fifth_bits`: 0 or 1, int8, [O, B, 32]."""
    return ((packed[..., None].int() >> torch.arange(8, device=packed.device)) & 1).flatten(-2).to(torch.int8)


def _float_bits(codes: Tensor, scheme: Scheme) -> Tensor:
    """Numbers of float4 as their bits, [O, I] uint8 below 16."""
    packed = pack_floats(codes, number_format(_args(scheme)))  # [O, I / 2]
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def _of_float_bits(bits: Tensor, scheme: Scheme) -> Tensor:
    """The inverse of `_float_bits`, [O, I]."""
    low, high = bits.to(torch.uint8).reshape(len(bits), -1, 2).unbind(-1)
    return unpack_floats(low | high << 4, number_format(_args(scheme)))


def _as_bytes(numbers: Tensor) -> Tensor:
    """Numbers as float16, [O, B] or [O, S, 1] to bytes in the last dimension."""
    numbers = numbers if numbers.ndim == 3 else numbers[..., None]
    return numbers.half().contiguous().view(torch.uint8)


def _of_bytes(packed: Tensor) -> Tensor:
    """The inverse of `_as_bytes`, float32 holding float16."""
    return packed.contiguous().view(torch.float16).float()


def _joined(*parts: Tensor) -> Tensor:
    """The parts of blocks, [O, B, *] uint8, side by side, as rows of bytes."""
    rows = max(len(part) for part in parts)
    return torch.cat([part.expand(rows, -1, -1) for part in parts], dim=-1).flatten(1).contiguous()
