"""GPTQ (arXiv 2210.17323): round column after column, and let later columns make up for the error of earlier ones.

Letters: O out, I in, G scales in a row, B columns of a block, P problems: inputs whose matrices are rounded together.

The error of a layer's outputs is tr(E G E^T), with E = W - Q and G the Gram matrix of its inputs.  With the factor
G = (F + 1) diag(d) (F + 1)^T (see `coldpress.numerics.factorize`) it is

    sum_j  d_j |t_j - q_j|^2,      t_j = w_j + sum_{k<j} (w_k - q_k) F_kj                                      (1)

so each column is rounded to the point of its grid that is nearest to t_j.  This is GPTQ's result without an inverse
(QuIP, arXiv 2307.13304, theorem 6), and it looks back instead of forward: a column is touched when its turn comes,
and the errors of all blocks before come in one product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import Factor, dequantize, factorize, piece, quantize, search_qparams
from coldpress.plugin import QuantizationArgs, number_format
from coldpress_gptq.algorithm.steps import inner_loop

LEAST = 0.325
"""Share of its range to which a group is shrunk at most in a search for scales."""

_BLOCK = 256  # columns of a product with the factor, of which the half that is zero is skipped
_PIECE = 1 << 22  # elements whose loss is computed at once on a CPU
_FAR = 1.5  # a row whose loss is so many times another one's, in 16 bits, loses more
_MICRO = 32  # columns whose errors come one by one; those of earlier columns of the block come in one product


class Prepared(NamedTuple):
    """A Gram matrix, ready for the matrices that read its inputs.

    Attributes:
        order: of columns, in which they are rounded, [I] int64.
        factor: of the matrix in this order; None where no dampening made it positive definite.
        importance: the diagonal of the matrix, [I] float32, in the usual order: what errors of a column cost a search
            for scales.  The pivots, by (1) the better measure of one layer, make a worse model (README).
        steering: what columns are rounded with in place of F, [I, I] float32; None for F.  The error stays that of (1).
    """

    order: Tensor
    factor: Factor | None
    importance: Tensor
    steering: Tensor | None = None


class Problem(NamedTuple):
    """Matrices that read the same input.

    Attributes:
        weights: [O, I] each.
        qparams: scale and zero point of each.
        prepared: the Gram matrix of their input; it has a factor.
    """

    weights: Sequence[Tensor]
    qparams: Sequence[tuple[Tensor, Tensor]]
    prepared: Prepared


class Grid(NamedTuple):
    """The numbers that the weights of some rows may become.

    Attributes:
        args: number format, and who shares a scale.
        scales: as `scale_rows` gives them, [G, O].
        zero_points: the same, [G, O].
    """

    args: QuantizationArgs
    scales: Tensor
    zero_points: Tensor


class Solution(NamedTuple):
    """What GPTQ made of a matrix.

    Attributes:
        codes: [O, I], in the grid's code dtype.
        loss: the error (1) of each row, [O] float32; of outputs, summed over tokens, dampening included.
        rounding_loss: that of rounding to nearest with the same scales, [O] float32; on a CPU computed in 16 bits.
            None where it is not known.
    """

    codes: Tensor
    loss: Tensor
    rounding_loss: Tensor | None = None


def prepare(gram: Tensor, *, dampening_frac: float, by_activity: bool) -> Prepared:
    """Order and factorize a Gram matrix.

    Args:
        gram: [I, I] float32.
        dampening_frac: share of the mean diagonal that is added to the diagonal.
        by_activity: columns are rounded from the most to the least active one, and not from left to right.
    """
    diagonal = gram.diagonal().clamp(min=0)
    if not by_activity:
        order = torch.arange(len(gram), device=gram.device)
        return Prepared(order, factorize(gram, dampening_frac=dampening_frac), diagonal)
    order = diagonal.argsort(descending=True, stable=True)
    return Prepared(order, factorize(gram, dampening_frac=dampening_frac, order=order), diagonal)


def searched_qparams(
    weight: Tensor, args: QuantizationArgs, importance: Tensor, *, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group, of the shrunk range that loses least under `importance`, [I]."""
    return search_qparams(weight, args, importance, least=LEAST, global_scale=global_scale)


