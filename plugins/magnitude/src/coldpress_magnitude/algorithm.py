"""Magnitude pruning: a weight is worth its size, and those that are worth least become zero.

Letters: O out, I in, r and c rows and columns of a block.
"""

import torch
from torch import Tensor

from coldpress.numerics import dequantize, quantize
from coldpress.numerics.mask import smallest, smallest_in_groups
from coldpress.plugin import QuantizationArgs


def prune_weights(weight: Tensor, *, sparsity: float) -> Tensor:
    """Drop the smallest weights of a matrix, [O, I], to the nearest weight of the whole."""
    gone = smallest(weight.float().abs().flatten(), round(sparsity * weight.numel()))
    return weight.masked_fill(gone.view(weight.shape), 0)


def prune_groups(weight: Tensor, *, kept: int, size: int) -> Tensor:
    """Of every `size` weights side by side in a row drop all but the `kept` largest, [O, I]."""
    return weight.masked_fill(smallest_in_groups(weight.float().abs(), size - kept, size), 0)


def prune_blocks(weight: Tensor, *, block: tuple[int, int], sparsity: float) -> Tensor:
    """Drop the blocks with the smallest Frobenius norm.

    Args:
        weight: [O, I].
        block: rows and columns of a block, (r, c), which divide those of the weight.
        sparsity: share of the blocks that goes, to the nearest block.
    """
    rows, columns = (total // side for total, side in zip(weight.shape, block, strict=True))
    split = weight.float().square().view(rows, block[0], columns, block[1])
    gone = smallest(split.sum((1, 3)).flatten(), round(sparsity * rows * columns)).view(rows, 1, columns, 1)
    return weight.masked_fill(gone.expand(rows, block[0], columns, block[1]).reshape(weight.shape), 0)


def codes_with_zeros(
    codes: Tensor, zeros: Tensor, scale: Tensor, zero_point: Tensor | None, args: QuantizationArgs
) -> Tensor | None:
    """Codes of which some stand for exactly zero.

    Args:
        codes: [O, I].
        zeros: which, [O, I] bool.
        scale: in the shape of the strategy.
        zero_point: the same.
        args: the grid and who shares a scale.

    Returns:
        The codes; None if the grid of some weight that should be zero has no zero.
    """
    nothing = torch.zeros(codes.shape, dtype=scale.dtype, device=codes.device)
    for_zero = quantize(nothing, scale, zero_point, args)
    if bool(dequantize(for_zero, scale, zero_point, args)[zeros].any()):
        return None
    return torch.where(zeros, for_zero, codes)
