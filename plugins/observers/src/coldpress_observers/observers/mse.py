"""mse: the moving average of the ranges that round each batch with the least error."""

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, instance_of, le
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Average, Range, Search, averaged, merged, range_of, search_range


@frozen(kw_only=True)
class MSE(Observer):
    """Shrink the range of each batch until the rounding error is least, and average over batches.

    Attributes:
        averaging_constant: share of the newest batch, in (0, 1]; 1 forgets all others.
        maxshrink: how much of the range may be given up, in (0, 1].
        patience: factors in a row without gain in any group after which the search ends.
        grid: a step is 1/grid of the range; at most 10,000.
        norm: exponent of the error; 2 is the mean squared error.
        expand: the first factor.
        triton_error_buffer: understood and without effect: no search here ends early for speed.
    """

    order_matters: ClassVar[bool] = True

    averaging_constant: float = field(default=0.01, validator=and_(gt(0), le(1)))
    maxshrink: float = field(default=0.20, validator=and_(gt(0), le(1)))
    patience: int = field(default=5, validator=and_(instance_of(int), ge(1)))
    grid: float = field(default=100.0, validator=and_(ge(1), le(10_000)))
    norm: float = field(default=2.4, validator=gt(0))
    expand: float = field(default=1.0, validator=ge(1))
    triton_error_buffer: float | None = None

    def update(self, statistic: Average | None, x: Tensor) -> Average:
        """Search for `x`, [*scale_shape, n], and average what is found in."""
        found = search_range(x, self.args, self._search())
        return averaged(statistic, found, constant=self.averaging_constant)

    def merge(self, a: Average, b: Average) -> Average:
        """The mean, each with the weight of its batches."""
        return merged(a, b)

    def range(self, statistic: Average) -> Range:
        """The averaged range, [*scale_shape]."""
        return range_of(statistic)

    def weight_range(self, x: Tensor, *, global_scale: Tensor | None = None, importance: Tensor | None = None) -> Range:
        """Search for a weight, [*scale_shape, n], all of whose errors cost the same."""
        return search_range(x, self.args, self._search(), global_scale=global_scale)

    def _search(self) -> Search:
        return Search(self.maxshrink, self.patience, self.grid, self.norm, self.expand)