def gptq(
    problems: Sequence[Problem], args: QuantizationArgs, *, block_size: int, keep_zeros: bool
) -> list[list[Solution]]:
    """Round matrices in one go; the same as one by one.

    A row that rounding to nearest serves better, which happens where weights are clipped, is rounded to nearest.

    Args:
        problems: inputs of one width, whose matrices have as many rows together.
        args: the grid and who shares a scale.
        block_size: as in `solve`.
        keep_zeros: as in `solve`.

    Returns:
        A solution for each matrix of each problem.
    """
    matrices = [matrix for problem in problems for matrix in problem.weights]
    qparams = [params for problem in problems for params in problem.qparams]
    rows = [
        [scale_rows(part, args, (matrix.shape[0], matrix.shape[1])) for part in params]
        for matrix, params in zip(matrices, qparams, strict=True)
    ]
    grid = Grid(args, *(torch.cat(parts, dim=1) for parts in zip(*rows, strict=True)))  # [G, P * O]
    prepared = [problem.prepared for problem in problems]
    weights = [problem.weights for problem in problems]
    whole = solve(weights, prepared, grid, block_size=block_size, keep_zeros=keep_zeros)
    sizes = [len(matrix) for matrix in matrices]
    found = zip(torch.split(whole.codes, sizes), torch.split(whole.loss, sizes), strict=True)
    return [
        [
            _or_rounded(
                _sound(Solution(*next(found)), weight, params, problem.prepared, args),
                weight,
                params,
                problem.prepared,
                args,
            )
            for weight, params in zip(problem.weights, problem.qparams, strict=True)
        ]
        for problem in problems
    ]


