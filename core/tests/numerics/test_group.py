"""Who shares a scale: putting elements side by side, and back."""

import pytest
import torch

from coldpress.numerics import group, ungrouped
from coldpress.plugin import QuantizationArgs


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "tensor"},
        {"strategy": "channel"},
        {"group_size": 4},
        {"strategy": "block", "block_structure": (4, 8)},
    ],
)
def test_ungrouped_is_the_inverse(settings):
    args, weight = QuantizationArgs(num_bits=8, **settings), torch.arange(6 * 12.0).view(6, 12)

    assert torch.equal(ungrouped(group(weight, args), (6, 12), args), weight)
