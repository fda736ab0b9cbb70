"""Average: a sum over tokens with their number, the value of several statistics."""

from attrs import evolve, field, frozen
from torch import Tensor


@frozen(eq=False)
class Average:
    """A sum over tokens.

    Attributes:
        total: the sum, [I] float64, so that the order of batches does not show.
        count: of tokens.
    """

    total: Tensor = field()
    count: int = field()

    @property
    def mean(self) -> Tensor:
        """The mean over tokens, [I] float32."""
        return (self.total / self.count).float()

    def times(self, factor: Tensor) -> "Average":
        """The average of numbers that are `factor`, [I], times as large."""
        return evolve(self, total=self.total * factor)


def added(a: Average | None, b: Average) -> Average:
    """The average over the tokens of both."""
    return b if a is None else Average(a.total + b.total, a.count + b.count)
