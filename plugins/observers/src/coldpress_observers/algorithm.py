"""Ranges: of one tensor, of several, averaged, and the one that loses least.

`*q` is the shape of the scales, `n` the elements that share one; a range is a pair of tensors [*q], smallest and
largest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress import QuantizationArgs
from coldpress.numerics import calculate_qparams, fake_quantize_groups

_BLOCK = 2**20  # elements that are rounded at once: temporaries stay small beside a weight

Range = tuple[Tensor, Tensor]


class Average(NamedTuple):
    """A moving average of ranges.

    Attributes:
        minimum: [*q], float32 or wider: bf16 would stand still, a hundredth of a change is less than its eps.
        maximum: [*q], the same.
        batches: ranges averaged so far.
        dtype: of the ranges.
    """

    minimum: Tensor
    maximum: Tensor
    batches: int
    dtype: torch.dtype


def extremes(x: Tensor) -> Range:
    """The range of each group, [*q, n] -> [*q] twice."""
    return x.amin(-1), x.amax(-1)


def union(a: Range, b: Range) -> Range:
    """The range that covers both."""
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


def averaged(average: Average | None, new: Range, *, constant: float) -> Average:
    """(1 - constant) * average + constant * new; the first range as it is."""
    dtype = new[0].dtype
    minimum, maximum = (end.to(torch.promote_types(dtype, torch.float32)) for end in new)
    if average is None:
        return Average(minimum, maximum, 1, dtype)
    return Average(
        torch.lerp(average.minimum, minimum, constant),
        torch.lerp(average.maximum, maximum, constant),
        average.batches + 1,
        dtype,
    )


def merged(a: Average, b: Average) -> Average:
    """The mean of two averages, each with the weight of the ranges it has seen."""
    batches = a.batches + b.batches
    minimum = (a.minimum * a.batches + b.minimum * b.batches) / batches
    maximum = (a.maximum * a.batches + b.maximum * b.batches) / batches
    return Average(minimum, maximum, batches, torch.promote_types(a.dtype, b.dtype))


def range_of(average: Average) -> Range:
    """The averaged range in the dtype of those that went in."""
    return average.minimum.to(average.dtype), average.maximum.to(average.dtype)


def search_range(
    x: Tensor, args: QuantizationArgs, *, maxshrink: float, patience: int, grid: float, norm: float
) -> Range:
    """The range of each group, shrunk by the factor that makes sum |Q(x) - x|^norm least.

    Args:
        x: [*q, n].
        args: the grid that Q rounds to.
        maxshrink: the factors are 1, 1 - 1/grid, ... down to 1 - maxshrink, which is left out.
        patience: the search ends after so many factors in a row that were the best for no group.
        grid: factors between 1 and 0.
        norm: exponent of the error.

    Returns:
        The best range of each group, [*q] twice, dtype of `x`; of two as good, the wider.
    """
    minimum, maximum = extremes(x)  # [*q]
    best_minimum, best_maximum = minimum, maximum
    least = torch.full_like(minimum, math.inf, dtype=torch.float32)  # [*q]
    idle = 0
    for step in range(int(maxshrink * grid)):
        low, high = minimum * (1 - step / grid), maximum * (1 - step / grid)
        error = rounding_error(x, (low, high), args, norm=norm)  # [*q]
        better = error < least
        if better.any():
            least = torch.where(better, error, least)
            best_minimum = torch.where(better, low, best_minimum)
            best_maximum = torch.where(better, high, best_maximum)
            idle = 0
        else:
            idle += 1
            if idle >= patience:
                break
    return best_minimum, best_maximum


def rounding_error(x: Tensor, covered: Range, args: QuantizationArgs, *, norm: float) -> Tensor:
    """Sum of |Q(x) - x|^norm of each group when its scale covers this range, [*q, n] -> [*q], float32."""
    scale, zero_point = (q.reshape(-1) for q in calculate_qparams(*covered, args))  # [q]
    flat = x.reshape(scale.numel(), -1)  # [q, n]
    rows, columns = max(1, _BLOCK // max(1, flat.shape[1])), _BLOCK
    error = torch.zeros(flat.shape[0], dtype=torch.float32, device=x.device)  # [q]
    for row in range(0, flat.shape[0], rows):
        here = slice(row, row + rows)
        for column in range(0, flat.shape[1], columns):
            block = flat[here, column : column + columns]
            rounded = fake_quantize_groups(block, scale[here], zero_point[here], args)
            error[here] += (rounded.float() - block.float()).abs_().pow_(norm).sum(1)
    return error.reshape(x.shape[:-1])
