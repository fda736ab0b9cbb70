"""An observer as a statistic: what the scale of a static input is made of."""

from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.calibration.observer import Observer
from coldpress.numerics import group
from coldpress.statistic import Statistic


@frozen(kw_only=True)
class Observed(Statistic):
    """What an observer saw of the inputs of a layer or an attention; its value is the observer's statistic.

    An observer sees a tensor in the groups of its scheme, not in channels, so it cannot follow a signal that moves.

    Attributes:
        observer: with the arguments of the inputs.
    """

    sees_heads: ClassVar[bool] = True

    observer: Observer

    def update(self, value: Any | None, x: Tensor) -> Any:
        """Show the observer the tokens, [T, I] or [T, H, D]."""
        return self.observer.update(value, group(x, self.observer.args))

    def merges_batches(self) -> bool:
        """If the observer does."""
        return self.observer.merges_batches

    def merge(self, a: Any, b: Any) -> Any:
        """As the observer does."""
        return self.observer.merge(a, b)
