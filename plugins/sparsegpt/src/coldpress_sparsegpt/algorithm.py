"""SparseGPT (arXiv 2301.00774): drop weights column after column, and let later columns make up for the error.

Letters: O out, I in, B columns of a block or group.

The error of a layer's outputs is tr(E G E^T), with E = W - Q and G the Gram matrix of its inputs.  With the factor
G = (F + 1) diag(d) (F + 1)^T, F strictly upper triangular (see `coldpress.numerics.factorize`), it is

    sum_j d_j |e_j - n_j|^2,      n_j = - sum_{k<j} e_k F_kj                                                  (1)

so n_j is the error that makes up for those of the columns before.  Going from left to right, a weight that stays takes
it, e_j = n_j, becomes w_j - n_j, and costs nothing; one that goes has e_j = w_j and costs d_j (w_j - n_j)^2.  Looking
back at errors instead of updating weights forward gives the paper's numbers without an inverse (QuIP, arXiv 2307.13304,
theorem 6): a column is touched when its turn comes, and the errors of all earlier blocks come in one product.

The mask of B columns is chosen when the first one's turn comes; of n:m for each group of m.  A weight is then worth
d_j u_j^2, where u are the weights if all B columns stayed (eq. 3 of the paper, w^2 / [H^-1]_jj: H is the matrix of the
columns from j on, 1 / d_j is that element, and u the weights as updated so far).  With N the part of n that comes from
columns before the block, (1) gives

    u = w - N (F_BB + 1)^-1                                                                                   (2)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import Factor, factorize
from coldpress.numerics.mask import smallest

_MICRO = 32  # columns whose errors come one by one; those of earlier columns of the block come in one product


class Solution(NamedTuple):
    """What SparseGPT made of a matrix.

    Attributes:
        weight: [O, I] float32; what goes is exactly zero.
        loss: the error (1) of each row, [O] float32; of outputs, summed over tokens, dampening included.
    """

    weight: Tensor
    loss: Tensor


def prepare(gram: Tensor, *, dampening_frac: float) -> Factor | None:
    """Factorize a Gram matrix, [I, I] float32; columns whose inputs were always zero get a pivot of zero.

    Returns:
        The factor; None where no dampening makes the matrix positive definite.
    """
    factor = factorize(gram, dampening_frac=dampening_frac)
    if factor is None:
        return None
    pivots = torch.where(gram.diagonal() > 0, factor.pivots, 0.0)
    return Factor(feedback=factor.feedback, pivots=pivots, dampening=factor.dampening)


def sparsegpt(
    weights: Sequence[Tensor],
    factor: Factor,
    *,
    sparsities: Sequence[float],
    structure: tuple[int, int] | None,
    block_size: int,
    keep_zeros: bool,
) -> list[Solution]:
    """Prune matrices that read the same input, in one go; the same as one by one.

    Args:
        weights: [O, I] each.
        factor: of the Gram matrix of their input, from `prepare`.
        sparsities: the share of the weights of every block that goes, for each matrix; unused where there is a
            structure.
        structure: (n, m) where n of every m columns stay; None for unstructured.
        block_size: columns whose mask is chosen at once; with a structure only speed depends on it.
        keep_zeros: weights that are zero stay zero, and count.
    """
    sizes = [len(weight) for weight in weights]
    old = torch.cat([weight.t().float() for weight in weights], dim=1)  # W, [I, O]
    makeup, errors = torch.zeros_like(old), torch.empty_like(old)  # N, and its rows become n; E
    unit = structure[1] if structure else 1  # blocks are whole groups
    block, micro, width = _up(block_size, unit), _up(_MICRO, unit), len(old)
    choice = _Choice(old, makeup, factor, zeros=old == 0 if keep_zeros else None, size=unit if structure else block)
    for start in range(0, width, block):
        stop = min(start + block, width)
        _look_back(makeup, errors, factor.feedback, 0, start, stop)
        if structure is None:
            choice.choose_shares(start, stop, sizes, sparsities)
        for first in range(start, stop, micro):
            last = min(first + micro, stop)
            _look_back(makeup, errors, factor.feedback, start, first, last)
            for head in range(first, last, unit if structure else micro):
                tail = head + unit if structure else last
                _look_back(makeup, errors, factor.feedback, first, head, tail)
                if structure is not None:
                    choice.choose_of_each(head, tail, drop=unit - structure[0])
                for j in range(head, tail):
                    if j > head:
                        makeup[j].addmv_(errors[head:j].t(), factor.feedback[head:j, j], alpha=-1)
                    torch.where(choice.stays[j], makeup[j], old[j], out=errors[j])
    loss = factor.pivots @ makeup.sub_(errors).square_()  # [O]
    parts = torch.split(old.sub_(errors).t(), sizes), torch.split(loss, sizes)
    return [Solution(*one) for one in zip(*parts, strict=True)]


class _Choice:
    """Which weights stay.

    Args:
        old: W, [I, O].
        makeup: N of the columns whose turn it is, [I, O].
        factor: of the Gram matrix; its pivots are zero where nothing ever comes in.
        zeros: what goes whatever it costs, [I, O] bool; None for nothing.
        size: columns whose mask is chosen at once.
    """

    def __init__(self, old: Tensor, makeup: Tensor, factor: Factor, *, zeros: Tensor | None, size: int) -> None:
        self.stays = torch.ones_like(old, dtype=torch.bool)  # [I, O]
        self._old, self._makeup, self._zeros = old, makeup, zeros
        self._size = size
        self._back = _inverses(factor.feedback, size)
        self._roots = factor.pivots.sqrt()[:, None]  # [I, 1]
        self._idle = bool((self._roots <= 0).any())

    def choose_shares(self, start: int, stop: int, sizes: Sequence[int], shares: Sequence[float]) -> None:
        """Of some columns of each matrix, the share that is worth least goes."""
        worth, end = self._worth(start, stop), 0
        for size, share in zip(sizes, shares, strict=True):
            end += size
            part = worth[:, end - size : end]
            gone = smallest(part.reshape(-1), round(share * part.numel())).view(part.shape)
            torch.logical_not(gone, out=self.stays[start:stop, end - size : end])
        self._drop_zeros(start, stop)

    def choose_of_each(self, start: int, stop: int, *, drop: int) -> None:
        """Of the columns of a group, in each row, those go that are worth least."""
        gone = self._worth(start, stop).topk(drop, dim=0, largest=False, sorted=False).indices  # [drop, O]
        self.stays[start:stop].scatter_(0, gone, False)
        self._drop_zeros(start, stop)

    def _worth(self, start: int, stop: int) -> Tensor:
        """The root of what it costs to drop each weight of some columns, [B, O]; least where nothing comes in."""
        back, roots = self._back[start // self._size][: stop - start, : stop - start], self._roots[start:stop]
        size = torch.addmm(self._old[start:stop], back, self._makeup[start:stop], alpha=-1).abs_()  # eq. 2
        worth = torch.where(roots > 0, size * roots, -1 / size) if self._idle else size.mul_(roots)
        return worth if self._zeros is None else worth.masked_fill_(self._zeros[start:stop], -torch.inf)

    def _drop_zeros(self, start: int, stop: int) -> None:
        """What was zero goes, even if there is more of it than was asked for."""
        if self._zeros is not None:
            self.stays[start:stop].masked_fill_(self._zeros[start:stop], False)


def _look_back(makeup: Tensor, errors: Tensor, feedback: Tensor, since: int, start: int, stop: int) -> None:
    """Add to N of some columns what comes from the columns from `since` to `start`."""
    if since < start:
        makeup[start:stop].addmm_(feedback[since:start, start:stop].t(), errors[since:start], alpha=-1)


def _inverses(feedback: Tensor, size: int) -> Tensor:
    """(F_BB + 1)^-T of each `size` columns side by side, [I / size, size, size]; the last one is filled up."""
    width = len(feedback)
    count = -(-width // size)
    blocks = feedback.new_zeros(count, size, size)
    for index, start in enumerate(range(0, width, size)):
        part = feedback[start : start + size, start : start + size].t()
        blocks[index, : len(part), : len(part)] = part
    unit = torch.eye(size, dtype=feedback.dtype, device=feedback.device)
    inverses: Tensor = torch.linalg.solve_triangular(blocks, unit.expand_as(blocks), upper=False, unitriangular=True)
    return inverses


def _up(number: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-number // unit) * unit
