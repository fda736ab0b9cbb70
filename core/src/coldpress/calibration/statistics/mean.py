"""mean: the mean of every channel."""

from typing import ClassVar

from attrs import evolve, frozen
from torch import Tensor

from coldpress.calibration.statistics.average import Average, added
from coldpress.statistic import RESCALE, ROTATE, Statistic


@frozen(kw_only=True)
class Mean(Statistic):
    """The mean over tokens; its value is an `Average`."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    def update(self, value: Average | None, x: Tensor) -> Average:
        """Add the tokens, [T, I]."""
        return added(value, Average(x.float().sum(0).double(), len(x)))

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return added(a, b)

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale."""
        return value.times(1 / scale.double())

    def rotate(self, value: Average, rotation: Tensor) -> Average:
        """Rotate the sum as any token."""
        return evolve(value, total=value.total @ rotation.double())
