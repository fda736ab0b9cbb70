"""Numbers to codes and back.

A code is a number of the grid, in a dtype that holds it exactly (`NumberFormat.code_dtype`).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from coldpress.numerics.group import split_blocks, split_columns
from coldpress.schemes import NumberFormat, QuantizationArgs, number_format

_PIECE = 1 << 18  # elements that are worked on at a time on the CPU
_OF_ROWS = ("channel", "token", "group", "tensor_group")


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    global_scale: Tensor | None = None,
) -> Tensor:
    """Codes: x / scale + zero_point, at the nearest number of the grid, ties to even; beyond its ends, the end.

    Args:
        x: [..., I].
        scale: as `calculate_qparams` gives it.
        zero_point: the shape of `scale`; None for zeros.
        args: the grid and who shares a scale.
        global_scale: [1], divides the scales.

    Returns:
        Codes, the shape of `x`.

    Raises:
        SchemeError: groups do not divide the columns.
    """
    grid, scale = number_format(args), _effective(scale, global_scale)
    return _joined(_rows(lambda x, s, z: grid.encode(_shifted(x, s, z)), x, scale, zero_point, args), x)


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    dtype: torch.dtype | None = None,
    global_scale: Tensor | None = None,
) -> Tensor:
    """What codes stand for: (code - zero_point) * scale, computed in the dtype of the scale.

    Args:
        codes: [..., I].
        scale: as for `quantize`.
        zero_point: as for `quantize`.
        args: as for `quantize`.
        dtype: of the result; None for the dtype of the scale.
        global_scale: as for `quantize`.

    Returns:
        The numbers, the shape of `codes`.

    Raises:
        SchemeError: groups do not divide the columns.
    """
    return _joined(dequantized_rows(codes, scale, zero_point, args, dtype=dtype, global_scale=global_scale), codes)


def dequantized_rows(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    dtype: torch.dtype | None = None,
    global_scale: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """`dequantize`, a few rows at a time, so that no more of the numbers need be in memory.

    All rows come at once where they share scales, and on devices other than the CPU.

    Args:
        codes: [..., I].
        scale: as for `quantize`.
        zero_point: as for `quantize`.
        args: as for `quantize`.
        dtype: as for `dequantize`.
        global_scale: as for `quantize`.

    Yields:
        Which rows, and their numbers, [rows, I].

    Raises:
        SchemeError: groups do not divide the columns.
    """
    dtype, scale = dtype or scale.dtype, _effective(scale, global_scale)
    return _rows(lambda c, s, z: _restored(c, s, z).to(dtype), codes, scale, zero_point, args)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    global_scale: Tensor | None = None,
) -> Tensor:
    """What the codes of `x` stand for, without the codes; arguments as for `quantize`, dtype and shape as `x`."""
    grid, scale = number_format(args), _effective(scale, global_scale)
    return _by_groups(lambda x, s, z: _faked(x, s, z, grid), x, scale, zero_point, args).to(x.dtype)


def fake_quantize_groups(
    grouped: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
    *,
    global_scale: Tensor | None = None,
) -> Tensor:
    """`fake_quantize` of what `group` has grouped, for trying many scales.

    Args:
        grouped: [*scale_shape, n].
        scale: [*scale_shape].
        zero_point: [*scale_shape]; None for zeros.
        args: the grid; who shares a scale is seen from the shape.
        global_scale: [1], divides the scales.

    Returns:
        The numbers, [*scale_shape, n], in the dtype of `grouped`.
    """
    zero_point = None if zero_point is None else zero_point.unsqueeze(-1)
    scale = _effective(scale, global_scale).unsqueeze(-1)
    return _faked(grouped, scale, zero_point, number_format(args)).to(grouped.dtype)


def _effective(scale: Tensor, global_scale: Tensor | None) -> Tensor:
    return scale if global_scale is None else scale / global_scale


def _joined(rows: Iterator[tuple[slice, Tensor]], x: Tensor) -> Tensor:
    """The pieces of `_rows` as one tensor of the shape of `x`."""
    made: Tensor | None = None
    for some, found in rows:
        if some == slice(None):
            return found
        made = torch.empty(x.shape, dtype=found.dtype) if made is None else made
        made[some] = found
    assert made is not None
    return made


def _rows(
    compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
) -> Iterator[tuple[slice, Tensor]]:
    """`_by_groups`, a few rows at a time where rows have scales of their own, so that they stay in a core's cache."""
    rows = max(1, _PIECE // max(1, x.shape[-1]))
    apart = x.ndim == 2 and scale.ndim == 2 and len(scale) == len(x) and args.strategy in _OF_ROWS
    if x.device.type != "cpu" or not apart or len(x) <= rows:
        yield slice(None), _by_groups(compute, x, scale, zero_point, args)
        return
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        yield some, _by_groups(compute, x[some], scale[some], None if zero_point is None else zero_point[some], args)


def _by_groups(
    compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    args: QuantizationArgs,
) -> Tensor:
    """`compute` elementwise, where each element of `x`, [..., I], meets the scale of its group."""
    if args.strategy in ("group", "tensor_group"):
        points = None if zero_point is None else zero_point.unsqueeze(-1)
        return compute(split_columns(x, args), scale.unsqueeze(-1), points).flatten(-2)
    if args.strategy == "block":
        split = split_blocks(x, args)  # [O/r, r, I/c, c]
        points = None if zero_point is None else zero_point.unsqueeze(-1).unsqueeze(-3)
        blocks = compute(split, scale.unsqueeze(-1).unsqueeze(-3), points)
        return blocks.flatten(-4, -3).flatten(-2)[..., : x.shape[-2], : x.shape[-1]].contiguous()
    return compute(x, scale, zero_point)  # tensor [1], channel and token [..., 1]: scales broadcast as they are


def _shifted(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """X / scale + zero_point, a new tensor."""
    scaled = x / scale
    # Adding a zero point of zero turns -0.0 into 0.0, as the library does: its float codes are stored.
    return scaled if zero_point is None else scaled.add_(zero_point.to(scaled.dtype))


def _restored(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """(codes - zero_point) * scale, a new tensor in the dtype of the scale."""
    return _restore_(_numbers(codes, scale.dtype), scale, zero_point)


def _numbers(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes as numbers, a new tensor; those of float8 are looked up on the CPU, which casts them one by one."""
    if codes.dtype != torch.float8_e4m3fn or codes.device.type != "cpu":
        return codes.to(dtype, copy=True)
    places = codes.contiguous().view(torch.uint8).view(-1).int()
    return _float8_numbers(dtype).index_select(0, places).view(codes.shape)


@lru_cache
def _float8_numbers(dtype: torch.dtype) -> Tensor:
    """What the 256 bytes stand for, [256]."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)


def _restore_(numbers: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """(numbers - zero_point) * scale, in place."""
    if zero_point is not None:
        numbers.sub_(zero_point.to(scale.dtype))
    return numbers.mul_(scale)


def _faked(x: Tensor, scale: Tensor, zero_point: Tensor | None, grid: NumberFormat) -> Tensor:
    """`_restored` of the codes of `_shifted`, without storing codes."""
    return _restore_(grid.round(_shifted(x, scale, zero_point)).to(scale.dtype), scale, zero_point)
