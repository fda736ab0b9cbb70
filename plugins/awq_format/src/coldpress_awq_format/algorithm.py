"""How codes, zero points and scales lie in an AWQ checkpoint of the version gemm.

Legend: `N` out, `K` in, `G` groups of a row.

All of them are stored transposed, inputs first.  Eight outputs share a word of 32 bits, in an order that suits the
kernel; codes and zero points are not negative: what is q here is q + 8 there.
"""

from typing import NamedTuple

from torch import Tensor, float16

from coldpress.numerics import pack_int32, unpack_int32

NUM_BITS = 4
_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of the outputs in a word, the least significant bits first


class Packed(NamedTuple):
    """The tensors of a layer, by their names in a checkpoint.

    Attributes:
        qweight: codes, [K, N / 8] int32.
        qzeros: zero points, [G, N / 8] int32.
        scales: [G, N] float16.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor


def pack(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Packed:
    """Put codes, scales and zero points where AWQ's readers look for them.

    Args:
        codes: [N, K] int8; N is a multiple of 8.
        scale: [N, G], its values those of float16.
        zero_point: [N, G] int8.
    """
    return Packed(_pack_rows(codes.t()), _pack_rows(zero_point.t()), scale.to(float16).t().contiguous())


def unpack(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack`: codes [N, K] int8, scale [N, G] float16, zero point [N, G] int8.

    Raises:
        ValueError: the tensors do not fit together.
    """
    groups, rows = packed.scales.shape
    codes, zero_point = _unpack_rows(packed.qweight, rows), _unpack_rows(packed.qzeros, rows)
    if len(zero_point) != groups:
        raise ValueError(f"there are scales of {groups} groups, and zero points of {len(zero_point)}")
    return codes.t().contiguous(), packed.scales.t().contiguous(), zero_point.t().contiguous()


def _pack_rows(numbers: Tensor) -> Tensor:
    """[*, N] int8 -> [*, N / 8] int32."""
    ordered = numbers.reshape(len(numbers), -1, len(_ORDER))[..., _ORDER].flatten(1)  # [*, N]
    return pack_int32(ordered.contiguous(), NUM_BITS)


def _unpack_rows(words: Tensor, rows: int) -> Tensor:
    """[*, N / 8] int32 -> [*, N] int8."""
    ordered = unpack_int32(words, NUM_BITS, (len(words), rows))
    back = sorted(range(len(_ORDER)), key=_ORDER.__getitem__)
    return ordered.reshape(len(words), -1, len(_ORDER))[..., back].flatten(1)
