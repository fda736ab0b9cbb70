"""kl: the range whose grid keeps the distribution of what was seen best."""

from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, instance_of, lt
from torch import Tensor

from coldpress.plugin import Observer
from coldpress_observers.algorithm import Counts, Range, counted, divergent_range, joined


@frozen(kw_only=True)
class KL(Observer):
    """Shrink the range of everything until KL(P || Q) is least, P what was seen and Q what the grid leaves of it.

    Counts in fixed bins are kept, so that the range does not depend on how the data are cut into batches.

    Attributes:
        maxshrink: how much of the range may be given up, in (0, 1).
        steps: how many ranges are tried, evenly in the logarithm.
    """

    merges_batches: ClassVar[bool] = True

    maxshrink: float = field(default=0.95, validator=and_(gt(0), lt(1)))
    steps: int = field(default=100, validator=and_(instance_of(int), ge(1)))

    def update(self, statistic: Counts | None, x: Tensor) -> Counts:
        """Count the numbers of `x`, [*scale_shape, n]."""
        found = counted(x)
        return found if statistic is None else joined(statistic, found)

    def merge(self, a: Counts, b: Counts) -> Counts:
        """Add the counts."""
        return joined(a, b)

    def range(self, statistic: Counts) -> Range:
        """The range found, [*scale_shape]."""
        factors = torch.logspace(0, torch.tensor(1 - self.maxshrink).log10().item(), self.steps)
        return divergent_range(statistic, self.args, factors=factors.to(statistic.counts.device))
