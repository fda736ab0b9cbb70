"""How codes and scales lie in these checkpoints.

Legend: `E` experts, `O` out, `I` in.
"""

import torch
from torch import Tensor

from coldpress.numerics import decode_exponents, unpack_floats
from coldpress.plugin import QuantizationArgs, number_format

_FLOAT4 = number_format(QuantizationArgs(num_bits=4, type="float"))


def unpack_fp4(packed: Tensor) -> Tensor:
    """Two numbers of four bits to a byte, the first in the low half: [..., I / 2] int8 or uint8 to codes [..., I]."""
    return unpack_floats(packed.contiguous().view(torch.uint8), _FLOAT4)


def unpack_blocks(blocks: Tensor) -> Tensor:
    """Blocks of 32 numbers in 16 bytes: [O, I / 32, 16] uint8 to codes [O, I]."""
    return unpack_fp4(blocks.flatten(-2))


def load_scale(stored: Tensor) -> Tensor:
    """Scales as numbers: exponents (E8M0, or bare in uint8) as powers of two in bfloat16, all others as they are."""
    if stored.dtype in (torch.float8_e8m0fnu, torch.uint8):
        return decode_exponents(stored.contiguous().view(torch.uint8))
    return stored


def block_of(shape: tuple[int, int], scales: tuple[int, ...], usual: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, of a weight [O, I] and its scales; None where none of the usual ones fit.

    A row or column of blocks that sticks out has a scale of its own.
    """
    for high, wide in (usual, (128, 128), (64, 64), (32, 32)):
        if scales == (-(-shape[0] // high), -(-shape[1] // wide)):
            return high, wide
    return None
