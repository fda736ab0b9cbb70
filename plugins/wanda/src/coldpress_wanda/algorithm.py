"""Wanda (arXiv 2306.11695): a weight is worth |w_ij| |x_j|, and each row drops those that are worth least.

Letters: O out, I in.

This is SparseGPT's criterion for a Gram matrix without anything beside its diagonal, and nothing is made up for.
"""

from torch import Tensor

from coldpress.numerics.mask import smallest, smallest_in_groups


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
    size = weight.float().abs()
    unused = norm <= 0  # what is multiplied by zero goes first, and of that the smallest
    scores = (size * norm).where(~unused, -1 / size)  # [O, I]
    if structure is None:
        return weight.masked_fill(smallest(scores, round(sparsity * weight.shape[1])), 0)
    return weight.masked_fill(smallest_in_groups(scores, structure[1] - structure[0], structure[1]), 0)
