"""GPTAQ and Qronos: what GPTQ aims at where its inputs already differ from those of the original model.

Letters: O out, I in.

With inputs X of the compressed model and X' of the original one (tokens are rows), both ask for

    minimize over Q   |X' W^T - X Q^T|^2  =  tr((W* - Q) G (W* - Q)^T) + constant,    W* = W + W D G^-1            (1)

where G = X^T X and D = (X' - X)^T X.  So each is GPTQ with other weights in place of W: what differs between them is
how much of the correction W D G^-1 they take.  With the factor G = (F + 1) diag(d) (F + 1)^T, in the order of rounding:

GPTAQ (arXiv 2504.02692): the difference of the input k is made up for by the columns after k,
    W + W P,    P = (D (F + 1)^-T diag(1/d), elements above the diagonal) (F + 1)^-1
Qronos (arXiv 2505.11695): all columns make up for all differences, W*, but the first column is rounded as
if no other could, v = w_1 + (W D)_1 / G_11; what follows knows of it.
"""

import torch
from torch import Tensor

from coldpress_gptq.algorithm.solver import Prepared


def gptaq_weights(weight: Tensor, cross: Tensor, prepared: Prepared) -> Tensor:
    """What GPTQ rounds in place of the weights, [O, I] float32, for GPTAQ.

    The paper corrects with weights that carry errors of rounding already; these are the original ones, as in (1).

    Args:
        weight: [O, I].
        cross: D, [I, I] float32.
        prepared: the Gram matrix of the compressed model's inputs; it has a factor.
    """
    assert prepared.factor is not None
    order, wanted = prepared.order, weight.float()[:, prepared.order]
    part = _over_upper_transposed(cross[order][:, order], prepared).div_(prepared.factor.pivots).triu_(1)
    return (wanted + wanted @ _over_upper(part, prepared))[:, order.argsort()]


def qronos_weights(weight: Tensor, cross: Tensor, prepared: Prepared) -> Tensor:
    """What GPTQ rounds in place of the weights, [O, I] float32, for Qronos; arguments as for `gptaq_weights`."""
    assert prepared.factor is not None
    order, (feedback, pivots, _) = prepared.order, prepared.factor
    wanted = weight.float()[:, order]
    change = wanted @ cross[order][:, order]  # W D, [O, I]
    best = wanted + _over_upper(_over_upper_transposed(change, prepared).div_(pivots), prepared)  # W*, [O, I]
    alone = wanted[:, 0] + change[:, 0] / (pivots[0] + feedback[0].square() @ pivots)  # v, [O]
    first = _over_upper(torch.eye(1, len(order), device=feedback.device), prepared)  # [1, I]
    best += (alone - best[:, 0])[:, None] * first  # v comes first, and the targets behind it are those of W*
    return best[:, order.argsort()]


def _over_upper(x: Tensor, prepared: Prepared) -> Tensor:
    """X (F + 1)^-1, [*, I]."""
    assert prepared.factor is not None
    found: Tensor = torch.linalg.solve_triangular(
        prepared.factor.feedback, x, upper=True, left=False, unitriangular=True
    )
    return found


def _over_upper_transposed(x: Tensor, prepared: Prepared) -> Tensor:
    """X (F + 1)^-T, [*, I]."""
    assert prepared.factor is not None
    found: Tensor = torch.linalg.solve_triangular(
        prepared.factor.feedback.t(), x, upper=False, left=False, unitriangular=True
    )
    return found
