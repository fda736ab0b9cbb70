"""histogram: how often numbers of which size come, over all channels."""

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.statistic import Statistic


@frozen(kw_only=True)
class Histogram(Statistic):
    """Counts of x in bins whose edges are powers of two and fractions between, the same for every tensor.

    Fixed edges make merging exact, and the counts do not depend on batches.  A bin is 1 / `bins_per_octave` of an
    octave wide.  The value is the counts, [2, bins] int64: negative numbers and positive ones, from small to large;
    zeros and numbers below the first edge are in the first positive bin.  It cannot follow a signal that moves.

    Attributes:
        bins_per_octave: how fine; 16 tells numbers apart that differ by 4 %.
        smallest: exponent of two of the first edge.
        largest: exponent of two of the last edge; larger numbers are in the last bin.
    """

    bins_per_octave: int = field(default=16, validator=ge(1))
    smallest: int = -24
    largest: int = field(default=24)

    @largest.validator
    def _check(self, attribute: object, value: int) -> None:
        if value <= self.smallest:
            raise ValueError(f"largest must be more than smallest={self.smallest}, got {value}")

    def edges(self) -> Tensor:
        """Magnitudes where bins begin and the last one ends, [bins + 1] float64."""
        steps = torch.arange(self._bins() + 1, dtype=torch.float64) / self.bins_per_octave
        return torch.exp2(steps + self.smallest)

    def update(self, value: Tensor | None, x: Tensor) -> Tensor:
        """Count the numbers of the tokens, [T, I]."""
        bins = self._bins()
        place = (x.float().abs().log2_() - self.smallest).mul_(self.bins_per_octave)
        place = place.floor_().clamp_(0, bins - 1).to(torch.int64)  # log2(0) is -inf, the first bin
        positive = (x >= 0) | (place == 0)
        counts = torch.bincount((place + bins * positive).flatten(), minlength=2 * bins).view(2, bins)
        return counts if value is None else value + counts

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """Add the counts."""
        return a + b

    def _bins(self) -> int:
        return (self.largest - self.smallest) * self.bins_per_octave
