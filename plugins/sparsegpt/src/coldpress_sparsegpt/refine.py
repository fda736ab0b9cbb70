"""Better masks after SparseGPT's: groups of columns are chosen anew, one after the other, with all others as they are.

Letters: O out, I in, m columns of a group.

SparseGPT chooses the mask of a group with the columns before it pruned and those after it whole; once a column has had
its turn it never changes.  Here every group gets the best mask and the best weights that there are for what all other
columns are now: block coordinate descent on

    tr(E H E^T),    E = W - Q,    H = G + dampening                                                              (1)

With R = H E^T and b = R_g + H_gg q_g, what a group's outputs lack without it, keeping the columns p of the group lowers
(1) by b_p^T H_pp^-1 b_p, with weights H_pp^-1 b_p.  Of n:m all subsets are tried; without a structure, and of n:m with
more than 70 of them, such as 8:16, each column is a group whose mask stays.  (1) falls with every step, or stays.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

_BLOCK = 128  # columns whose changes reach all others in one product
_MICRO = 32  # columns whose changes reach each other one by one
_MOST_SUBSETS = 70  # of 4:8; of more, masks stay as they are
_UNSEEN = 1e-6  # what inputs that are always zero weigh, in mean diagonals: next to nothing, and H can be inverted


def refined(
    weights: Sequence[Tensor],
    sparse: Sequence[Tensor],
    gram: Tensor,
    *,
    dampening: float,
    structure: tuple[int, int] | None,
    passes: int,
) -> list[Tensor]:
    """Pruned weights whose outputs are nearer to those of the weights, with as many zeros.

    Args:
        weights: W of layers that read the same input, [O, I] each; rows do not depend on each other.
        sparse: what SparseGPT made of them, [O, I] each.
        gram: G, [I, I] float32.
        dampening: share of the mean diagonal that is added to the diagonal.
        structure: (n, m) where n of every m columns stay; None keeps the mask, and so does one of more than 70 subsets.
        passes: over all columns.

    Returns:
        The new weights, [O, I] float32 each.
    """
    damped = gram.clone()
    diagonal = gram.diagonal()
    mean = diagonal.clamp(min=0).mean()
    damped.diagonal().add_(dampening * mean).masked_fill_(diagonal <= 0, _UNSEEN * mean)
    found = torch.cat([one.t().float() for one in sparse], dim=1)  # Q^T, [I, O]
    rest = damped @ torch.cat([one.t().float() for one in weights], dim=1).sub_(found)  # R, [I, O]
    choosing = structure is not None and comb(structure[1], structure[0]) <= _MOST_SUBSETS
    step = _Subsets(damped, *structure) if choosing and structure is not None else _Columns(damped)
    change, block = torch.empty_like(found), _up(_BLOCK, step.size)
    for _ in range(passes):
        for start in range(0, len(found), block):
            stop = min(start + block, len(found))
            _choose_anew(step, damped, rest[start:stop].clone(), found, change, start)
            rest.addmm_(damped[:, start:stop], change[start:stop], alpha=-1)
    return [one.t() for one in torch.split(found, [len(one) for one in weights], dim=1)]


def _choose_anew(
    step: "_Subsets | _Columns", damped: Tensor, rest: Tensor, found: Tensor, change: Tensor, start: int
) -> None:
    """One pass over the columns of a block, group by group.

    Args:
        step: chooses a group.
        damped: H, [I, I].
        rest: R of the block, [B, O], overwritten.
        found: Q^T, [I, O], changed in place.
        change: of each column of the block, written, [I, O].
        start: first column of the block.
    """
    stop, micro = start + len(rest), _up(_MICRO, step.size)
    for first in range(start, stop, micro):
        last = min(first + micro, stop)
        _look_back(rest[first - start : last - start], damped, change, start, first, last)
        for head in range(first, last, step.size):
            tail = head + step.size
            own, now = rest[head - start : tail - start], found[head:tail]
            _look_back(own, damped, change, first, head, tail)
            fresh = step.best(head, own.addmm_(damped[head:tail, head:tail], now), now)  # of b, [m, O]
            torch.sub(fresh, now, out=change[head:tail])
            now.copy_(fresh)


def _look_back(rest: Tensor, damped: Tensor, change: Tensor, since: int, start: int, stop: int) -> None:
    """Take from R of some columns what the changes of those from `since` to `start` make up for."""
    if since < start:
        rest.addmm_(damped[start:stop, since:start], change[since:start], alpha=-1)


def loss_of(weight: Tensor, sparse: Tensor, gram: Tensor) -> float:
    """The error of the outputs of all rows, tr(E G E^T), summed over tokens."""
    error = weight.float() - sparse.float()
    return float(((error @ gram) * error).sum(dtype=torch.float64))


class _Subsets:
    """The best n columns of each group of m.

    With H_pp = L L^T, keeping the columns p lowers (1) by |L^-1 b_p|^2, with the weights L^-T L^-1 b_p: both are
    products with b, of all subsets at once.

    Args:
        damped: H, [I, I].
        n: columns that stay.
        m: columns of a group.
    """

    def __init__(self, damped: Tensor, n: int, m: int) -> None:
        self.size = m
        subsets = torch.tensor(list(combinations(range(m), n)), device=damped.device)  # [s, n]
        places = torch.arange(0, len(damped), m, device=damped.device)[:, None, None] + subsets  # [I / m, s, n]
        lower = torch.linalg.cholesky(damped[places[..., :, None], places[..., None, :]])  # L, [I / m, s, n, n]
        picked = torch.eye(m, device=damped.device)[subsets]  # b to b_p, [s, n, m]
        gains = torch.linalg.solve_triangular(lower, picked.expand(len(places), -1, -1, -1), upper=False)
        weights = picked.mT @ torch.linalg.solve_triangular(lower.mT, gains, upper=True)  # [I / m, s, m, m]
        self._gains = gains.flatten(1, 2)  # [I / m, s n, m]
        self._weights = weights.flatten(1, 2)  # [I / m, s m, m]
        self._subsets, self._kept = subsets.shape

    def best(self, head: int, lacking: Tensor, now: Tensor) -> Tensor:
        """The weights of a group, [m, O], from what its outputs lack."""
        group = head // self.size
        gains = (self._gains[group] @ lacking).square_().view(self._subsets, self._kept, -1).sum(1)  # [s, O]
        weights = (self._weights[group] @ lacking).view(self._subsets, self.size, -1)  # [s, m, O]
        chosen: Tensor = gains.max(0).indices  # [O]; argmax(0) takes 30 times as long on a CPU
        best: Tensor = weights.gather(0, chosen.expand(1, self.size, -1))[0]
        return best


class _Columns:
    """The best value of each column where it stays; the mask is what it was.

    Args:
        damped: H, [I, I].
    """

    size = 1

    def __init__(self, damped: Tensor) -> None:
        self._diagonal = damped.diagonal()

    def best(self, head: int, lacking: Tensor, now: Tensor) -> Tensor:
        """The weights of a column, [1, O]."""
        return torch.where(now != 0, lacking / self._diagonal[head], 0.0)


def _up(number: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-number // unit) * unit
