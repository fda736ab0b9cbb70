"""How codes, zero points and scales lie in a GPTQ checkpoint.

Legend: `N` out, `K` in, `G` groups of a row, `b` bits of a code.

All of them are stored transposed, inputs first.  Codes are a stream of bits along the inputs, zero points one along the
outputs, the least significant bit of a word first; both are not negative: what is q here is q + 2^(b-1) there.
"""

from typing import NamedTuple

from torch import Tensor, arange, equal, float16, int32

from coldpress.numerics import pack_int32, pack_rows_int32, unpack_int32, unpack_rows_int32


class Packed(NamedTuple):
    """The tensors of a layer, by their names in a checkpoint.

    Attributes:
        qweight: codes, [K * b / 32, N] int32.
        qzeros: zero points, [G, N * b / 32] int32.
        scales: [G, N] float16.
        g_idx: the group of each input, [K] int32; None where a checkpoint has none, and groups are runs of inputs.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None


def pack(codes: Tensor, scale: Tensor, zero_point: Tensor, *, num_bits: int, offset: int) -> Packed:
    """Put codes, scales and zero points where GPTQ's readers look for them.

    Args:
        codes: [N, K] int8.
        scale: [N, G], its values those of float16.
        zero_point: [N, G] int8.
        num_bits: b, 2 to 8; K * b and N * b are multiples of 32.
        offset: what is taken off zero points: 1 in version 1, 0 in version 2.

    Raises:
        ValueError: a zero point is smaller than the offset.
    """
    stored = zero_point.to(int32) - offset  # [N, G]
    if not stored.is_meta and int(stored.amin()) < -(2 ** (num_bits - 1)):
        raise ValueError(f"version 1 of GPTQ stores zero points less 1, so it cannot store {-(2 ** (num_bits - 1))}")
    width, groups = codes.shape[1], scale.shape[1]
    return Packed(
        qweight=pack_rows_int32(codes.t(), num_bits),
        qzeros=pack_int32(stored.to(zero_point.dtype).t().contiguous(), num_bits),
        scales=scale.to(float16).t().contiguous(),
        g_idx=_runs(width, groups, codes),
    )


def unpack(packed: Packed, *, num_bits: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack`: codes [N, K] int8, scale [N, G] float16, zero point [N, G] int8.

    Raises:
        ValueError: the tensors do not fit together, groups are not runs of inputs, or a zero point is off the grid.
    """
    groups, rows = packed.scales.shape
    width = packed.qweight.shape[0] * 32 // num_bits
    if not groups or width % groups:
        raise ValueError(f"{width} inputs do not split into {groups} groups")
    codes = unpack_rows_int32(packed.qweight, num_bits, (width, rows)).t().contiguous()
    zero_point = unpack_int32(packed.qzeros, num_bits, (groups, rows)).to(int32) + offset  # [G, N]
    if int(zero_point.amax()) >= 2 ** (num_bits - 1):
        raise ValueError(f"a zero point is {2**num_bits}, which {num_bits} bits do not hold")
    if packed.g_idx is not None and not equal(packed.g_idx.to(int32), _runs(width, groups, packed.g_idx)):
        raise ValueError("g_idx says that groups are not runs of inputs: weights were stored in the order of act-order")
    return codes, packed.scales.t().contiguous(), zero_point.t().contiguous().to(codes.dtype)


def _runs(width: int, groups: int, like: Tensor) -> Tensor:
    """The group of each input where groups are runs of inputs, [K] int32."""
    return arange(width, dtype=int32, device=like.device) // (width // groups)
