"""Whether a tensor was changed: how often in place, and a sum over its bits."""

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def version(tensor: Tensor) -> int:
    """A number that grows with every change in place; 0 for tensors of inference mode, which do not count.

    Changes by way of `tensor.data` do not count either.
    """
    return 0 if tensor.is_inference() else tensor._version


def bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, read as integers: another one after nearly every change, by way of `data` too.

    Eight bytes at a time where they can be: narrow integers are converted one by one before they are added.
    """
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.numel() * tensor.element_size() % 8 == 0 and tensor.storage_offset() == 0:
        return int(tensor.view(-1).view(torch.int64).sum())
    return int(tensor.view(_INTEGERS[tensor.element_size()]).sum())
