"""Scales that lose least, when some columns matter more than others."""

import torch
from torch import Tensor

from coldpress.numerics.group import group
from coldpress.numerics.qparams import calculate_qparams
from coldpress.schemes import NumberFormat, QuantizationArgs, number_format

_BLOCK = 2**16  # elements that are rounded at once, so that they stay in the cache


def search_qparams(
    weight: Tensor, args: QuantizationArgs, importance: Tensor, *, shrinks: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """The scale and zero point of each group whose range, shrunk by one of some factors, loses least.

    The loss of a group is the sum of importance * (Q(w) - w)^2.

    Args:
        weight: [O, I].
        args: the grid and who shares a scale.
        importance: of the columns, [I] float32, not negative; what errors in a column cost.
        shrinks: factors of the range, such as 1, 0.95, 0.9; of two that lose the same, the first is taken.

    Returns:
        scale and zero point as `calculate_qparams` gives them.
    """
    grouped = group(weight, args)  # [*q, n]
    low, high = grouped.amin(-1), grouped.amax(-1)  # [*q]
    candidates = [calculate_qparams(low * shrink, high * shrink, args) for shrink in shrinks]
    costs = group(importance.expand_as(weight), args)  # [*q, n]
    losses = _losses(grouped, costs, candidates, args)  # [P, q]
    best = losses.argmin(0).reshape(low.shape)  # [*q]
    scales, points = (torch.stack(parts) for parts in zip(*candidates, strict=True))  # [P, *q]
    return tuple(part.gather(0, best.reshape(1, *part.shape[1:])).squeeze(0) for part in (scales, points))  # type: ignore[return-value]


def _losses(grouped: Tensor, costs: Tensor, candidates: list[tuple[Tensor, Tensor]], args: QuantizationArgs) -> Tensor:
    """The loss of each group with each of the candidates, [P, q] float32."""
    size = grouped.shape[-1]
    rows = grouped.shape[0]
    losses = torch.zeros(len(candidates), *grouped.shape[:-1], dtype=torch.float32, device=grouped.device)
    step = max(1, _BLOCK // max(1, grouped[0].numel())) if rows > 1 else 1
    for start in range(0, rows, step):
        here = slice(start, start + step)
        for part in range(0, size, _BLOCK):
            x = grouped[here, ..., part : part + _BLOCK].float()
            cost = costs[here, ..., part : part + _BLOCK]
            for index, (scale, point) in enumerate(candidates):
                error = _squared_steps(x, scale[here], None if args.symmetric else point[here], number_format(args))
                losses[index, here] += error.mul_(cost).sum(-1).mul_(scale[here].float().square())
    return losses.reshape(len(candidates), -1)


def _squared_steps(x: Tensor, scale: Tensor, point: Tensor | None, grid: NumberFormat) -> Tensor:
    """How far each number is from its code, squared, in steps; [..., n]."""
    steps = x * scale.float().reciprocal().unsqueeze(-1)
    if point is not None:
        steps += point.float().unsqueeze(-1)
    return grid.round(steps).sub_(steps).square_()
