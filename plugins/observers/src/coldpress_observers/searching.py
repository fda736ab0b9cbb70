"""SearchingObserver: the base of observers that search for the range of what they saw last."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Range, union


@frozen(kw_only=True)
class SearchingObserver(Observer):
    """Base of observers whose statistic is the range that they found last; a subclass implements `weight_range`."""

    order_matters: ClassVar[bool] = True

    def update(self, statistic: Range | None, x: Tensor) -> Range:
        """Search for `x`, [*scale_shape, n], and forget what was before."""
        return self.weight_range(x)

    def merge(self, a: Range, b: Range) -> Range:
        """What covers both."""
        return union(a, b)

    def range(self, statistic: Range) -> Range:
        """The range found, [*scale_shape]."""
        return statistic