def loss_of(weight: Tensor, rounded: Tensor, prepared: Prepared, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The error (1) of each row, [O] float32, of any other weights in place of these, [O, I] each.

    Args:
        weight: what was to be rounded.
        rounded: what it became.
        prepared: the Gram matrix of the inputs; it has a factor.
        dtype: of the factors of products.
    """
    assert prepared.factor is not None
    rows = _some_rows(weight)
    pairs = zip(torch.split(weight, rows), torch.split(rounded, rows), strict=True)
    return torch.cat([_loss(w.float() - q.float(), prepared.order, prepared.factor, dtype) for w, q in pairs])


def _some_rows(weight: Tensor) -> int:
    """How many rows of a weight are looked at once."""
    return max(_BLOCK, piece(weight, _PIECE) // weight.shape[1])


def _loss(errors: Tensor, order: Tensor, factor: Factor, dtype: torch.dtype) -> Tensor:
    """The error (1) of each row, [O] float32, for errors of weights, [O, I]."""
    errors = errors.index_select(1, order)
    narrow = errors.to(dtype)
    loss = errors.new_zeros(len(errors))
    for start in range(0, errors.shape[1], _BLOCK):
        here = slice(start, start + _BLOCK)
        before = slice(0, start + _BLOCK)  # the factor is triangular: errors of later columns do not count
        passed_on = narrow[:, before] @ factor.feedback[before, here].to(dtype)  # [O, b]
        loss += passed_on.float().add_(errors[:, here]).square_() @ factor.pivots[here]
    return loss


def measured(
    codes: Tensor, weight: Tensor, qparams: tuple[Tensor, Tensor], prepared: Prepared, args: QuantizationArgs
) -> Solution:
    """Codes as a solution: with the error that they make beside some weights, [O, I]."""
    scale, point = (part.float() if part.is_floating_point() else part for part in qparams)
    return Solution(codes, loss_of(weight, dequantize(codes, scale, point, args), prepared))


def _sound(
    solution: Solution, weight: Tensor, qparams: tuple[Tensor, Tensor], prepared: Prepared, args: QuantizationArgs
) -> Solution:
    """The solution with its error, which the loop knows only where it rounds with F."""
    return solution if prepared.steering is None else measured(solution.codes, weight, qparams, prepared, args)


def _or_rounded(
    solution: Solution, weight: Tensor, qparams: tuple[Tensor, Tensor], prepared: Prepared, args: QuantizationArgs
) -> Solution:
    """The solution, with the loss of rounding to nearest, and its codes in rows where they lose less.

    Rows with scales of their own are looked at some at a time: it takes several numbers in float32 for each weight.
    """
    scale, point = (part.float() if part.is_floating_point() else part for part in qparams)
    apart = scale.ndim == 2 and len(scale) == len(weight) and args.strategy != "block"
    rows = _some_rows(weight) if apart else len(weight)
    found = []
    for start in range(0, len(weight), rows):
        some = slice(start, start + rows)
        params = (scale[some], point[some]) if apart else (scale, point)
        part = Solution(solution.codes[some], solution.loss[some])
        found.append(_rows_or_rounded(part, weight[some], params, prepared, args))
    return found[0] if len(found) == 1 else Solution(*map(torch.cat, zip(*found, strict=True)))


def _rows_or_rounded(
    solution: Solution, weight: Tensor, qparams: tuple[Tensor, Tensor], prepared: Prepared, args: QuantizationArgs
) -> Solution:
    """As `_or_rounded`, for some rows.

    On a CPU their loss is computed in 16 bits first, and again in the few rows where it is not far larger.
    """
    codes = quantize(weight, *qparams, args)  # in float32, as the scales are
    rounded = dequantize(codes, *qparams, args)
    if weight.is_cuda:
        rows = torch.arange(len(weight), device=weight.device)
        loss = every = loss_of(weight, rounded, prepared)
    else:
        every = loss_of(weight, rounded, prepared, dtype=torch.bfloat16)
        rows = (every < _FAR * solution.loss).nonzero().view(-1)
        loss = loss_of(weight[rows], rounded[rows], prepared)
    better = loss < solution.loss[rows]
    rows = rows[better]
    if not len(rows):
        return solution._replace(rounding_loss=every)
    chosen, least = solution.codes.clone(), solution.loss.clone()
    chosen[rows], least[rows] = codes[rows], loss[better]
    return Solution(chosen, least, every)


def scale_rows(scale: Tensor, args: QuantizationArgs, shape: tuple[int, int]) -> Tensor:
    """The scales of each row for each of the groups that lie side by side, transposed.

    Args:
        scale: or zero point, in the shape that `args.strategy` gives it.
        args: who shares a scale.
        shape: of the weight, (O, I).

    Returns:
        [G, O]; `scale_index` says which of them a column uses.
    """
    rows = shape[0]
    if args.strategy == "tensor":
        return scale.reshape(1, 1).expand(1, rows)
    if args.strategy == "block":
        assert args.block_structure is not None
        return scale.repeat_interleave(args.block_structure[0], 0)[:rows].t().contiguous()
    return scale.t().contiguous()  # channel [O, 1], group [O, G]


def scale_index(args: QuantizationArgs, width: int) -> Tensor:
    """For each column the row of `scale_rows` that has its scales, [I] int64."""
    size = width
    if args.strategy in ("group", "tensor_group"):
        assert args.group_size is not None
        size = args.group_size
    elif args.strategy == "block":
        assert args.block_structure is not None
        size = args.block_structure[1]
    return torch.arange(width) // size


def solve(
    weights: Sequence[Sequence[Tensor]],
    prepared: Sequence[Prepared],
    grid: Grid,
    *,
    block_size: int,
    keep_zeros: bool,
) -> Solution:
    """Round matrices so that the error (1) is small; rows do not know each other.

    Errors of all columns are held in float32, targets only of a block's.

    Args:
        weights: of P inputs, the matrices that read each one, [., I] with O rows together.
        prepared: the Gram matrix of each input; it has a factor.
        grid: what they may become; scales are those of all rows, [G, P * O].
        block_size: columns of a block; speed, not the result, depends on it.
        keep_zeros: weights that are zero stay zero.

    Returns:
        Codes in the usual order of columns, [P * O, I], and the error, [P * O], where nothing else than F steers.
    """
    size, width, (args, scales, zero_points) = sum(map(len, weights[0])), weights[0][0].shape[1], grid
    factors = [_steered(one.factor, one.steering) for one in prepared if one.factor is not None]
    parts = [(factor, slice(place * size, (place + 1) * size)) for place, factor in enumerate(factors)]
    orders = [one.order for one in prepared]
    groups = torch.stack([scale_index(args, width).to(order.device)[order] for order in orders])  # [P, I]
    steps = inner_loop(scales.float(), None if args.symmetric else zero_points.float(), number_format(args), groups)
    errors = scales.new_empty(width, len(parts) * size, dtype=torch.float32)  # [I, P * O]; rows become w_j - q_j
    codes = torch.empty_like(errors, dtype=number_format(args).code_dtype)
    loss = errors.new_zeros(errors.shape[1])
    for start in range(0, width, block_size):
        block = slice(start, start + block_size)
        original = _columns(weights, orders, block)  # [B, P * O]
        targets, rounded = original.clone(), torch.empty_like(original)  # rows become t_j; codes in float32
        keep = (original != 0).float() if keep_zeros else None
        errors[block] = original
        for factor, part in parts:
            targets[:, part].addmm_(factor.feedback[:start, block].t(), errors[:start, part])
        for first in range(0, len(original), _MICRO):
            some = slice(first, min(first + _MICRO, len(original)))
            here = slice(start + some.start, start + some.stop)
            for factor, part in parts:
                targets[some, part].addmm_(
                    factor.feedback[start : here.start, here].t(), errors[start : here.start, part]
                )
            owed = torch.stack([factor.feedback[here, here].t() for factor in factors])  # [P, B, B]: what j is owed
            steps.round(here, targets[some], errors[here], rounded[some], owed, None if keep is None else keep[some])
        squares = targets.sub_(original).add_(errors[block]).square_()  # [B, P * O]; t - q = t - w + (w - q)
        for order, (factor, part) in zip(orders, parts, strict=True):
            loss[part] += factor.pivots[block] @ squares[:, part]
            codes[order[block], part] = rounded[:, part].to(codes.dtype)
    return Solution(codes.t().contiguous(), loss)


def _columns(weights: Sequence[Sequence[Tensor]], orders: Sequence[Tensor], block: slice) -> Tensor:
    """A block of columns of all matrices, each in its order, transposed, [B, P * O] float32."""
    pairs = [(matrix, order) for matrices, order in zip(weights, orders, strict=True) for matrix in matrices]
    return torch.cat([matrix.t()[order[block]] for matrix, order in pairs], 1).float()


def _steered(factor: Factor, steering: Tensor | None) -> Factor:
    """The factor with what columns are rounded with."""
    return factor if steering is None else factor._replace(feedback=steering)
