"""Few numbers of tokens: linear layers that pad what they are called with, where every number of them costs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

_LEAST = 16
"""Tokens to a multiple of which few are padded."""


@contextmanager
def padded_linears(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers of a model pad their tokens with zeros that are cut off again.

    For products in bfloat16 on a CPU oneDNN compiles a kernel for every shape, which takes some 3 ms and 0.2 MB, and
    keeps the last thousand: ten times as long as the product of an expert that is sent a few hundred tokens, and in
    every block anew where a thousand do not suffice for samples of many lengths.

    Args:
        model: whose layers of the class `torch.nn.Linear` itself have another class inside.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = Linear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class Linear(nn.Linear):
    """A linear layer that pads its tokens in bfloat16 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The outputs, [..., O], of inputs, [..., I]."""
        compiled = input.dtype == torch.bfloat16 and input.device.type == "cpu"
        tokens = input.shape[:-1].numel()
        more = padded_count(tokens) - tokens if compiled else 0
        if not more:
            return linear(input, self.weight, self.bias)
        rows = pad(input.reshape(tokens, -1), (0, 0, 0, more))
        return linear(rows, self.weight, self.bias)[:tokens].reshape(*input.shape[:-1], -1)


def padded_count(tokens: int) -> int:
    """The number of rows that so many tokens are padded to: at most an eighth more, one of eight per power of two."""
    step = max(_LEAST, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step
