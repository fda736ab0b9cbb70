"""Rounding that gradients pass: the straight-through estimator, and what it makes of a learned scale (LSQ).

forward     Q(x) = (round(clamp(x / s + z)) - z) s
backward    dQ/dx = 1 where x is rounded, 0 where it is clipped: more than half a step beyond the ends
            dQ/ds = round(x / s) - x / s inside, the end of the grid beyond            (LSQ, arXiv 1902.08153, eq. 3)
"""

from math import floor, log2
from typing import Any

import torch
from torch import Tensor

from coldpress.numerics.quantize import _by_groups, _effective, fake_quantize
from coldpress.schemes import FloatFormat, NumberFormat, QuantizationArgs, number_format


def fake_quantize_straight_through(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    global_scale: Tensor | None = None,
) -> Tensor:
    """`fake_quantize` of the same arguments, bit for bit; gradients reach `x` and `scale`."""
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return fake_quantize(x, scale, zero_point, args, global_scale=global_scale)
    grid, scale = number_format(args), _effective(scale, global_scale)
    return _by_groups(lambda x, s, z: _faked(x, s, z, grid), x, scale, zero_point, args).to(x.dtype)


def lsq_gradient_scale(weight: Tensor, scale: Tensor, args: QuantizationArgs) -> float:
    """1 / sqrt(n q): what LSQ multiplies the gradient of a scale with, section 2.2, for n weights that share it."""
    shared = weight.numel() / scale.numel()
    return float((shared * max(number_format(args).maximum, 1.0)) ** -0.5)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by a factor."""
    found: Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return found


def _faked(x: Tensor, scale: Tensor, zero_point: Tensor | None, grid: NumberFormat) -> Tensor:
    shifted = x / scale if zero_point is None else x / scale + zero_point.to(x.dtype)
    rounded = _Round.apply(shifted, grid).to(scale.dtype)  # type: ignore[no-untyped-call]
    found: Tensor = (rounded if zero_point is None else rounded - zero_point.to(scale.dtype)) * scale
    return found


def _half_step(grid: NumberFormat) -> float:
    """Half of the distance between the largest number of a grid and its neighbour: 0.5 for whole numbers."""
    if not isinstance(grid, FloatFormat):
        return 0.5
    return float(2.0 ** (floor(log2(grid.maximum)) - grid.mantissa_bits - 1))


class _Round(torch.autograd.Function):
    """The nearest number of a grid; the gradient passes between its ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: NumberFormat) -> Tensor:
        slack = _half_step(grid)
        ctx.save_for_backward((x >= grid.minimum - slack) & (x <= grid.maximum + slack))
        return grid.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
