"""Masks of weights: which of them go, exactly as many as asked for, and of equal ones the first."""

import re

import torch
from torch import Tensor

from coldpress.errors import SchemeError

_FEW = 16  # so many numbers are compared with each other sooner than the n-th smallest of them is found
_UNSTRUCTURED = ("0:0", "unstructured")


def parse_n_of_m(mask_structure: str, sparsity: object = None) -> tuple[int, int] | None:
    """What `n:m` says: in every `m` weights side by side in a row, `n` stay.

    Args:
        mask_structure: `n:m`; `0:0` or `unstructured` for none.
        sparsity: what was asked for beside it; None when nothing was.

    Returns:
        (n, m); None for no structure.

    Raises:
        SchemeError: the text is neither, or the sparsity says something else than n:m.
    """
    if mask_structure in _UNSTRUCTURED:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", mask_structure)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise SchemeError(
            f"mask_structure is {mask_structure!r}; it is n:m with 0 < n < m, such as '2:4', or '0:0' for unstructured"
        )
    kept, size = int(match[1]), int(match[2])
    share = 1 - kept / size
    if sparsity is not None and not (isinstance(sparsity, int | float) and abs(sparsity - share) < 1e-6):
        raise SchemeError(
            f"mask_structure {mask_structure} keeps {kept} of {size} weights, a sparsity of {share:g}, and sparsity is "
            f"{sparsity!r}; leave sparsity out, or write {size - kept}:{size} to keep {size - kept}"
        )
    return kept, size


def check_n_of_m(name: str, width: int, size: int) -> None:
    """Refuse a layer whose columns do not split into groups.

    Raises:
        SchemeError: names layer, width and what to do.
    """
    if width % size:
        raise SchemeError(f"{name}: {width} columns do not split into groups of {size}; ignore the layer")


def smallest(scores: Tensor, count: int, *, dim: int = -1) -> Tensor:
    """Where the `count` smallest numbers along a dimension are, the first of equal ones.

    Args:
        scores: of any shape, no NaN.
        count: how many; all of them if there are not so many.
        dim: along which to look.

    Returns:
        A mask, bool, the shape of `scores`.
    """
    length = scores.shape[dim]
    if count <= 0 or count >= length:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    if length <= _FEW:
        return _ranks(scores.movedim(dim, 0)).lt_(count).bool().movedim(0, dim)
    edge = scores.kthvalue(count, dim=dim, keepdim=True).values
    mask = scores <= edge
    if bool((mask.sum(dim) > count).any()):  # equal ones on both sides of the edge
        below = scores < edge
        ties = mask ^ below
        mask = below | (ties & (ties.cumsum(dim) <= count - below.sum(dim, keepdim=True)))
    return mask


def smallest_in_groups(scores: Tensor, count: int, size: int) -> Tensor:
    """Where the `count` smallest of every `size` numbers side by side are, [O, I] bool; `size` divides I."""
    return smallest(scores.reshape(*scores.shape[:-1], -1, size), count).flatten(-2)


def _ranks(scores: Tensor) -> Tensor:
    """How many numbers come before each one along the first dimension, [n, ...] int8."""
    places = torch.arange(len(scores), device=scores.device)
    earlier = (places < places[:, None]).view(len(scores), len(scores), *[1] * (scores.ndim - 1))
    one, other = scores[:, None], scores[None]  # [n, 1, ...], [1, n, ...]
    return torch.where(earlier, other <= one, other < one).sum(1, dtype=torch.int8)


def prune_by_score(weight: Tensor, scores: Tensor, *, sparsity: float, structure: tuple[int, int] | None) -> Tensor:
    """Zero the weights of each row whose scores are smallest.

    Args:
        weight: [O, I].
        scores: what each weight is worth, [O, I].
        sparsity: share of each row that goes, to the nearest weight; unused where there is a structure.
        structure: (n, m) where n of every m columns stay; None for unstructured.

    Returns:
        The weights, [O, I], in their dtype; those that stay are as they were.
    """
    if structure is None:
        return weight.masked_fill(smallest(scores, round(sparsity * weight.shape[1])), 0)
    return weight.masked_fill(smallest_in_groups(scores, structure[1] - structure[0], structure[1]), 0)


def score_by_norm(weight: Tensor, norm: Tensor) -> Tensor:
    """|w_ij| |x_j|, Wanda's criterion (arXiv 2306.11695); what meets only zeros is worth less than anything else.

    Args:
        weight: [O, I].
        norm: of the inputs over tokens, [I]; a common factor does not matter.

    Returns:
        A score for each weight, [O, I] float32.
    """
    size = weight.float().abs()
    return (size * norm).where(norm > 0, -1 / size)  # of what is multiplied by zero the smallest goes first
