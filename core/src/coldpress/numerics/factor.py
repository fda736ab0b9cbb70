"""A Gram matrix as a triangular factor: what solvers that carry errors from column to column need.

    G + dampening = (F + 1) diag(d) (F + 1)^T        F strictly upper triangular, d > 0

So the error of a layer, tr(E G E^T) with E = W - Q, is the sum over columns j of d_j |e_j + sum_{k<j} e_k F_kj|^2: a
solver that goes from left to right sees, for every column, a target w_j + sum_{k<j} e_k F_kj and a weight d_j.
This is GPTQ's rule, written without an inverse: 1 / d_j is the j-th pivot of the Cholesky factor of G^-1
(QuIP, arXiv 2307.13304, theorem 6, shows that both are the same).
"""

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = (1.0, 10.0, 100.0)  # times the dampening that was asked for
_ROWS, _PIECE = 256, 1 << 20  # rows, and numbers, that are moved at a time
_LEAST = 1e-4  # what is tried where no dampening was asked for, and it did not do


class Factor(NamedTuple):
    """A factorized Gram matrix, in the order of columns that it was given.

    Attributes:
        feedback: F, what the error of a column (row index) adds to the target of a later one, [I, I] float32.
        pivots: d, what the squared error of each column weighs after the later ones did their best, [I] float32.
        dampening: share of the mean diagonal that was added to the diagonal.
    """

    feedback: Tensor
    pivots: Tensor
    dampening: float


def factorize(gram: Tensor, *, dampening_frac: float, order: Tensor | None = None) -> Factor | None:
    """Factorize a Gram matrix; if it is not positive definite, with 10 and 100 times the dampening.

    Channels that were never active, whose weights may be anything, neither give nor take.

    Args:
        gram: symmetric, [I, I] float32, finite.
        dampening_frac: share of the mean diagonal that is added to the diagonal, at least 0.
        order: of the columns of the factor, [I]; None leaves them as they are.

    Returns:
        The factor; None when no dampening makes the matrix positive definite.
    """
    diagonal = gram.diagonal() if order is None else gram.diagonal()[order]
    dead = diagonal <= 0
    mean = diagonal.clamp(min=0).mean()
    if not bool(mean > 0):
        mean = torch.ones_like(mean)
    for step in _STEPS:
        frac = max(dampening_frac, _LEAST if step > 1 else 0.0) * step
        turned = _turned(gram, order)  # from its last column to its first: turned back, its factor is an upper one
        turned.diagonal().add_(frac * mean).masked_fill_(dead.flip(0), mean)
        lower, info = turned.mT, torch.empty((), dtype=torch.int32, device=gram.device)
        torch.linalg.cholesky_ex(lower, out=(lower, info))  # in its place, and what follows too: wide layers
        if not bool(info) and bool(torch.isfinite(lower.diagonal()).all()):
            _reverse(turned.view(-1))
            upper, roots = lower, lower.diagonal().clone()
            return Factor(feedback=upper.div_(roots).triu_(1), pivots=roots.square(), dampening=frac)
    return None


def _turned(gram: Tensor, order: Tensor | None) -> Tensor:
    """A copy, [I, I], contiguous, of the matrix with its columns in an order, and then backwards."""
    if order is None:
        return gram.flip(0, 1).contiguous()
    backwards, turned = order.flip(0), torch.empty_like(gram, memory_format=torch.contiguous_format)
    for start in range(0, len(gram), _ROWS):
        some = slice(start, start + _ROWS)
        turned[some] = gram.index_select(0, backwards[some]).index_select(1, backwards)
    return turned


def _reverse(flat: Tensor) -> None:
    """Turn a vector around, in its place."""
    for start in range(0, len(flat) // 2, _PIECE):
        stop = min(start + _PIECE, len(flat) // 2)
        front, back = flat[start:stop], flat[len(flat) - stop : len(flat) - start]
        held = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(held)
