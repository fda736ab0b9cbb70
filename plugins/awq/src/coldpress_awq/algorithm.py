"""AWQ (arXiv 2306.00978): round W s instead of W, and undo s where the inputs are made.

Letters: O out, I in, C channels of a pair, G groups of columns, P candidates.

With E = Q(W s) / s - W the error of the outputs, summed over tokens, is

    |X E^T|^2 = sum_ij (E G)_ij E_ij,      G = X^T X                                                         (1)

so a candidate costs one product with the Gram matrix, however many tokens there were, and no layer is run again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import (
    calculate_global_scale,
    calculate_qparams,
    fake_quantize_groups,
    group,
    piece,
    search_range,
)
from coldpress.plugin import QuantizationArgs

FEW_ROWS, ROWS = 32, 256
"""Rows of a matrix that vote: on all candidates, and on the best of them; more change the choice little (README)."""

FINALISTS = 3

LEAST = 0.5
"""Share of its range to which a group is clipped at most."""

_BLOCK = 2**17  # elements that are rounded at once, so that they stay in the cache
_BY_ROW = ("channel", "group", "tensor_group")  # strategies where a row knows nothing of others


class Reader(NamedTuple):
    """Matrices that read the same input and are quantized alike.

    Attributes:
        weight: of all of them, one below the other, [O, I].
        gram: of their input, [I, I] float32, summed over tokens.
        channels: for each input channel the element of the scale that it sees, -1 for none, [I] int64.
        args: how they are quantized.
        clipped: whether groups will be rounded on the grid of their `clip_range`, and not of the whole range.
    """

    weight: Tensor
    gram: Tensor
    channels: Tensor
    args: QuantizationArgs
    clipped: bool = False


def candidate_scales(
    activity: Tensor, weights: Tensor, *, n_grid: int, duo_scaling: bool | str
) -> tuple[Tensor, list[dict[str, object]]]:
    """Scales to choose from; the first is 1, which leaves everything as it was.

    s = x^r, or with `duo_scaling` s = x^r / w^(1 - r), for `n_grid` ratios r from 0 on; "both" shares them out.

    Args:
        activity: how large each channel is, [C]; a common factor does not matter.
        weights: how large the weights are that meet it, against the largest of their group, [C].
        n_grid: how many.
        duo_scaling: True, False or "both".

    Returns:
        The scales, [P, C] float32, each with sqrt(largest * smallest) = 1, and what each of them is.
    """
    x = activity.float().clamp(min=1e-4 * float(activity.mean()) + 1e-30)
    w = weights.float() + 1e-4
    duos = {"both": (False, True)}.get(str(duo_scaling), (bool(duo_scaling),))
    scales = [torch.ones_like(x)]
    names: list[dict[str, object]] = [{"ratio": 0.0, "duo_scaling": False}]
    for duo in duos:
        count = max(1, n_grid // len(duos))
        for ratio in (step / count for step in range(count)):
            if duo or ratio > 0:
                scales.append(x.pow(ratio) / w.pow(1 - ratio) if duo else x.pow(ratio))
                names.append({"ratio": ratio, "duo_scaling": duo})
    stacked = torch.stack(scales).clamp(min=1e-4)  # [P, C]
    return stacked / (stacked.amax(1, keepdim=True) * stacked.amin(1, keepdim=True)).sqrt(), names


def relative_size(weight: Tensor, args: QuantizationArgs) -> Tensor:
    """The mean over rows of each weight's magnitude over the largest of its group, [O, I] -> [I]."""
    if args.strategy not in _BY_ROW:
        size = weight.float().abs()
        return (size / (size.amax() + 1e-6)).mean(0)
    grouped = group(weight.float().abs(), args)  # [O, G, g]
    return (grouped / (grouped.amax(-1, keepdim=True) + 1e-6)).flatten(1).mean(0)


def losses(reader: Reader, scales: Tensor, *, rows: int = ROWS) -> Tensor:
    """The error (1) of a reader with each of the candidates, [P, C] -> [P] float32.

    Args:
        reader: whose outputs.
        scales: of the channels.
        rows: how many rows of the weight are looked at, evenly spread; all where rows share a scale.
    """
    weight, gram = reader.weight, reader.gram
    share = 1.0
    if reader.args.strategy in _BY_ROW and len(weight) > rows:
        chosen = torch.linspace(0, len(weight) - 1, rows, device=weight.device).round().long()
        share, weight = len(chosen) / len(weight), weight[chosen]
    narrow = weight.dtype if weight.element_size() == 2 and not weight.is_cuda else torch.float32
    importance = gram.diagonal() if reader.clipped else None  # [I]
    gram = gram.to(torch.bfloat16) if narrow != torch.float32 else gram
    padded = torch.cat([scales, scales.new_ones(len(scales), 1)], 1)  # [P, C + 1]; index -1 is the last
    spread = padded[:, reader.channels.to(scales.device)]  # [P, I]
    found = []
    for scale in spread:
        error = _errors(weight, scale, reader.args, importance)  # [O, I]
        product = error.to(gram.dtype) @ gram  # [O, I]
        found.append(product.float().mul_(error).sum())
    return torch.stack(found) / share


