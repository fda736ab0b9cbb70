"""How codes, scales and zero points lie in a checkpoint.

Legend: `O` out, `I` in, `G` groups of a row, `b` bits of a code, `W` words = ceil(I * b / 32).
"""

from torch import Tensor, bfloat16, dtype, int64, tensor

from coldpress.numerics import (
    decode_exponents,
    encode_exponents,
    pack_int32,
    pack_rows_int32,
    unpack_int32,
    unpack_rows_int32,
)


def pack_codes(codes: Tensor, num_bits: int) -> dict[str, Tensor]:
    """Codes as a stream of bits in each row, and the width that the padding of the last word hides.

    Args:
        codes: [O, I], int8.
        num_bits: b, 1 to 8.

    Returns:
        weight_packed [O, W], int32; weight_shape [2], int64.
    """
    return {
        "weight_packed": pack_int32(codes, num_bits),  # [O, W]
        "weight_shape": tensor(codes.shape, dtype=int64),  # [2]
    }


def unpack_codes(packed: Tensor, shape: Tensor, num_bits: int) -> Tensor:
    """The inverse of `pack_codes`: [O, W] -> [O, I], int8.

    Raises:
        ValueError: the words are not as many as `shape` takes.
    """
    rows, columns = shape.tolist()
    return unpack_int32(packed, num_bits, (rows, columns))


def pack_zero_points(zero_point: Tensor, num_bits: int) -> Tensor:
    """Zero points along the rows, [O, G] int8 -> [ceil(O * b / 32), G] int32; one for the tensor, [1], stays int8."""
    return zero_point.contiguous() if zero_point.ndim == 1 else pack_rows_int32(zero_point, num_bits)


def unpack_zero_points(packed: Tensor, shape: tuple[int, ...], num_bits: int) -> Tensor:
    """The inverse of `pack_zero_points`.

    Args:
        packed: [ceil(O * b / 32), G], int32, or [1], int8.
        shape: of the zero points, (O, G) or (1,).
        num_bits: b.

    Raises:
        ValueError: the words are not as many as `shape` takes.
    """
    if len(shape) == 1:
        return packed.reshape(shape)
    rows, columns = shape
    return unpack_rows_int32(packed, num_bits, (rows, columns))


def store_scale(scale: Tensor, scale_dtype: dtype | None) -> Tensor:
    """A scale as it is stored: as it is, or in the dtype of its own that the scheme gives it; exponents for uint8."""
    if scale_dtype is None:
        return scale.contiguous()
    return scale.to(scale_dtype).contiguous() if scale_dtype.is_floating_point else encode_exponents(scale)


def load_scale(stored: Tensor, scale_dtype: dtype | None) -> Tensor:
    """The inverse of `store_scale`; what has a dtype of its own comes in bfloat16, which holds it exactly."""
    if scale_dtype is None:
        return stored
    return stored.to(bfloat16) if scale_dtype.is_floating_point else decode_exponents(stored)
