"""A model without data: the same modules, every parameter and buffer on the meta device."""

from typing import Any

import torch
from torch import Tensor, nn

from coldpress.dataflow.rebound import deep_copy
from coldpress.dataflow.skeleton import drop_hooks


def empty_copy(model: nn.Module) -> Any:
    """The model's modules with parameters and buffers on the meta device; what modules share they share in the copy.

    Attachments come along, hooks do not.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_empty(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _empty(buffer)
    copy = deep_copy(model, memo)
    for module in copy.modules():
        drop_hooks(module)
    return copy.eval()


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
