"""Ranges: of one tensor, of several, averaged, of most of what was seen, and the one that loses least.

`*q` is the shape of the scales, `n` the elements that share one; a range is a pair of tensors [*q], smallest and
largest.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import calculate_qparams, fake_quantize_groups, piece
from coldpress.plugin import QuantizationArgs

_SMALL = 256  # elements of a group that is
_PIECE = 2**18  # elements whose halves stay in a core's cache
_BLOCK = 2**20  # elements that are rounded at once: temporaries stay small beside a weight

Range = tuple[Tensor, Tensor]


class Search(NamedTuple):
    """Which factors of a range are tried, and what an error costs.

    Attributes:
        maxshrink: the factors are expand * (1, 1 - 1/grid, ...) down to expand * (1 - maxshrink), which is left out.
        patience: the search ends after so many factors in a row that were the best for no group.
        grid: factors between expand and 0.
        norm: exponent of the error.
        expand: the first factor.
    """

    maxshrink: float
    patience: int
    grid: float
    norm: float
    expand: float = 1.0

    def factors(self) -> list[float]:
        """What is tried, in order; the whole range is always there."""
        found = [self.expand * (1 - step / self.grid) for step in range(int(self.maxshrink * self.grid))]
        return found if self.expand == 1 else [1.0, *found]


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
    """The range of each group, [*q, n] -> [*q] twice.

    On the CPU a reduction costs the same for few elements as for many, so the halves of small groups meet first.
    """
    size = x.shape[-1]
    if x.device.type != "cpu" or not 1 < size <= _SMALL or size % 2:
        return x.amin(-1), x.amax(-1)
    flat = x.reshape(-1, size)  # [Q, n]
    low, high = (torch.empty(len(flat), dtype=x.dtype) for _ in range(2))  # [Q]
    some = _PIECE // size
    parts = (torch.split(tensor, some) for tensor in (flat, low, high))
    for part, least, most in zip(*parts, strict=True):
        least.copy_(_by_halves(part, torch.minimum))
        most.copy_(_by_halves(part, torch.maximum))
    return low.view(x.shape[:-1]), high.view(x.shape[:-1])


def _by_halves(x: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The chosen one of each row, [Q, n] -> [Q]."""
    while x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = choose(x[:, :half], x[:, half:])
    return reduce(choose, x.unbind(-1))


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
    x: Tensor,
    args: QuantizationArgs,
    search: Search,
    *,
    global_scale: Tensor | None = None,
    importance: Tensor | None = None,
) -> Range:
    """The range of each group, times the factor that makes sum importance |Q(x) - x|^norm least.

    Args:
        x: [*q, n].
        args: the grid that Q rounds to.
        search: the factors and the norm.
        global_scale: [1], of grids with scales of two levels.
        importance: [*q, n] float32; None for ones.

    Returns:
        The best range of each group, [*q] twice, dtype of `x`; of two as good, the first.
    """
    return best_range(x, args, search.factors(), search, global_scale=global_scale, importance=importance)


def best_range(
    x: Tensor,
    args: QuantizationArgs,
    factors: list[float],
    search: Search,
    *,
    global_scale: Tensor | None = None,
    importance: Tensor | None = None,
) -> Range:
    """`search_range` with factors of one's own; patience and norm are those of `search`."""
    minimum, maximum = extremes(x)  # [*q]
    best_minimum, best_maximum = minimum, maximum
    least = torch.full_like(minimum, math.inf, dtype=torch.float32)  # [*q]
    idle = 0
    for factor in factors:
        low, high = minimum * factor, maximum * factor
        scale, zero_point = calculate_qparams(low, high, args, global_scale=global_scale)
        scale = scale if global_scale is None else scale / global_scale
        error = rounding_error(x, (scale, zero_point), args, norm=search.norm, importance=importance)  # [*q]
        better = error < least
        if better.any():
            least = torch.where(better, error, least)
            best_minimum = torch.where(better, low, best_minimum)
            best_maximum = torch.where(better, high, best_maximum)
            idle = 0
        else:
            idle += 1
            if idle >= search.patience:
                break
    return best_minimum, best_maximum


