"""mean_abs: the mean magnitude of every channel."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.calibration.statistics.average import Average, added
from coldpress.statistic import RESCALE, Statistic


@frozen(kw_only=True)
class MeanAbs(Statistic):
    """The mean of |x| over tokens; its value is an `Average`."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    def update(self, value: Average | None, x: Tensor) -> Average:
        """Add the tokens, [T, I]."""
        return added(value, Average(x.abs().float().sum(0).double(), len(x)))

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return added(a, b)

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale's magnitude."""
        return value.times(1 / scale.double().abs())
