"""second_moment: the mean square of every channel, the diagonal of the Gram matrix without the rest of it."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.calibration.statistics.average import Average, added
from coldpress.statistic import RESCALE, Statistic


@frozen(kw_only=True)
class SecondMoment(Statistic):
    """The mean of x^2 over tokens; its value is an `Average`."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    def update(self, value: Average | None, x: Tensor) -> Average:
        """Add the tokens, [T, I]."""
        return added(value, Average(x.float().square().sum(0).double(), len(x)))

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return added(a, b)

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale's square."""
        return value.times(scale.double().square().reciprocal())