def rounding_error(
    x: Tensor, qparams: Range, args: QuantizationArgs, *, norm: float, importance: Tensor | None = None
) -> Tensor:
    """Sum of importance |Q(x) - x|^norm of each group with a scale and a zero point, [*q, n] -> [*q], float32."""
    scale, zero_point = (q.reshape(-1) for q in qparams)  # [q]
    flat = x.reshape(scale.numel(), -1)  # [q, n]
    costs = None if importance is None else importance.reshape(scale.numel(), -1)  # [q, n]
    columns = piece(x, _BLOCK)
    rows = max(1, columns // max(1, flat.shape[1]))
    error = torch.zeros(flat.shape[0], dtype=torch.float32, device=x.device)  # [q]
    for row in range(0, flat.shape[0], rows):
        here = slice(row, row + rows)
        for column in range(0, flat.shape[1], columns):
            block = flat[here, column : column + columns]
            rounded = fake_quantize_groups(block, scale[here], zero_point[here], args)
            lost = (rounded.float() - block.float()).abs_()
            lost = lost.square_() if norm == 2 else lost.pow_(norm)
            if costs is not None:
                lost *= costs[here, column : column + columns]
            error[here] += lost.sum(1)
    return error.reshape(x.shape[:-1])


_OCTAVE = 32  # bins between a number and its double: 2 % wide
_SMALLEST, _LARGEST = -24, 24  # exponents of two of the first edge and the last
_BINS = (_LARGEST - _SMALLEST) * _OCTAVE


class Counts(NamedTuple):
    """How often numbers of which size were seen, exact whatever the batches were.

    Attributes:
        counts: [*q, 2 * _BINS] int64: negative numbers from large to small, then positive ones from small to large.
        minimum: [*q], the smallest.
        maximum: [*q], the largest.
    """

    counts: Tensor
    minimum: Tensor
    maximum: Tensor


def counted(x: Tensor) -> Counts:
    """Count the numbers of each group, [*q, n]; zeros are in the first positive bin."""
    place = ((x.float().abs().log2_() - _SMALLEST) * _OCTAVE).floor_().clamp_(0, _BINS - 1).long()  # [*q, n]
    place = torch.where((x < 0) & (place > 0), _BINS - 1 - place, _BINS + place)
    flat = place.reshape(-1, x.shape[-1])  # [q, n]
    counts = torch.zeros(flat.shape[0], 2 * _BINS, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return Counts(counts.reshape(*x.shape[:-1], 2 * _BINS), *extremes(x))


def joined(a: Counts, b: Counts) -> Counts:
    """What was counted by both."""
    return Counts(a.counts + b.counts, *union((a.minimum, a.maximum), (b.minimum, b.maximum)))


def middle_range(seen: Counts, *, share: float) -> Range:
    """The range that leaves out `(1 - share) / 2` of what was seen at either end, in the dtype of what was seen.

    Right to the width of a bin, outwards, and never beyond what was seen.
    """
    edges = torch.exp2(torch.arange(_BINS + 1, dtype=torch.float64) / _OCTAVE + _SMALLEST)  # [bins + 1]
    lower, upper = torch.cat([-edges[1:].flip(0), edges[:-1]]), torch.cat([-edges[:-1].flip(0), edges[1:]])
    lower[_BINS], upper[_BINS - 1] = 0.0, 0.0  # the first bins of both signs reach to zero
    total = seen.counts.sum(-1, keepdim=True)  # [*q, 1]
    outside = ((1 - share) / 2 * total.double()).floor().long()  # [*q, 1]
    below = seen.counts.cumsum(-1)  # [*q, 2 * bins]
    first = (below <= outside).sum(-1)  # [*q], bin of the first number that stays
    last = (below < total - outside).sum(-1)  # [*q], of the last
    low = torch.maximum(lower.to(total.device)[first].to(seen.minimum.dtype), seen.minimum)
    high = torch.minimum(upper.to(total.device)[last].to(seen.maximum.dtype), seen.maximum)
    return torch.minimum(low, seen.maximum), torch.maximum(high, seen.minimum)


def divergent_range(seen: Counts, args: QuantizationArgs, *, factors: Tensor) -> Range:
    """The range, times one of the factors, [P], whose grid keeps the distribution of what was seen best.

    The distribution P over bins, with what is outside of the range counted at its ends, is compared with Q, that of
    what is inside, rounded: each number of the grid spreads what fell to it evenly over its bins that are not empty.
    The factor with the least KL(P || Q) wins; of two as good, the first.
    """
    edges = torch.exp2((torch.arange(_BINS, dtype=torch.float32) + 0.5) / _OCTAVE + _SMALLEST)  # [bins]
    centers = torch.cat([-edges.flip(0), edges]).to(seen.counts.device)  # [2 * bins]
    low, high = seen.minimum.reshape(-1).float(), seen.maximum.reshape(-1).float()  # [q]
    if args.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best_low, best_high = low.clone(), high.clone()
    for index, counts in enumerate(seen.counts.reshape(-1, 2 * _BINS)):
        used = counts.nonzero()[:, 0]  # [B], bins that are not empty
        ends = low[index] * factors, high[index] * factors  # [P] each
        loss = _divergences(counts[used].double(), centers[used], ends, args)  # [P]
        factor = factors[loss.argmin()]
        best_low[index], best_high[index] = low[index] * factor, high[index] * factor
    shape, dtype = seen.minimum.shape, seen.minimum.dtype
    best_low, best_high = best_low.reshape(shape).to(dtype), best_high.reshape(shape).to(dtype)
    return torch.maximum(best_low, seen.minimum.clamp(max=0)), torch.minimum(best_high, seen.maximum.clamp(min=0))


def _divergences(counts: Tensor, centers: Tensor, ends: Range, args: QuantizationArgs) -> Tensor:
    """KL(P || Q) for each range, [P], from the counts, [B], and centers, [B], of bins that are not empty."""
    scale, zero_point = calculate_qparams(*ends, args)  # [P]
    grid = centers.expand(len(scale), -1).contiguous()  # [P, B]
    level = fake_quantize_groups(grid, scale, zero_point, args)  # [P, B], the number that each bin becomes
    step = 0.5 * scale.unsqueeze(-1)
    inside = (centers >= ends[0].unsqueeze(-1) - step) & (centers <= ends[1].unsqueeze(-1) + step)  # [P, B]
    # Bins of one level stand side by side: number the levels of each row.
    number = (level[:, 1:] != level[:, :-1]).long().cumsum(1)
    number = torch.cat([number.new_zeros(len(number), 1), number], dim=1)  # [P, B]
    kept = counts * inside  # [P, B]
    width = centers.abs().double().expand_as(kept) * inside  # a bin is as wide as it is far out
    mass = torch.zeros_like(kept).scatter_add_(1, number, kept).gather(1, number)
    room = torch.zeros_like(kept).scatter_add_(1, number, width).gather(1, number)
    q = mass * width / room.clamp(min=torch.finfo(torch.float64).tiny)
    # What is outside counts at the end of the range, in P alone.
    first = inside.double().argmax(1, keepdim=True)
    last = inside.shape[1] - 1 - inside.flip(1).double().argmax(1, keepdim=True)
    cut = counts * ~inside
    left = torch.arange(len(counts), device=counts.device) < first  # [P, B]
    p = kept.scatter_add(1, first, (cut * left).sum(1, keepdim=True))
    p = p.scatter_add(1, last, (cut * ~left).sum(1, keepdim=True)) / counts.sum()
    q = (q / q.sum(1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-12)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)
