"""Scales that are fitted again when the codes are chosen: the best ones for these codes, in closed form.

Letters: O out, I in, G groups of a row, g columns of a group.

With codes c (zero points subtracted) a row of weights is q = sum over groups of s_k c_k, c_k being zero outside of its
group, and the error (w - q) H (w - q)^T is least where

    sum_l (c_k H c_l^T) s_l  =  c_k H w^T        for every group k                                               (1)

(two-stage quantization, arXiv 2602.02126, has it for one group after the other; here all groups of a row are solved.)
"""

import torch
from torch import Tensor

from coldpress.numerics import group
from coldpress.plugin import QuantizationArgs
from coldpress_gptq.algorithm.solver import Prepared, Solution, measured

_RIDGE = 1e-6  # of the mean diagonal: groups whose codes are zero, or alike, keep their scales
_MOST = 2**24  # elements of the matrices of (1) that are in memory at once


def has_own_scales(args: QuantizationArgs) -> bool:
    """Whether each row has scales of its own, that may be any number of their dtype: what `refitted` can do."""
    return (
        args.strategy in ("channel", "group") and args.scale_dtype in (None, torch.float16) and args.scale_bits is None
    )


def refitted(
    weight: Tensor, solution: Solution, qparams: tuple[Tensor, Tensor], prepared: Prepared, args: QuantizationArgs
) -> tuple[Tensor, Solution]:
    """The scales that fit the codes best, and the solution with the error that is left.

    Rows keep their scales where the new ones, in the dtype of scales, are no better or have other signs.

    Args:
        weight: [O, I].
        solution: the codes, and their error beside these weights.
        qparams: scale and zero point, [O, G] each.
        prepared: the Gram matrix; it has a factor.
        args: `has_own_scales` is true of it.
    """
    scale, point = qparams
    codes = group(solution.codes.float(), args) - point.float().unsqueeze(-1)  # [O, G, g]
    gram = _damped(prepared)
    wanted = group(weight.float() @ gram, args)  # [O, G, g]
    parts = zip(*(torch.split(part, _rows(scale)) for part in (codes, wanted, scale.float())), strict=True)
    found = torch.cat([old + _change(c, w, old, gram) for c, w, old in parts])
    found = found.to(args.scale_dtype or scale.dtype).to(scale.dtype)
    refit = measured(solution.codes, weight, (found, point), prepared, args)
    better = (refit.loss < solution.loss) & ((found * scale > 0) & found.isfinite()).all(1)  # [O]
    return torch.where(better[:, None], found, scale), refit._replace(
        loss=torch.where(better, refit.loss, solution.loss)
    )


def _change(codes: Tensor, wanted: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """What is to be added to scales, [O, G], so that (1) holds.

    Args:
        codes: [O, G, g].
        wanted: W H, [O, G, g].
        scale: as they are, [O, G].
        gram: H, [I, I].
    """
    rows, groups, size = codes.shape
    parts = zip(codes.unbind(1), torch.split(gram, size), strict=True)
    products = [((part @ across).view(rows, groups, size) * codes).sum(-1) for part, across in parts]  # c_k H c_l^T
    system = torch.stack(products, 1)  # [O, G, G]
    owed = (wanted * codes).sum(-1) - (system @ scale.unsqueeze(-1)).squeeze(-1)  # [O, G]
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += _RIDGE * diagonal.mean(1, keepdim=True).clamp(min=torch.finfo(system.dtype).tiny)
    return torch.cholesky_solve(owed.unsqueeze(-1), torch.linalg.cholesky_ex(system).L).squeeze(-1)


def _rows(scale: Tensor) -> int:
    """Of scales, [O, G], so many that the matrices of (1) are not too large."""
    return max(1, _MOST // scale.shape[1] ** 2)


def _damped(prepared: Prepared) -> Tensor:
    """The matrix that was factorized, [I, I], columns in the usual order."""
    assert prepared.factor is not None
    feedback, pivots, _ = prepared.factor
    upper = feedback + torch.eye(len(feedback), device=feedback.device)
    back = prepared.order.argsort()
    return ((upper * pivots) @ upper.t())[back][:, back]
