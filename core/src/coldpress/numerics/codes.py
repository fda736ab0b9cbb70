"""Whether codes, scales and zero points are what their arguments imply: shapes, dtypes, and points of the grid."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from coldpress.numerics.finite import is_finite
from coldpress.numerics.group import scale_shape
from coldpress.schemes import NumberFormat, QuantizationArgs, number_format


def check_codes(codes: Tensor, args: QuantizationArgs, shape: tuple[int, ...]) -> None:
    """See that codes are points of the grid; one pass over them.

    Args:
        codes: of a weight.
        args: of the weight.
        shape: of the weight.

    Raises:
        ValueError: says what is wrong.
    """
    grid = number_format(args)
    _check_shape("the codes", codes, shape)
    if codes.dtype != grid.code_dtype:
        raise ValueError(f"the codes are {codes.dtype}, those of {grid.name} are {grid.code_dtype}")
    if not is_finite(codes):
        raise ValueError("the codes are not finite")
    if not _is_on_grid(codes, grid):
        low, high = (float(end) for end in codes.float().aminmax())
        raise ValueError(
            f"the codes are not points of the grid of {grid.name}, which goes from {grid.minimum:g} to "
            f"{grid.maximum:g}: they go from {low:g} to {high:g}"
        )


def check_qparams(
    scale: Tensor | None,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    shape: tuple[int, ...],
    *,
    global_scale: Tensor | None = None,
) -> None:
    """See that a scale and a zero point are what a strategy implies for a tensor of this shape.

    Args:
        scale: positive, or with `signed_scales` not zero, finite, and rounded to `args.scale_dtype` if there is one.
        zero_point: on the grid; whole numbers, unless `args.zp_dtype` is floating-point; None for zeros.
        args: of the tensor.
        shape: of the tensor.
        global_scale: [1], there exactly if the strategy is tensor_group.

    Raises:
        ValueError: says what is wrong.
    """
    if scale is None:
        raise ValueError("there is no scale")
    _check_positive("the scale", scale.abs() if args.signed_scales else scale, scale_shape(shape, args))
    if args.scale_dtype is not None and not _is_rounded(scale, args.scale_dtype):
        raise ValueError(f"the scale is not rounded to {_dtype_name(args.scale_dtype)}")
    if zero_point is not None:
        _check_zero_point(zero_point, args, scale_shape(shape, args))
    elif not args.symmetric:
        raise ValueError("there is no zero point, and the scheme is asymmetric")
    _check_global_scale(global_scale, wanted=args.strategy == "tensor_group")


def check_input_qparams(
    scale: Tensor | None, zero_point: Tensor | None, global_scale: Tensor | None, args: QuantizationArgs | None
) -> None:
    """See that static inputs have one scale, inputs with dynamic scales of groups a global one, and others none.

    Raises:
        ValueError: says what is wrong.
    """
    local = args is not None and args.dynamic == "local"
    _check_global_scale(global_scale, wanted=local)
    if args is not None and not args.dynamic:
        check_qparams(scale, zero_point, args, (1, 1))
    elif scale is not None or zero_point is not None:
        raise ValueError("inputs have a scale, and their scheme has no static inputs")


def _check_zero_point(zero_point: Tensor, args: QuantizationArgs, shape: tuple[int, ...]) -> None:
    grid = number_format(args)
    _check_shape("the zero point", zero_point, shape)
    values = zero_point.float()
    if not bool(values.isfinite().all()) or bool(((values < grid.minimum) | (values > grid.maximum)).any()):
        raise ValueError(f"the zero point is not between {grid.minimum:g} and {grid.maximum:g}, the ends of the grid")
    if args.symmetric and bool(values.any()):
        raise ValueError("the zero point is not zero, and the scheme is symmetric")
    fractions = args.zp_dtype is not None and args.zp_dtype.is_floating_point
    if zero_point.dtype.is_floating_point and not fractions:
        raise ValueError(
            f"the zero point is {zero_point.dtype}, and whole numbers are stored: round it and use "
            f"{grid.code_dtype}, or say zp_dtype in the scheme"
        )


def _check_global_scale(global_scale: Tensor | None, *, wanted: bool) -> None:
    if wanted and global_scale is None:
        raise ValueError("there is no global scale, and scales have two levels")
    if not wanted and global_scale is not None:
        raise ValueError("there is a global scale, and scales have one level")
    if global_scale is not None:
        _check_positive("the global scale", global_scale, (1,))


def _check_positive(what: str, scale: Tensor, shape: tuple[int, ...]) -> None:
    _check_shape(what, scale, shape)
    if not scale.is_floating_point():
        raise ValueError(f"{what} is {scale.dtype}, not floating-point")
    low, high = scale.float().aminmax() if scale.numel() else (torch.ones(()), torch.ones(()))  # NaN is in both
    if not (bool(low > 0) and math.isfinite(high)):
        raise ValueError(f"{what} is not positive and finite everywhere")


def _check_shape(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"the shape of {what} is {tuple(tensor.shape)}, and must be {tuple(shape)}")


def _is_on_grid(codes: Tensor, grid: NumberFormat) -> bool:
    if not codes.numel():
        return True
    if getattr(grid, "native", False):
        return True  # its dtype has no other numbers
    if codes.dtype == torch.float8_e4m3fn:
        return bool(_on_grid(grid)[_seen_bytes(codes)].all())
    if codes.dtype.is_floating_point:
        return torch.equal(grid.round(codes.float()), codes.float())
    low, high = codes.aminmax()
    return bool(low >= grid.minimum) and bool(high <= grid.maximum)


def _seen_bytes(codes: Tensor) -> Tensor:
    """The different bytes among codes of one byte, on the CPU."""
    counts = torch.bincount(codes.contiguous().view(torch.uint8).flatten(), minlength=256)  # [256]
    return counts.nonzero().flatten().cpu()


@lru_cache
def _on_grid(grid: NumberFormat) -> Tensor:
    """Which of the 256 numbers of float8 are points of a grid, [256]."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return grid.round(numbers) == numbers


def _is_rounded(scale: Tensor, dtype: torch.dtype) -> bool:
    if dtype.is_floating_point:
        return torch.equal(scale.to(dtype).to(scale.dtype), scale)
    return bool((torch.frexp(scale.float()).mantissa == 0.5).all())  # exponents are stored


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.") if dtype.is_floating_point else "powers of two"
