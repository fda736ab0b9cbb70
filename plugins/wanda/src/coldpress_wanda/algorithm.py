"""Wanda (arXiv 2306.11695): a weight is worth |w_ij| |x_j|, and each row drops those that are worth least.

Letters: O out, I in.

This is SparseGPT's criterion for a Gram matrix without anything beside its diagonal, and nothing is made up for.
"""

from torch import Tensor

from coldpress.numerics.mask import prune_by_score, score_by_norm


def wanda(weight: Tensor, norm: Tensor, *, sparsity: float, structure: tuple[int, int] | None) -> Tensor:
    """Drop the weights of each row that are worth least.

    Args:
        weight: [O, I].
        norm: of the inputs over tokens, [I]; a common factor does not matter.
        sparsity: share of each row that goes, to the nearest weight; unused where there is a structure.
        structure: (n, m) where n of every m columns stay; None for unstructured.

    Returns:
        The weights, [O, I], in their dtype; those that stay are as they were.
    """
    return prune_by_score(weight, score_by_norm(weight, norm), sparsity=sparsity, structure=structure)
