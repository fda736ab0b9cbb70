"""What is not finite stops the run before anything is made of it."""

import math

import torch
from torch import Tensor

from coldpress.errors import NumericsError

DAMAGED = "the checkpoint is damaged or was trained to divergence: get a sound copy of the model"


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor Inf; one pass over it, and no copy where the dtype allows."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # has no arithmetic, no infinity, and NaN in all bits but the sign
        return not bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    values = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = values.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


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
