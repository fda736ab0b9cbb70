"""Linear layers of experts, which are called with another number of tokens each time."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

_LEAST = 16
"""Rows to a multiple of which few tokens are padded."""


class Linear(nn.Linear):
    """A linear layer that pads its tokens, so that it is called with few numbers of them.

    For products in bfloat16 on a CPU oneDNN compiles a kernel for every shape, which takes 1 to 3 ms, ten times as long
    as the product of an expert that is sent a few hundred tokens, and memory for as long as it is kept.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The outputs, [T, O], of tokens, [T, I]."""
        compiled = input.dtype == torch.bfloat16 and input.device.type == "cpu" and input.ndim == 2
        more = padded_count(len(input)) - len(input) if compiled else 0
        if not more:
            return super().forward(input)
        return super().forward(pad(input, (0, 0, 0, more)))[: len(input)]


def padded_count(tokens: int) -> int:
    """The number of rows that so many tokens are padded to: at most an eighth more, one of eight per power of two."""
    step = max(_LEAST, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step
