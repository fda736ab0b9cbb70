"""memoryless_minmax: the range of what was seen last."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Range, extremes, union


@frozen(kw_only=True)
class MemorylessMinMax(Observer):
    """Smallest and largest of the last tensor; the field's default for weights, which are seen once."""

    order_matters: ClassVar[bool] = True
    whole_range: ClassVar[bool] = True

    def update(self, statistic: Range | None, x: Tensor) -> Range:
        """See `x`, [*scale_shape, n], and forget what was before."""
        return extremes(x)

    def merge(self, a: Range, b: Range) -> Range:
        """What covers both."""
        return union(a, b)

    def range(self, statistic: Range) -> Range:
        """Smallest and largest, [*scale_shape]."""
        return statistic
