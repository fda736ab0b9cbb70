"""How far a weight is from another."""

import math

import torch
from torch import Tensor

_PIECE = 1 << 17  # elements whose conversions stay in a core's cache


def relative_error(old: Tensor, new: Tensor) -> float:
    """Frobenius norm of the change over that of `old`; 0 for two matrices of zeros."""
    size, change = _norms(old, new)
    return change / size if size > 0 else change


def _norms(old: Tensor, new: Tensor) -> tuple[float, float]:
    """The norms of `old` and of the change; piece by piece on the CPU, where conversions cost more than sums."""
    rows = max(1, _PIECE // max(1, old[0].numel())) if len(old) else 1
    if old.device.type != "cpu" or len(old) <= rows:
        wide = old.float()  # may be `old`
        return float(torch.linalg.vector_norm(wide)), float(torch.linalg.vector_norm(wide - new))
    sizes, changes = 0.0, 0.0
    for before, after in zip(torch.split(old, rows), torch.split(new, rows), strict=True):
        wide = before.float()
        sizes = math.hypot(sizes, float(torch.linalg.vector_norm(wide)))
        changes = math.hypot(changes, float(torch.linalg.vector_norm(wide - after)))
    return sizes, changes