def _errors(weight: Tensor, scale: Tensor, args: QuantizationArgs, importance: Tensor | None) -> Tensor:
    """E = Q(W s) / s - W, [O, I] float32; importance is that of inputs that are not divided by s, [I]."""
    costs = None if importance is None else importance / scale.square()
    if args.strategy not in _BY_ROW:
        scaled = weight.float() * scale
        return (rounded(scaled, args, importance=costs) - scaled) / scale
    out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    inverse = 1 / scale
    factor = _global_scale(weight.float() * scale, args)
    rows = max(1, piece(weight, _BLOCK) // weight.shape[1])
    for part, target in zip(*(torch.split(x, rows) for x in (weight, out)), strict=True):
        scaled = part.float() * scale
        new = rounded(scaled, args, global_scale=factor, importance=costs)
        torch.mul(new.sub_(scaled), inverse, out=target)
    return out


def rounded(
    weight: Tensor, args: QuantizationArgs, *, global_scale: Tensor | None = None, importance: Tensor | None = None
) -> Tensor:
    """The weight, [O, I], on the grid that its largest and smallest values span, clipped or not; a new tensor.

    Args:
        weight: all rows, or some of them where each has scales of its own.
        args: the grid and who shares a scale.
        global_scale: [1], of schemes with scales of two levels; found in the weight if there is none.
        importance: as in `clip_range`; None takes the whole range.
    """
    factor = _global_scale(weight, args) if global_scale is None else global_scale
    grouped = group(weight, args)
    if importance is None:
        low, high = grouped.amin(-1), grouped.amax(-1)
    else:
        low, high = clip_range(weight, args, importance, global_scale=factor)
    scale, point = calculate_qparams(low, high, args, global_scale=factor)
    new = fake_quantize_groups(grouped, scale, None if args.symmetric else point, args, global_scale=factor)
    return new.reshape(weight.shape) if args.strategy != "block" else _from_blocks(new, weight, args)


def clip_range(
    weight: Tensor, args: QuantizationArgs, importance: Tensor, *, global_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The shrunk range of each group that loses least, if an error in a column costs `importance`, [I].

    Weights are not cut off at its ends, but at those of the grid that it makes, which reaches a little further.
    """
    return search_range(weight, args, importance.clamp(min=0), least=LEAST, global_scale=global_scale)


def share_of_range(weight: Tensor, args: QuantizationArgs, low: Tensor, high: Tensor) -> float:
    """How wide the ranges of a weight's groups are, against their whole ranges, all added up."""
    whole = group(weight, args)
    return float((high - low).float().sum() / (whole.amax(-1) - whole.amin(-1)).float().sum().clamp(min=1e-30))


def _global_scale(weight: Tensor, args: QuantizationArgs) -> Tensor | None:
    return calculate_global_scale(weight.abs().amax(), args) if args.strategy == "tensor_group" else None


def _from_blocks(grouped: Tensor, weight: Tensor, args: QuantizationArgs) -> Tensor:
    """What `group` has made blocks of, [O/r, I/c, r * c], as a matrix again, without what was filled up."""
    assert args.block_structure is not None
    high, wide = args.block_structure
    blocks: Tensor = grouped.reshape(*grouped.shape[:2], high, wide)
    whole = blocks.transpose(1, 2).flatten(2).flatten(0, 1)
    return whole[: weight.shape[0], : weight.shape[1]].contiguous()


def best(readers: Sequence[Reader], scales: Tensor) -> tuple[int, Tensor]:
    """The candidate with which all readers together lose least, and what each candidate loses, [P].

    All are compared on a few rows, and then the first, which is 1, and those that lost least on more of them.
    """
    total = _total(readers, scales, rows=FEW_ROWS)  # [P]
    finalists = total[1:].argsort()[:FINALISTS] + 1
    finalists = torch.cat([finalists.new_zeros(1), finalists])
    total[finalists] = _total(readers, scales[finalists], rows=ROWS)
    return int(finalists[total[finalists].argmin()]), total


def _total(readers: Sequence[Reader], scales: Tensor, *, rows: int) -> Tensor:
    """What all readers lose with each candidate, [P]; infinite where it is no number."""
    parts = [losses(reader, scales, rows=rows) for reader in readers]
    return torch.stack(parts).sum(0).nan_to_num(torch.inf)
