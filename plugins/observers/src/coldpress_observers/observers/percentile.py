"""percentile: the range of most of all that was seen."""

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, gt, le
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Counts, Range, counted, joined, middle_range


@frozen(kw_only=True)
class Percentile(Observer):
    """What is left when the same share of numbers is cut off at both ends; right to 2 %.

    Counts in fixed bins are kept, so that the range does not depend on how the data are cut into batches.

    Attributes:
        percentile: how many in a hundred numbers stay, in (0, 100].
    """

    merges_batches: ClassVar[bool] = True

    percentile: float = field(default=99.99, validator=and_(gt(0), le(100)))

    def update(self, statistic: Counts | None, x: Tensor) -> Counts:
        """Count the numbers of `x`, [*scale_shape, n]."""
        found = counted(x)
        return found if statistic is None else joined(statistic, found)

    def merge(self, a: Counts, b: Counts) -> Counts:
        """Add the counts."""
        return joined(a, b)

    def range(self, statistic: Counts) -> Range:
        """Smallest and largest of those that stay, [*scale_shape]."""
        return middle_range(statistic, share=self.percentile / 100)
