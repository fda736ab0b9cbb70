"""Ranges to scales and zero points."""

import torch
from torch import Tensor

from coldpress.errors import SchemeError
from coldpress.numerics.group import group
from coldpress.numerics.super_block import super_block_qparams
from coldpress.schemes import NumberFormat, QuantizationArgs, is_microscaled, number_format

_CARRY = {"float8": 1.75}
"""From which fraction on the next power of two is the scale, see `_power_of_two`; else half way to the next."""
_SMALLEST, _LARGEST = -127, 127  # exponents of E8M0


def calculate_qparams(
    minimum: Tensor, maximum: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scale and zero point that map a range onto the grid; zero is always mapped exactly.

    Symmetric: scale = max |x| / ((q_max - q_min) / 2), so 127.5 for int8 and 7.5 for int4, not 127 and 7.
    With `signed_scales`: scale = x / q_min, x the number that max |x| is of; negative where that is above zero.
    Asymmetric: scale = (max - min) / (q_max - q_min) and zero_point = q_min - min / scale, rounded.
    Scales in uint8 (MX): the power of two that brings max |x| below the next power of two after q_max.
    With `scale_bits`: see `super_block_qparams`.
    A scale of zero becomes the eps of its dtype.  All of it is computed in the dtype of the range.

    Args:
        minimum: smallest value of each group, [*scale_shape]; a value above zero counts as zero.
        maximum: largest value of each group, [*scale_shape]; a value below zero counts as zero.
        args: the grid and its symmetry.
        global_scale: [1], multiplies the scales before they are rounded to `args.scale_dtype`.

    Returns:
        scale [*scale_shape] in the dtype of the range (with a global scale, of their product), its values rounded to
        `args.scale_dtype` if there is one; zero_point [*scale_shape], int8 zeros when symmetric, else in `zp_dtype`
        or the grid's code dtype.  A range without dimensions gives [1].

    Raises:
        SchemeError: the grid is unknown, or groups have scales of two levels and the global one is missing.
    """
    grid = number_format(args)
    if args.strategy == "tensor_group" and global_scale is None:
        raise SchemeError("strategy 'tensor_group' has scales of two levels, and this method sets no global scale")
    minimum, maximum = minimum.clamp(max=0), maximum.clamp(min=0)
    if args.scale_bits is not None:
        return super_block_qparams(minimum.float(), maximum.float(), args)
    if args.symmetric:
        largest = torch.maximum(-minimum, maximum)
        half = _scalar((grid.maximum - grid.minimum) / 2, largest)
        scale = _power_of_two(largest, grid) if is_microscaled(args) else largest / half
        if args.signed_scales:
            scale = torch.where(maximum > -minimum, maximum, minimum) / _scalar(grid.minimum, largest)
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
    else:
        scale = (maximum - minimum) / _scalar(grid.maximum - grid.minimum, maximum)
        zero_point = _round_zero_point(minimum / scale, grid, args)
    if global_scale is not None:
        scale = global_scale * scale
    scale = _round_scale(scale, args.scale_dtype)
    shape = scale.shape or (1,)
    return scale.reshape(shape), zero_point.reshape(shape)


def in_weight_dtype(scale: Tensor, weight: Tensor, args: QuantizationArgs) -> Tensor:
    """A scale as it is kept: in the dtype of the weight, or in float32 where it is the product of two numbers."""
    return scale.float() if args.scale_bits is not None else scale.to(weight.dtype)


def calculate_global_scale(largest: Tensor, args: QuantizationArgs) -> Tensor:
    """The factor that brings the scales of groups into the range of their own dtype, [1] float32.

    global_scale = max of the scale's dtype * q_max / max |x|, 448 * 6 / max |x| for NVFP4; 1 where that is infinite.

    Args:
        largest: max |x| of all that shares the factor, one number.
        args: the grid, and the dtype of scales.
    """
    assert args.scale_dtype is not None
    largest = largest.detach().float().clamp(min=torch.finfo(torch.float32).tiny)
    factor = torch.finfo(args.scale_dtype).max * number_format(args).maximum / largest
    return factor.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0).reshape(1)


def dynamic_qparams(x: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scales and zero points of activations, from these activations alone.

    Args:
        x: activations, [..., I].
        args: the grid, and what shares a scale: a token, a group of a token's columns, or all of `x`.
        global_scale: as in `calculate_qparams`.

    Returns:
        scale and zero_point: token [..., 1]; group and tensor_group [..., I/g]; tensor [1].

    Raises:
        SchemeError: as `group` and `calculate_qparams`.
    """
    if x.numel() == 0 and args.strategy == "tensor":  # an expert that no token reached
        x = x.new_zeros(1)
    grouped = group(x, args)  # [*scale_shape, n]
    minimum, maximum = grouped.amin(-1), grouped.amax(-1)  # [*scale_shape], faster than aminmax
    if args.strategy == "tensor":  # as the library: a range without dimensions, whose zero point is not rounded to bf16
        minimum, maximum = minimum.squeeze(0), maximum.squeeze(0)
    return calculate_qparams(minimum, maximum, args, global_scale=global_scale)


def _scalar(value: float, like: Tensor) -> Tensor:
    """A tensor without dimensions beside `like`: by a Python number, GPUs would multiply by its reciprocal."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _round_zero_point(shift: Tensor, grid: NumberFormat, args: QuantizationArgs) -> Tensor:
    """q_min - shift on the grid, where shift = min / scale, [*scale_shape]; 0 where the range is empty."""
    q_min = torch.full((), grid.minimum, dtype=torch.float32, device=shift.device)
    zero_point = (q_min - shift).clamp(grid.minimum, grid.maximum).nan_to_num(0.0)  # 0 / 0: a group of zeros
    dtype = args.zp_dtype or grid.code_dtype
    return zero_point.to(dtype) if dtype.is_floating_point else zero_point.round().to(dtype)


def _power_of_two(largest: Tensor, grid: NumberFormat) -> Tensor:
    """2^(e - e_max) for numbers up to `largest` = f 2^e, 1 <= f < 2, and a grid up to f_max 2^e_max.

    One more where f is closer to 2 than to f_max.  For E4M3 the library takes 1.75, which is f_max itself.
    """
    top, e_max = torch.frexp(torch.tensor(grid.maximum))  # 2 * top is f_max, e_max is one too large
    carry = _CARRY.get(grid.name, float(top) + 1) / 2
    fraction, exponent = torch.frexp(largest)  # [*scale_shape], halves again
    exponent = exponent - int(e_max) + (fraction >= carry)
    exponent = torch.where(largest == 0, _SMALLEST, exponent).clamp_(_SMALLEST, _LARGEST)
    return torch.ldexp(torch.ones_like(largest, dtype=torch.float32), exponent).to(largest.dtype)


def _round_scale(scale: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The scale as `dtype` can hold it, in its own dtype, and never zero."""
    eps = torch.finfo(scale.dtype).eps
    if dtype is not None and not dtype.is_floating_point:
        eps = 1.0  # powers of two are rounded already, and only in float16 one can be zero
    elif dtype is not None:
        limits = torch.finfo(dtype)
        scale = scale.clamp(limits.min, limits.max).to(dtype).to(scale.dtype)
        eps = limits.eps
    return torch.where(scale == 0, eps, scale)
