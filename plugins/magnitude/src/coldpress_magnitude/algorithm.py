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


def scheduled_sparsity(progress: float, *, start: float, end: float, scheduler: str, exponent: float = 3.0) -> float:
    """The sparsity of gradual pruning.

    Args:
        progress: share of the schedule that is over, p, cut to [0, 1].
        start: sparsity at p = 0.
        end: sparsity at p = 1.
        scheduler: `linear`, p; `cubic`, 1 - (1 - p)^3 (Zhu and Gupta, arXiv 1710.01878, eq. 1); `polynomial_decay`,
            1 - (1 - p)^e; `polynomial`, p^e.
        exponent: e.
    """
    p = min(max(progress, 0.0), 1.0)
    power = 3.0 if scheduler == "cubic" else exponent
    share = {"linear": p, "polynomial": p**exponent}.get(scheduler, 1 - (1 - p) ** power)
    return float(start + (end - start) * share)


def smallest_of_all(weights: list[Tensor], *, sparsity: float) -> list[Tensor]:
    """Where the smallest weights of several matrices together are: one threshold for all.

    Args:
        weights: [O, I] each.
        sparsity: share of all of them that goes, to the nearest weight.

    Returns:
        Masks, [O, I] bool each.
    """
    sizes = torch.cat([weight.float().abs().flatten() for weight in weights])
    gone = smallest(sizes, round(sparsity * len(sizes)))
    parts = torch.split(gone, [weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
