"""minmax: the range of every channel."""

from typing import ClassVar

import torch
from attrs import field, frozen
from torch import Tensor

from coldpress.statistic import RESCALE, Statistic


@frozen(eq=False)
class Range:
    """What `minmax` says.

    Attributes:
        minimum: of every channel, [I] float32.
        maximum: of every channel, [I] float32.
    """

    minimum: Tensor = field()
    maximum: Tensor = field()


@frozen(kw_only=True)
class Minmax(Statistic):
    """The smallest and the largest x over tokens; its value is a `Range`."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    def update(self, value: Range | None, x: Tensor) -> Range:
        """Compare with the tokens, [T, I]."""
        seen = Range(x.amin(0).float(), x.amax(0).float())  # several times as fast as aminmax over this dimension
        return seen if value is None else self.merge(value, seen)

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Range, b: Range) -> Range:
        """The range of both."""
        return Range(torch.minimum(a.minimum, b.minimum), torch.maximum(a.maximum, b.maximum))

    def rescale(self, value: Range, scale: Tensor) -> Range:
        """Divide by the scale; a negative one turns the range around."""
        a, b = value.minimum / scale, value.maximum / scale
        return Range(torch.minimum(a, b), torch.maximum(a, b))
