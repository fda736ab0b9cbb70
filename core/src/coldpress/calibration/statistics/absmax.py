"""absmax: the largest magnitude of every channel."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from coldpress.statistic import RESCALE, Statistic


@frozen(kw_only=True)
class Absmax(Statistic):
    """The maximum of |x| over tokens; its value is a tensor, [I] float32."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    def update(self, value: Tensor | None, x: Tensor) -> Tensor:
        """Compare with the tokens, [T, I]."""
        largest = x.abs().amax(0).float()  # [I]; several times as fast as aminmax over this dimension
        return largest if value is None else torch.maximum(value, largest)

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """The larger of both."""
        return torch.maximum(a, b)

    def rescale(self, value: Tensor, scale: Tensor) -> Tensor:
        """Divide by the scale's magnitude."""
        return value / scale.abs()
