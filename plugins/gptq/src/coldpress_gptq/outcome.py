"""What becomes of layers that are rounded together, and of those that are rounded in parts."""

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True, eq=False)
class Rounded:
    """A weight, or some rows of it, after GPTQ.

    Attributes:
        codes: [O, I].
        scale: in the shape that the strategy of the scheme asks for.
        zero_point: the shape of `scale`.
        loss: squared error of the outputs, summed over tokens.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    loss: float


@frozen(kw_only=True, eq=False)
class Outcome:
    """What becomes of the readers of an input.

    Attributes:
        tokens: of the calibration data that reached them.
        layers: what each becomes.
        rounding: the squared errors of rounding to nearest; none where they are not known.
        dampening: share of the mean diagonal that was added to the Gram matrix.
        importance: of columns, [I], where the layers are rounded because nothing could be solved; None elsewhere.
    """

    tokens: int
    layers: tuple[Rounded, ...] = ()
    rounding: tuple[float, ...] = ()
    dampening: float = 0.0
    importance: Tensor | None = None


def joined(parts: Sequence[Outcome]) -> Outcome:
    """What becomes of layers whose rows were rounded in parts: nothing where one of these could not be solved.

    Args:
        parts: rows of all of the layers each, in order; each row has scales of its own.
    """
    unsolved = next((part for part in parts if part.importance is not None), None)
    if len(parts) == 1 or unsolved is not None:
        return unsolved or parts[0]
    known = all(part.rounding for part in parts)
    return Outcome(
        tokens=parts[0].tokens,
        layers=tuple(_stacked(rows) for rows in zip(*(part.layers for part in parts), strict=True)),
        rounding=tuple(map(sum, zip(*(part.rounding for part in parts), strict=True))) if known else (),
        dampening=max(part.dampening for part in parts),
    )


def _stacked(rows: Sequence[Rounded]) -> Rounded:
    """A weight of its rows, in order."""
    codes, scale, point = (torch.cat([getattr(one, name) for one in rows]) for name in ("codes", "scale", "zero_point"))
    return Rounded(codes=codes, scale=scale, zero_point=point, loss=sum(one.loss for one in rows))
