"""The range of a weight, and its scale and zero point, as its scheme's observer finds them."""

from torch import Tensor

from coldpress.arguments import DEFAULT_WEIGHT_OBSERVER
from coldpress.calibration.observer import checked_range, observer_for
from coldpress.numerics import calculate_qparams, group, in_weight_dtype
from coldpress.schemes import QuantizationArgs


def weight_qparams(
    weight: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a weight as its scheme's observer finds them.

    Args:
        weight: [O, I].
        args: of the weight.
        global_scale: [1], of schemes with the strategy tensor_group, see `Quantizer.global_scale`.
        importance: of the columns, [I] float32, for observers that weigh errors; None where nothing is known.

    Returns:
        Both of the shape that the strategy gives; the scale in the dtype of the weight.
    """
    found = weight_range(weight, args, global_scale=global_scale, importance=importance)
    scale, zero_point = calculate_qparams(*found, args, global_scale=global_scale)
    return in_weight_dtype(scale, weight, args), zero_point


def weight_range(
    weight: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest and largest number that the scales of a weight shall cover, as its scheme's observer finds them.

    Args:
        weight: as for `weight_qparams`, like all others.
        args: of the weight.
        global_scale: of schemes with the strategy tensor_group.
        importance: of the columns.

    Returns:
        Both of the shape that the strategy gives, in the dtype of the weight.
    """
    observer = observer_for(args, DEFAULT_WEIGHT_OBSERVER)
    grouped = group(weight, args)  # [*scale shape, n]
    costs = None if importance is None else group(importance.expand_as(weight), args)  # [*scale shape, n]
    found = observer.weight_range(grouped, global_scale=global_scale, importance=costs)
    return checked_range(observer, found, tuple(grouped.shape[:-1]))
