"""Cross: how inputs of the original model differ from those of the compressed one, seen from the latter."""

from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from coldpress.plugin import RESCALE, ROTATE, Statistic


@frozen(kw_only=True)
class Cross(Statistic):
    """(X' - X)^T X, [I, I] float32, with inputs X and those of the original model X', tokens are rows."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})
    needs_original_inputs: ClassVar[bool] = True

    def update_with_original(self, value: Tensor | None, x: Tensor, original: Tensor) -> Tensor:
        """Add the tokens, [T, I] both."""
        x = x.float()
        change = (original.float() - x).t()
        return change @ x if value is None else torch.addmm(value, change, x)

    def merge(self, a: Any, b: Any) -> Tensor:
        """Add both."""
        total: Tensor = a + b
        return total

    def rescale(self, value: Tensor, scale: Tensor) -> Tensor:
        """D^-1 C D^-1, where D has the scale on its diagonal."""
        return value / scale[:, None] / scale

    def rotate(self, value: Tensor, rotation: Tensor) -> Tensor:
        """R^T C R, in float64."""
        wide = rotation.double()
        return (wide.t() @ (value.double() @ wide)).float()
