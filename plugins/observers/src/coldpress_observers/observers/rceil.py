"""rceil: scales that are powers of two, rounded up, so that no number is cut off."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from coldpress.plugin import Observer, number_format
from coldpress_observers.algorithm import Range, extremes, union


@frozen(kw_only=True)
class RoundedUp(Observer):
    """Smallest and largest of everything, widened to the power of two that covers both; for MX schemes.

    The field's rule rounds the scale to the nearest power of two or down, and cuts off what is then too large.
    """

    merges_batches: ClassVar[bool] = True

    def update(self, statistic: Range | None, x: Tensor) -> Range:
        """See `x`, [*scale_shape, n], too."""
        return extremes(x) if statistic is None else union(statistic, extremes(x))

    def merge(self, a: Range, b: Range) -> Range:
        """What covers both."""
        return union(a, b)

    def range(self, statistic: Range) -> Range:
        """Twice the power of two whose scale covers everything, or the range itself, [*scale_shape]."""
        low, high = statistic
        top = number_format(self.args).maximum
        largest = torch.maximum(-low, high)
        fraction, exponent = torch.frexp(largest.float() / top)
        exponent = torch.where(fraction == 0.5, exponent - 1, exponent)  # 2^exponent >= largest / top
        unit = torch.frexp(torch.tensor(float(top))).exponent - 1  # the rule takes 2^unit times the scale for the scale
        covered = torch.ldexp(torch.ones_like(fraction), exponent + unit).to(high.dtype)
        covered = torch.where(largest > 0, covered, largest)
        return torch.where(low < 0, -covered, low), torch.where(high > 0, covered, high)
