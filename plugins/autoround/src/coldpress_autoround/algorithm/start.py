"""Where learned rounding starts: at the codes of GPTQ (arXiv 2210.17323), column after column.

Letters: O out, I in, n weights of a group; *q is the shape of the scales.

With G = (F + 1) diag(d) (F + 1)^T, a column j is rounded to the point of its grid that is nearest to
t_j = w_j + sum_{k<j} (w_k - q_k) F_kj (see `coldpress.numerics.factorize`), from the most to the least active one.
"""

import torch
from torch import Tensor

from coldpress.numerics import factorize
from coldpress.plugin import QuantizationArgs, number_format

DAMPENING = 0.01
"""Share of the mean diagonal of the Gram matrix that is added to its diagonal."""

_BLOCK = 64  # columns whose errors come one by one; those of earlier columns come in one product


def gptq_codes(
    weight: Tensor, gram: Tensor, args: QuantizationArgs, *, scale: Tensor, zero_point: Tensor
) -> Tensor | None:
    """The codes that GPTQ finds.

    Args:
        weight: [O, I].
        gram: of the layer's inputs, [I, I] float32.
        args: the grid.
        scale: of each weight, what codes are multiplied by, [O, I] float32; may be expanded.
        zero_point: of each weight, [O, I] float32; may be expanded.

    Returns:
        Codes, [O, I] float32; None where no dampening makes the matrix positive definite.
    """
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = factorize(gram, dampening_frac=DAMPENING, order=order)
    if factor is None:
        return None
    grid, feedback = number_format(args), factor.feedback
    targets = weight.t().float()[order].contiguous()  # [I, O]; rows become t_j
    scales, points = scale.t()[order], zero_point.t()[order]  # [I, O]
    errors, codes = targets.clone(), torch.empty_like(targets)  # rows become w_j - q_j
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        targets[start:stop].addmm_(feedback[:start, start:stop].t(), errors[:start])
        for j in range(start, stop):
            targets[j].addmv_(errors[start:j].t(), feedback[start:j, j])
            codes[j] = grid.round(targets[j] / scales[j] + points[j])
            errors[j] -= (codes[j] - points[j]) * scales[j]
    return codes[order.argsort()].t().contiguous()
