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

from itertools import combinations
from math import comb

import torch
from torch import Tensor

_BLOCK = 128  # columns whose changes reach all others in one product
_MOST_SUBSETS = 70  # of 4:8; of more, masks stay as they are
_UNSEEN = 1e-6  # what inputs that are always zero weigh, in mean diagonals: next to nothing, and H can be inverted


def refined(
    weight: Tensor, sparse: Tensor, gram: Tensor, *, dampening: float, structure: tuple[int, int] | None, passes: int
) -> Tensor:
    """A pruned weight whose outputs are nearer to those of the weight, with as many zeros.

    Args:
        weight: W, [O, I].
        sparse: what SparseGPT made of it, [O, I].
        gram: G, [I, I] float32.
        dampening: share of the mean diagonal that is added to the diagonal.
        structure: (n, m) where n of every m columns stay; None keeps the mask, and so does one of more than 70 subsets.
        passes: over all columns.

    Returns:
        The new weight, [O, I] float32.
    """
    damped = gram.clone()
    diagonal = gram.diagonal()
    mean = diagonal.clamp(min=0).mean()
    damped.diagonal().add_(dampening * mean).masked_fill_(diagonal <= 0, _UNSEEN * mean)
    found = sparse.t().float().clone(memory_format=torch.contiguous_format)  # Q^T, [I, O]
    rest = damped @ (weight.t().float() - found)  # R, [I, O]
    choosing = structure is not None and comb(structure[1], structure[0]) <= _MOST_SUBSETS
    step = _Subsets(damped, *structure) if choosing and structure is not None else _Columns(damped)
    for _ in range(passes):
        for start in range(0, len(found), _up(_BLOCK, step.size)):
            stop = min(start + _up(_BLOCK, step.size), len(found))
            before = found[start:stop].clone()
            for head in range(start, stop, step.size):
                tail = head + step.size
                lacking = rest[head:tail] + damped[head:tail, head:tail] @ found[head:tail]  # b, [m, O]
                fresh = step.best(head, lacking, found[head:tail])
                rest[start:stop].addmm_(damped[start:stop, head:tail], fresh - found[head:tail], alpha=-1)
                found[head:tail] = fresh
            change = found[start:stop] - before
            rest[:start].addmm_(damped[:start, start:stop], change, alpha=-1)
            rest[stop:].addmm_(damped[stop:, start:stop], change, alpha=-1)
    return found.t()


def loss_of(weight: Tensor, sparse: Tensor, gram: Tensor) -> float:
    """The error of the outputs of all rows, tr(E G E^T), summed over tokens."""
    error = weight.float() - sparse.float()
    return float(((error @ gram) * error).sum(dtype=torch.float64))


class _Subsets:
    """The best n columns of each group of m.

    Args:
        damped: H, [I, I].
        n: columns that stay.
        m: columns of a group.
    """

    def __init__(self, damped: Tensor, n: int, m: int) -> None:
        self.size = m
        self._subsets = torch.tensor(list(combinations(range(m), n)), device=damped.device)  # [s, n]
        starts = torch.arange(0, len(damped), m, device=damped.device)[:, None, None]
        places = starts + self._subsets  # [I / m, s, n]
        self._inverses = torch.linalg.inv(damped[places[..., :, None], places[..., None, :]])  # [I / m, s, n, n]

    def best(self, head: int, lacking: Tensor, now: Tensor) -> Tensor:
        """The weights of a group, [m, O], from what its outputs lack."""
        parts = lacking[self._subsets]  # [s, n, O]
        solved = self._inverses[head // self.size] @ parts  # [s, n, O]
        chosen = (solved * parts).sum(1).argmax(0)  # [O]
        every = torch.arange(lacking.shape[1], device=lacking.device)
        fresh = torch.zeros_like(lacking)
        return fresh.scatter_(0, self._subsets[chosen].t(), solved[chosen, :, every].t())


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
