"""MagR (arXiv 2406.00800): weights with smaller ranges and nearly the same outputs, before the first is rounded.

Letters: O out, I in.

    minimize over V    1/2 tr((V - W) H (V - W)^T)  +  alpha * the sum of max |v| over groups

where H is the Gram matrix over its largest eigenvalue.  Inputs hardly use some directions: weights may move there, and
what is large gets smaller.  No step of proximal gradient descent (algorithm 1) goes up:

    V <- prox(V - (V - W) H)        prox clips a group at the height above which lie, in all, alpha
"""

import torch
from torch import Tensor

from coldpress.plugin import QuantizationArgs

STEPS = 20
"""Of descent.  The paper has 150 to 200 of them, which do not get to the minimum either: what counts is alpha times
their number, and a step costs as much as a product of the weights with the Gram matrix and a sort of the weights."""


def shrink_ranges(
    weight: Tensor, gram: Tensor, args: QuantizationArgs, *, alpha: float, keep_zeros: bool, steps: int = STEPS
) -> Tensor:
    """Weights of a smaller range, [O, I] float32.

    Args:
        weight: [O, I].
        gram: [I, I] float32.
        args: who shares a scale: groups are those of columns, and whole rows where there are none.
        alpha: what a range costs.
        keep_zeros: weights that are zero stay zero.
        steps: of descent.
    """
    largest = torch.linalg.eigvalsh(gram)[-1]
    if not bool(largest > 0):  # outputs are zero, whatever the weights are
        return weight.float()
    hessian, wanted = gram / largest, weight.float()
    size = args.group_size if args.strategy in ("group", "tensor_group") and args.group_size else weight.shape[1]
    kept = (wanted != 0).float() if keep_zeros else None
    found = wanted
    for _ in range(steps):
        found = found - (found - wanted) @ hessian
        if kept is not None:
            found.mul_(kept)
        found = clip_tops(found.view(len(found), -1, size), alpha).flatten(1)
    return found


def clip_tops(x: Tensor, amount: float) -> Tensor:
    """The proximal operator of amount * max |x|: clip at the height above which |x| has this much in all.

    It is what the projection onto the l1 ball leaves over (Duchi et al., ICML 2008, figure 1).

    Args:
        x: [..., n]; of each row by itself.
        amount: what goes; a row with less becomes zero.
    """
    heights = x.abs().sort(-1, descending=True).values
    above = torch.arange(1, x.shape[-1] + 1, device=x.device)  # how many are cut, if the edge is below this one
    edges = (heights.cumsum(-1) - amount) / above  # [..., n]
    last = (heights > edges).sum(-1, keepdim=True) - 1  # [..., 1]
    edge = edges.gather(-1, last).clamp(min=0)
    return x.clamp(-edge, edge)
