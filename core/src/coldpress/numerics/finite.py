"""What is not finite stops the run before anything is made of it."""

import math

import torch
from torch import Tensor

from coldpress.errors import NumericsError
from coldpress.numerics.piece import piece

_LOW_BITS, _ONES, _SIGNS = 0x7F7F7F7F7F7F7F7F, 0x0101010101010101, -0x7F7F7F7F7F7F7F80  # of eight bytes
_PIECE = 1 << 15  # numbers of eight bytes that are looked at at a time

DAMAGED = "the checkpoint is damaged or was trained to divergence: get a sound copy of the model"


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor Inf; one pass over it, and no copy where the dtype allows."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # has no arithmetic, no infinity, and NaN in all bits but the sign
        return not _has_nan_of_float8(tensor)
    values = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = values.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _has_nan_of_float8(tensor: Tensor) -> bool:
    """Whether a byte has all bits but the sign; eight are looked at as one number: 0x7F + 1 alone reaches 0x80."""
    whole = torch.int64 if tensor.is_contiguous() and tensor.numel() % 8 == 0 else torch.uint8
    if whole == torch.uint8 or tensor.storage_offset() % 8:
        return bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    pieces = torch.split(tensor.view(-1).view(whole), piece(tensor, _PIECE))
    return any(bool(((numbers & _LOW_BITS).add_(_ONES) & _SIGNS).any()) for numbers in pieces)


def check_no_nan(name: str, tensor: Tensor) -> None:
    """Look for NaN in a tensor that may hold infinities, such as a mask.

    Raises:
        NumericsError: names the tensor and counts them.
    """
    if is_finite(tensor):
        return
    bad = int((tensor.float() if tensor.element_size() == 1 else tensor).isnan().sum())
    if bad:
        raise NumericsError(f"tensor {name!r} holds {bad} NaN among its {tensor.numel()} values; {DAMAGED}")


def check_finite(name: str, tensor: Tensor, *, cause: str = DAMAGED) -> None:
    """Look for NaN and Inf in one tensor, of any shape and dtype.

    Args:
        name: of the tensor, for the message.
        tensor: floating-point, or of whole numbers, which are finite.
        cause: what it may come from, and what to do.

    Raises:
        NumericsError: names the tensor and counts what is wrong with it.
    """
    if is_finite(tensor):
        return
    values = tensor.float() if tensor.element_size() == 1 else tensor
    bad = {"NaN": int(values.isnan().sum()), "Inf": int(values.isinf().sum())}
    found = " and ".join(f"{count} {kind}" for kind, count in bad.items() if count)
    raise NumericsError(f"tensor {name!r} holds {found} among its {values.numel()} values; {cause}")
