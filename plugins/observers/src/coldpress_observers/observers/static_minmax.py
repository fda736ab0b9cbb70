"""static_minmax: the range of all that was ever seen."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Range, extremes, union


@frozen(kw_only=True)
class StaticMinMax(Observer):
    """Smallest and largest of everything; no number of the calibration data is clipped."""

    merges_batches: ClassVar[bool] = True
    whole_range: ClassVar[bool] = True

    def update(self, statistic: Range | None, x: Tensor) -> Range:
        """See `x`, [*scale_shape, n], too."""
        return extremes(x) if statistic is None else union(statistic, extremes(x))

    def merge(self, a: Range, b: Range) -> Range:
        """What covers both."""
        return union(a, b)

    def range(self, statistic: Range) -> Range:
        """Smallest and largest, [*scale_shape]."""
        return statistic
