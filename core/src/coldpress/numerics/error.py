"""How far a weight is from another."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from coldpress.numerics.finite import check_finite

_PIECE = 1 << 17  # elements whose conversions stay in a core's cache


def relative_error(old: Tensor, new: Tensor) -> float:
    """Frobenius norm of the change over that of `old`; 0 for two matrices of zeros."""
    size, change = _norms(old, new)
    return change / size if size > 0 else change


def overwrite(
    weight: Tensor,
    rows: Iterable[tuple[slice, Tensor]],
    *,
    original: Tensor | None,
    name: str,
    cause: str,
) -> float | None:
    """Write a new weight over the old one, a few rows at a time, of which no more are in memory.

    Args:
        weight: [O, I], changed.
        rows: which, and their new values, [rows, I], in any dtype.
        original: what the error is measured to, [O, I], which may be `weight`; None to measure none.
        name: of the weight, for messages.
        cause: what its new values come from, for messages.

    Returns:
        The `relative_error` of what was given.

    Raises:
        NumericsError: rows are not finite as they would be stored; those before them are written.
    """
    size, change = 0.0, 0.0
    for some, new in rows:
        stored = new.to(weight.dtype)  # which may be infinite where the new one is not
        check_finite(name if some == slice(None) else f"{name}[{some.start}:{some.stop}]", stored, cause=cause)
        if original is not None:
            sizes, changes = _norms(original[some], new)
            size, change = math.hypot(size, sizes), math.hypot(change, changes)
        weight[some] = stored
    if original is None:
        return None
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
