"""Ranges that lose least, when some columns matter more than others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coldpress.numerics.group import group
from coldpress.numerics.piece import piece
from coldpress.numerics.qparams import calculate_qparams
from coldpress.schemes import QuantizationArgs, number_format

_BLOCK = 2**18  # elements that are rounded at once, so that they stay in the cache
_STEPS = (0.1, 0.05, 0.025)  # between factors of the range: from the largest down, and then to both sides of the best


def search_qparams(
    weight: Tensor, args: QuantizationArgs, importance: Tensor, *, least: float, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scale and zero point of each group, of the range that `search_range` finds.

    Args:
        weight: [O, I].
        args: the grid and who shares a scale.
        importance: as in `search_range`.
        least: as in `search_range`.
        global_scale: as in `calculate_qparams`.

    Returns:
        scale and zero point as `calculate_qparams` gives them.
    """
    low, high = search_range(weight, args, importance, least=least, global_scale=global_scale)
    return calculate_qparams(low, high, args, global_scale=global_scale)


def search_range(
    weight: Tensor, args: QuantizationArgs, importance: Tensor, *, least: float, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The range of each group, shrunk by the factor with which rounding loses least.

    The loss of a group is the sum of importance * (Q(w) - w)^2.
    Factors are 1, 0.9, ... and then, twice, those to both sides of the best so far at half the distance.

    Args:
        weight: [O, I].
        args: the grid and who shares a scale.
        importance: of the columns, [I] float32, not negative; what errors in a column cost.
        least: factor below which no range is shrunk, above 0 and at most 1.
        global_scale: as in `calculate_qparams`.

    Returns:
        Smallest and largest number of each range, [*q] each as `group` makes it, in the dtype of the weight.
    """
    grouped = group(weight, args)  # [*q, n]
    low, high = grouped.amin(-1), grouped.amax(-1)  # [*q]
    count = 1 + int((1 - least) / _STEPS[0] + 1e-6)
    factors = [torch.full_like(low, 1 - _STEPS[0] * step, dtype=torch.float32) for step in range(count)]
    costs = group(importance.expand_as(weight), args)[0]  # [*q[1:], n]; rows do not differ in it
    best = torch.full_like(low, torch.inf, dtype=torch.float32)  # loss, [*q]
    found = factors[0]
    for step in _STEPS:
        if step != _STEPS[0]:
            factors = [(found + side * step).clamp_(least, 1) for side in (-1, 1)]
        losses = _losses(grouped, costs, *_candidates(low, high, factors, args, global_scale), args)
        for factor, loss in zip(factors, losses, strict=True):
            better = loss < best
            best = torch.where(better, loss, best)
            found = torch.where(better, factor, found)
    return low * found.to(low), high * found.to(high)


def _candidates(
    low: Tensor, high: Tensor, factors: Sequence[Tensor], args: QuantizationArgs, global_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scale and zero point of each group with each of the factors, [P, *q] float32, as they multiply codes."""
    if args.scale_bits is None:  # each number by itself, so that all are computed at once
        shares = torch.stack(list(factors)).to(low)
        scale, point = calculate_qparams(low * shares, high * shares, args, global_scale=global_scale)
    else:
        parts = [calculate_qparams(low * f.to(low), high * f.to(low), args, global_scale=global_scale) for f in factors]
        scale, point = (torch.stack(some) for some in zip(*parts, strict=True))
    scale, point = (some.reshape(-1, *low.shape).float() for some in (scale, point))
    return scale if global_scale is None else scale / global_scale, point


def _losses(grouped: Tensor, costs: Tensor, scales: Tensor, points: Tensor, args: QuantizationArgs) -> Sequence[Tensor]:
    """The loss of each group with each of the candidates, [*q] float32 each.

    Elements of a group lie one below the other here, so that all groups take the same step side by side.

    Args:
        grouped: the weights, [*q, n].
        costs: of the columns, [*q[1:], n].
        scales: of each candidate, [P, *q].
        points: its zero points.
        args: the grid.
    """
    rows, size, grid = len(grouped), grouped.shape[-1], number_format(args)
    losses, inverses, squares = torch.zeros_like(scales), scales.reciprocal(), scales.square()
    block = piece(grouped, _BLOCK)
    step, wide = min(rows, max(1, block // costs.numel())), max(1, block * size // costs.numel())
    buffers = torch.empty(2, min(wide, size), step, *costs.shape[:-1], device=grouped.device)
    for part in range(0, size, wide):
        below = slice(part, part + wide)
        cost = costs[..., below].movedim(-1, 0)[:, None].expand(-1, step, *costs.shape[:-1]).contiguous()  # [n, r, *]
        for start in range(0, rows, step):
            here = slice(start, start + step)
            found = grouped[here, ..., below].movedim(-1, 0)  # [n, r, *]
            x, steps = (buffer[: len(found), : found.shape[1]] for buffer in buffers)
            x.copy_(found)
            for inverse, point, square, loss in zip(inverses, points, squares, losses, strict=True):
                torch.mul(x, inverse[here], out=steps)
                if not args.symmetric:
                    steps.add_(point[here])
                errors = steps.sub_(grid.round(steps)).square_().mul_(cost[:, : x.shape[1]])
                loss[here] += errors.sum(0).mul_(square[here])
    return list(losses)
