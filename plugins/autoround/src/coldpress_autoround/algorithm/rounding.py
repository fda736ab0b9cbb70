"""SignRound (arXiv 2309.05516): a quantizer with parameters that signed gradient descent learns, and its gradients.

Letters: O out, I in, n weights of a group; *q is the shape of the scales, so a weight by groups is [*q, n].

    q = clamp(round(w / s + z + v u)),    w' = s (q - z),    s, z = scale and zero point of the range [a low, b high]

Learned are an offset v of each weight, and factors of the range of each group: one where the scheme is symmetric
(a = b), two where it is not.  u is the distance of neighbours on the grid where the weight lies, 1 for integers, so
that an offset of a half moves any weight to either neighbour.

Rounding, of codes, zero points and scales, passes gradients straight through; clamping passes them inside only.  With
g the gradient of w', m = 1 inside and 0 where a code is clamped:

    dL/dv = m s u g          dL/ds = sum g (q - z - m w / s)          dL/dz = -sum (1 - m) s g                    (1)

Descent sees signs alone, so what is positive (u, and s but where scales are signed) is left out, and no graph is kept:
(1) is all of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import calculate_qparams, group, in_weight_dtype, ungrouped
from coldpress.plugin import QuantizationArgs, number_format

LEAST, MOST = 0.05, 2.0
"""Between these the factors of a range stay."""


class Fixed(NamedTuple):
    """What is not learned of a weight.

    Attributes:
        weight: [*q, n] float32.
        low: end of the range of each group, not above 0, [*q] float32.
        high: the other end, not below 0, [*q] float32.
        unit: u, [*q, n] float32; None where it is 1.
        movable: 0 for weights that are zero and stay so, [*q, n]; None where none is.
        args: the grid and who shares a scale.
        global_scale: [1]; None for most schemes.
        shape: of the weight, (O, I).
        dtype: of the weight and its scales.
    """

    weight: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor | None
    movable: Tensor | None
    args: QuantizationArgs
    global_scale: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype


class Learned(NamedTuple):
    """What is learned of a weight, or the signs of its gradients.

    Attributes:
        offsets: v, [*q, n] float32.
        factors: of low and high, [2, *q] float32, or of both, [1, *q].
    """

    offsets: Tensor
    factors: Tensor


class Rounded(NamedTuple):
    """A weight on the grid, and what its gradients need.

    Attributes:
        scale: [*q], in the dtype of the weight.
        zero_point: [*q].
        codes: [*q, n] float32.
        step: s, by which codes are multiplied: scales over the global one, [*q] float32.
        slope: dw'/ds, [*q, n] float32.
        inside: m, [*q, n] bool.
    """

    scale: Tensor
    zero_point: Tensor
    codes: Tensor
    step: Tensor
    slope: Tensor
    inside: Tensor


def fixed(
    weight: Tensor, low: Tensor, high: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None
) -> Fixed:
    """A weight whose rounding will be learned.

    Args:
        weight: [O, I].
        low: smallest number of each range, [*q]; above zero counts as zero.
        high: largest number of each range, [*q]; below zero counts as zero.
        args: the grid and who shares a scale.
        global_scale: [1], divides the scales.
    """
    grouped = group(weight.float(), args).contiguous()  # [*q, n]
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    zeros = grouped == 0
    movable = (~zeros).float() if bool(zeros.any()) else None
    found = Fixed(grouped, low, high, None, movable, args, global_scale, tuple(weight.shape), weight.dtype)
    if args.type == "int":
        return found
    _, _, step = _qparams(found, _ones(found))
    return found._replace(unit=number_format(args).spacing(grouped / step[..., None]))


def beginning(weight: Fixed, codes: Tensor | None = None, *, firmness: float = 0.0) -> Learned:
    """No offset and the whole range, which is rounding to nearest; or the offsets that lead to given codes.

    Args:
        weight: whose rounding is learned.
        codes: of the weight, [O, I], for the whole range; None for those of rounding to nearest.
        firmness: how far beyond the border to the nearest other code offsets reach, in units, from 0 to 0.5.
    """
    factors, offsets = _ones(weight), torch.zeros_like(weight.weight)
    if codes is None:
        return Learned(offsets, factors)
    _, point, step = _qparams(weight, factors)
    placed = weight.weight / step[..., None] + point.float()[..., None]  # [*q, n]
    wanted = group(codes.float(), weight.args)
    unit = 1.0 if weight.unit is None else weight.unit
    offsets = (placed - wanted) / unit  # [*q, n], of weights from their codes
    reach = 0.5 - max(firmness, 1e-3)
    return Learned(offsets.clamp(-reach, reach) - offsets, factors)


def rounded(weight: Fixed, learned: Learned) -> Rounded:
    """The weight on the grid, by what is learned of it."""
    scale, point, step = _qparams(weight, learned.factors)
    grid, wide = number_format(weight.args), step[..., None]
    points = None if weight.args.symmetric else point.float()[..., None]
    ratio = weight.weight / wide  # [*q, n]
    placed = torch.addcmul(ratio, learned.offsets, weight.unit) if weight.unit is not None else ratio + learned.offsets
    if points is not None:
        placed += points
    codes = grid.round(placed)
    edge = 0.5 if weight.unit is None else 0.5 * weight.unit
    inside = (placed - codes).abs() <= edge
    slope = torch.addcmul(codes, inside.float(), ratio, value=-1)
    return Rounded(scale, point, codes, step, slope if points is None else slope.sub_(points), inside)


def dense(weight: Fixed, found: Rounded) -> Tensor:
    """The numbers that codes stand for, [O, I], in the dtype of the weight."""
    codes = found.codes if weight.args.symmetric else found.codes - found.zero_point.float()[..., None]
    return ungrouped(codes * found.step[..., None], weight.shape, weight.args).to(weight.dtype)


def codes_of(weight: Fixed, found: Rounded) -> Tensor:
    """The codes as a checkpoint keeps them, [O, I]."""
    codes = ungrouped(found.codes, weight.shape, weight.args)
    return codes.to(number_format(weight.args).code_dtype).contiguous()


def signs(weight: Fixed, learned: Learned, found: Rounded, gradient: Tensor) -> Learned:
    """The signs of the gradients (1).

    Args:
        weight: what is not learned.
        learned: where the gradient was taken.
        found: `rounded` of these.
        gradient: of the loss with respect to `dense`, [O, I].
    """
    g = group(gradient.float(), weight.args)  # [*q, n]
    inside = found.inside if weight.movable is None else found.inside * weight.movable
    offsets = g.sign() * inside
    along = (g * found.slope).sum(-1)  # dL/ds, [*q]
    if weight.args.symmetric:
        sides = found.step.sign()  # [*q], 1 but where scales are signed
        return Learned(offsets * sides[..., None], (along * sides).sign()[None])
    span = number_format(weight.args).maximum - number_format(weight.args).minimum
    shift = -((g * ~found.inside).sum(-1) * found.step)  # dL/dz, [*q]
    low = weight.low * learned.factors[0]
    widths = torch.stack([-weight.low, weight.high]) / span  # ds of each factor, [2, *q]
    moves = widths * low / found.step.square()  # dz by way of s
    moves[0] -= weight.low / found.step  # and of low itself: z = q_min - low / s
    return Learned(offsets, (widths * along + moves * shift).sign())


def stepped(learned: Learned, direction: Learned, *, lr: float, minmax_lr: float) -> Learned:
    """One step of signed descent.

    Args:
        learned: before it.
        direction: as `signs` gives it.
        lr: length of the step of offsets, in units.
        minmax_lr: length of the step of the factors of a range.
    """
    factors = learned.factors - minmax_lr * direction.factors
    return Learned(learned.offsets - lr * direction.offsets, factors.clamp_(LEAST, MOST))


def _ones(weight: Fixed) -> Tensor:
    """Factors that leave the range as it is, [1 or 2, *q]."""
    return torch.ones(1 if weight.args.symmetric else 2, *weight.low.shape, device=weight.low.device)


def _qparams(weight: Fixed, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and zero point as they are written, and what codes are multiplied by, [*q] each."""
    low, high = ((end * factor).to(weight.dtype) for end, factor in zip(weight[1:3], factors[[0, -1]], strict=True))
    scale, point = calculate_qparams(low, high, weight.args, global_scale=weight.global_scale)
    scale = in_weight_dtype(scale, low, weight.args)
    step = scale.float() if weight.global_scale is None else scale.float() / weight.global_scale
    return scale, point, step
