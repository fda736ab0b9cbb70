"""Averages over tokens of every channel: mean, mean magnitude and mean square."""

from typing import ClassVar

from attrs import evolve, field, frozen
from torch import Tensor

from coldpress.errors import must_implement
from coldpress.statistic import RESCALE, ROTATE, GradientStatistic, Statistic


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


@frozen(kw_only=True)
class Moment(Statistic):
    """Base of statistics whose value is an `Average`; a subclass says what is averaged, and how it scales.

    Attributes:
        weights: what each token counts, such as `TokenWeight()`; None counts all alike.
    """

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    weights: GradientStatistic | None = None

    def weighted_by(self) -> GradientStatistic | None:
        """What `weights` says."""
        return self.weights

    def update_weighted(self, value: Average | None, x: Tensor, weight: Tensor) -> Average:
        """Add the tokens, each as often as it counts."""
        return added(value, Average((self.terms(x).T @ weight.to(x.device)).double(), len(x)))

    def terms(self, x: Tensor) -> Tensor:
        """What is averaged over tokens, [T, I] -> [T, I] float32."""
        raise must_implement(self, "terms(x)")

    def update(self, value: Average | None, x: Tensor) -> Average:
        """Add the tokens, [T, I]."""
        return added(value, Average(self.terms(x).sum(0).double(), len(x)))

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return added(a, b)


@frozen(kw_only=True)
class Mean(Moment):
    """The mean over tokens."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    def terms(self, x: Tensor) -> Tensor:
        """The tokens themselves."""
        return x.float()

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale."""
        return value.times(1 / scale.double())

    def rotate(self, value: Average, rotation: Tensor) -> Average:
        """Rotate the sum as any token."""
        return evolve(value, total=value.total @ rotation.double())


@frozen(kw_only=True)
class MeanAbs(Moment):
    """The mean of |x| over tokens."""

    def terms(self, x: Tensor) -> Tensor:
        """Magnitudes."""
        return x.abs().float()

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale's magnitude."""
        return value.times(1 / scale.double().abs())


@frozen(kw_only=True)
class SecondMoment(Moment):
    """The mean of x^2 over tokens: the diagonal of the Gram matrix without the rest of it."""

    def terms(self, x: Tensor) -> Tensor:
        """Squares."""
        return x.float().square()

    def rescale(self, value: Average, scale: Tensor) -> Average:
        """Divide by the scale's square."""
        return value.times(scale.double().square().reciprocal())
