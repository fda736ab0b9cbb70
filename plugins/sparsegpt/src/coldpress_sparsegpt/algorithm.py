"""SparseGPT (arXiv 2301.00774): drop weights column after column, and let later columns make up for the error.

Letters: O out, I in, B columns of a block, m columns of a group.

The error of a layer's outputs is tr(E G E^T), with E = W - Q and G the Gram matrix of its inputs.  With the factor
G = (F + 1) diag(d) (F + 1)^T, F strictly upper triangular (see `coldpress.numerics.factorize`), it is

    sum_j d_j |t_j - q_j|^2,      t_j = w_j + sum_{k<j} (w_k - q_k) F_kj                                      (1)

because (E (F + 1))_j = e_j + sum_{k<j} e_k F_kj = t_j - q_j.  Going from left to right, a weight that stays becomes its
target t_j and costs nothing; one that goes costs d_j t_j^2, and later targets know of it.  Looking back at errors
instead of updating weights forward gives the same numbers without an inverse (QuIP, arXiv 2307.13304, theorem 6): a
column is touched when its turn comes, and the errors of all earlier blocks come in one product.

The mask is chosen for B columns at once when the first one's turn comes, of n:m for each group of m columns.  Then a
weight is worth d_j u_j^2, where u are the targets if all of these columns stayed (eq. 3 of the paper, w^2 / [H^-1]_jj:
H is the matrix of the columns from j on, 1 / d_j that element, and u the weights that have been updated).  With C the
part of (1) that comes from columns before the block, and w - u the errors of those that stay, it follows from (1) that

    u = w + C (F_BB + 1)^-1                                                                                     (2)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import Factor, factorize
from coldpress.numerics.mask import smallest, smallest_in_groups

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
    targets = torch.cat([weight.t().float() for weight in weights], dim=1)  # [I, O]; rows become t_j
    errors = targets.clone()  # [I, O]; rows become w_j - q_j
    zeros = targets == 0 if keep_zeros else None
    keep = torch.empty_like(targets)  # [I, O]; 1 where a weight stays
    unit = structure[1] if structure else 1  # blocks are whole groups
    block, micro, width = _up(block_size, unit), _up(_MICRO, unit), len(targets)
    for start in range(0, width, block):
        stop = min(start + block, width)
        _look_back(targets, errors, factor.feedback, 0, start, stop)
        if structure is None:
            scores = _scores(targets, errors, factor, zeros, start, stop)
            for rows, share in zip(_spans(sizes), sparsities, strict=True):
                part = scores[:, rows]
                keep[start:stop, rows] = ~smallest(part.reshape(-1), round(share * part.numel())).view(part.shape)
            _drop_zeros(keep, zeros, start, stop)
        for first in range(start, stop, micro):
            last = min(first + micro, stop)
            _look_back(targets, errors, factor.feedback, start, first, last)
            for head in range(first, last, unit if structure else micro):
                tail = min(head + unit, last) if structure else last
                _look_back(targets, errors, factor.feedback, first, head, tail)
                if structure is not None:
                    scores = _scores(targets, errors, factor, zeros, head, tail)
                    keep[head:tail] = ~smallest(scores, structure[1] - structure[0], dim=0)
                    _drop_zeros(keep, zeros, head, tail)
                _solve_columns(targets, errors, keep, factor.feedback, head, tail)
    weight = (targets * keep).add_(0.0)  # which turns -0.0 into 0.0
    loss = factor.pivots @ targets.sub_(weight).square_()  # [O]
    parts = torch.split(weight.t(), sizes), torch.split(loss, sizes)
    return [Solution(*one) for one in zip(*parts, strict=True)]


def prune_by_norm(weight: Tensor, norm: Tensor, *, sparsity: float, structure: tuple[int, int] | None) -> Tensor:
    """Drop the weights of each row with the smallest |w| * norm (Wanda, arXiv 2306.11695), where (1) cannot be had.

    Args:
        weight: [O, I].
        norm: of the inputs, [I].
        sparsity: share of each row that goes; unused where there is a structure.
        structure: (n, m) where n of every m columns stay; None for unstructured.

    Returns:
        The weights, [O, I], in their dtype.
    """
    scores = weight.float().abs() * norm
    if structure is None:
        return weight.masked_fill(smallest(scores, round(sparsity * weight.shape[1])), 0)
    return weight.masked_fill(smallest_in_groups(scores, structure[1] - structure[0], structure[1]), 0)


def _look_back(targets: Tensor, errors: Tensor, feedback: Tensor, since: int, start: int, stop: int) -> None:
    """Add to the targets of some columns what the errors of the columns from `since` to `start` owe them."""
    if since < start:
        targets[start:stop].addmm_(feedback[since:start, start:stop].t(), errors[since:start])


def _solve_columns(targets: Tensor, errors: Tensor, keep: Tensor, feedback: Tensor, start: int, stop: int) -> None:
    """Columns one by one, when the mask is chosen and all errors before `start` are in the targets."""
    owed = feedback[start:stop, start:stop].t().contiguous()  # [m, m], row j: what column j is owed
    for j in range(start, stop):
        if j > start:
            targets[j].addmv_(errors[start:j].t(), owed[j - start, : j - start])
        errors[j].addcmul_(targets[j], keep[j], value=-1)


def _scores(targets: Tensor, errors: Tensor, factor: Factor, zeros: Tensor | None, start: int, stop: int) -> Tensor:
    """What it costs to drop each weight of some columns, [B, O]; least of all where nothing ever came in.

    All errors before `start` are in the targets of these columns, and their errors are still the weights.
    """
    weights, beside = errors[start:stop], factor.feedback[start:stop, start:stop]
    fed = targets[start:stop] - weights  # C, [B, O]
    updated = torch.linalg.solve_triangular(beside.t(), fed, upper=False, unitriangular=True).add_(weights)  # eq. 2
    pivots, scores = factor.pivots[start:stop, None], updated.square_()
    scores = torch.where(pivots > 0, scores * pivots, -1 / scores)
    return scores if zeros is None else scores.masked_fill_(zeros[start:stop], -torch.inf)


def _drop_zeros(keep: Tensor, zeros: Tensor | None, start: int, stop: int) -> None:
    """What was zero goes, even if there is more of it than was asked for."""
    if zeros is not None:
        keep[start:stop].masked_fill_(zeros[start:stop], 0)


def _spans(sizes: Sequence[int]) -> list[slice]:
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def _up(number: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-number // unit) * unit
