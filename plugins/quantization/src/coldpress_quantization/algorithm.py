"""Round to nearest (RTN): Q = clamp(round(W / s + z)), each weight by itself; in two levels, W / (s / t) for W / s."""

from torch import Tensor

from coldpress import QuantizationArgs
from coldpress.numerics import quantize


def round_to_nearest(
    weight: Tensor, scale: Tensor, zero_point: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None
) -> Tensor:
    """The nearest point of the grid for every weight; ties go to the even code.

    Args:
        weight: [O, I].
        scale: one for each tensor, row, group of columns or block, as `args.strategy` says.
        zero_point: the shape of `scale`.
        args: the grid and who shares a scale.
        global_scale: [1], t, by which scales were multiplied; None where they were not.

    Returns:
        Codes, [O, I].
    """
    return quantize(weight, scale, zero_point, args, global_scale=global_scale)
