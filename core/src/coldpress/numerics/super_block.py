"""Scales of two levels in whole numbers: groups have multiples of one float16 for 256 columns, as ggml's K-quants do.

Legend: `S` super-blocks of a row, `n` groups in one, `G = S n`.

    symmetric     w = d k c                 k up to 2^(b-1) - 1
    asymmetric    w = d k u - d' m          k and m up to 2^b - 1, u = c - q_min; so z = q_min + d' m / (d k)
"""

import torch
from torch import Tensor

from coldpress.schemes import QuantizationArgs, number_format
from coldpress.schemes.quantization_args import SUPER_BLOCK


def super_block_qparams(minimum: Tensor, maximum: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges on the two-level grid, [..., G] float32 both; int8 zeros where symmetric.

    The largest multiple of a super-block is the largest that there is, so that a reader finds the unit again.
    A zero point is within the grid: a range that does not hold zero begins where it must.

    Args:
        minimum: of each group, not above 0, [..., G] float32.
        maximum: of each group, not below 0, [..., G] float32.
        args: with `scale_bits`.
    """
    grid, per_block = number_format(args), SUPER_BLOCK // _size(args)
    if args.symmetric:
        half = (grid.maximum - grid.minimum) / 2
        step, unit = _multiples(torch.maximum(-minimum, maximum) / half, per_block, largest_multiple(args))
        scale = (step.clamp(min=1) * unit).flatten(-2)
        return scale, torch.zeros_like(scale, dtype=torch.int8)
    steps = grid.maximum - grid.minimum
    step, unit = _multiples((maximum - minimum) / steps, per_block, largest_multiple(args))
    scale = step.clamp(min=1) * unit  # [..., S, n]
    low, low_unit = _multiples(-minimum, per_block, largest_multiple(args))
    low = torch.minimum(low, (steps * scale / low_unit).floor())
    return scale.flatten(-2), (grid.minimum + low * low_unit / scale).flatten(-2)


def _multiples(numbers: Tensor, per_block: int, most: int) -> tuple[Tensor, Tensor]:
    """Numbers as multiples of a float16: whole numbers up to `most`, [..., S, n], and the unit, [..., S, 1]."""
    blocks = numbers.reshape(*numbers.shape[:-1], -1, per_block)  # [..., S, n]
    limits = torch.finfo(torch.float16)
    unit = (blocks.amax(-1, keepdim=True) / most).clamp(max=limits.max).half().float()
    unit = torch.where(unit == 0, limits.smallest_normal, unit)
    return (blocks / unit).round().clamp_(0, most), unit


def largest_multiple(args: QuantizationArgs) -> int:
    """The scale of a group over the float16 of its super-block, at most."""
    assert args.scale_bits is not None
    return int(2 ** (args.scale_bits - args.symmetric) - 1)


def _size(args: QuantizationArgs) -> int:
    assert args.group_size is not None
    return args.group_size
