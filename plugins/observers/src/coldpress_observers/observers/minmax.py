"""minmax: the moving average of the ranges of the batches."""

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, gt, le
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Average, Range, averaged, extremes, merged, range_of


@frozen(kw_only=True)
class MinMax(Observer):
    """Moving average of smallest and largest; the field's default for activations.

    Attributes:
        averaging_constant: share of the newest batch, in (0, 1]; 1 forgets all others.
    """

    order_matters: ClassVar[bool] = True
    whole_range: ClassVar[bool] = True

    averaging_constant: float = field(default=0.01, validator=and_(gt(0), le(1)))

    def update(self, statistic: Average | None, x: Tensor) -> Average:
        """Average the range of `x`, [*scale_shape, n], in."""
        return averaged(statistic, extremes(x), constant=self.averaging_constant)

    def merge(self, a: Average, b: Average) -> Average:
        """The mean, each with the weight of its batches."""
        return merged(a, b)

    def range(self, statistic: Average) -> Range:
        """Averaged smallest and largest, [*scale_shape]."""
        return range_of(statistic)
