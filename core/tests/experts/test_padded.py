"""Layers of experts are called with few numbers of tokens where every number costs."""

from unittest import mock

import pytest
import torch
from torch import nn

from coldpress.experts.padded import Linear, padded_count


def test_an_eighth_more_at_most_and_few_numbers():
    assert [padded_count(tokens) for tokens in (0, 1, 16, 17, 128, 129, 256, 257)] == [
        0,
        16,
        16,
        32,
        128,
        144,
        256,
        288,
    ]
    assert all(padded_count(tokens) <= tokens * 9 / 8 for tokens in range(128, 5000))
    assert len({padded_count(tokens) for tokens in range(1, 8193)}) == 56


@pytest.mark.parametrize("bias", [False, True])
def test_what_it_says_is_what_a_linear_layer_says(bias):
    layer = Linear(24, 8, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(37, 24, dtype=torch.bfloat16, requires_grad=True)

    output = layer(x)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), x)

    expected = nn.Linear.forward(layer, x)
    (wanted,) = torch.autograd.grad(expected.float().square().sum(), x)
    assert torch.equal(output, expected)
    assert torch.allclose(gradient, wanted, rtol=0.02, atol=0.02)


def test_few_numbers_of_tokens_are_seen_in_bfloat16():
    seen = set()

    def linear(x, *_):
        seen.add(len(x))
        return x

    with mock.patch("torch.nn.functional.linear", linear):
        for tokens in range(100, 257):
            assert len(Linear(4, 4, dtype=torch.bfloat16)(torch.zeros(tokens, 4, dtype=torch.bfloat16))) == tokens
        assert len(seen) == 10
        Linear(4, 4)(torch.zeros(3, 4))
    assert 3 in seen  # float32 is as it was
