"""Layers are called with few numbers of tokens where every number costs."""

from unittest import mock

import pytest
import torch
from torch import nn

from coldpress.models.padded import Linear, padded_count, padded_linears
from coldpress.testing.models import tiny_llama


def test_an_eighth_more_at_most_and_few_numbers():
    some = {0: 0, 1: 16, 16: 16, 17: 32, 128: 128, 129: 144, 256: 256, 257: 288}
    assert {tokens: padded_count(tokens) for tokens in some} == some
    assert all(padded_count(tokens) <= tokens * 9 / 8 for tokens in range(128, 5000))
    assert len({padded_count(tokens) for tokens in range(1, 8193)}) == 56


@pytest.mark.parametrize("shape", [(37, 24), (3, 7, 24), (24,), (0, 24), (16, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_what_it_says_is_what_a_linear_layer_says(bias, shape):
    layer = Linear(24, 8, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)

    output = layer(x)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), x)

    expected = nn.Linear.forward(layer, x)
    (wanted,) = torch.autograd.grad(expected.float().square().sum(), x)
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, rtol=0.01, atol=0.01)
    assert torch.allclose(gradient, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 10), (torch.float32, 157)])
def test_few_numbers_of_tokens_are_seen_in_bfloat16(dtype, most):
    model, seen = nn.Sequential(nn.Linear(4, 4, dtype=dtype)), set()
    with mock.patch("coldpress.models.padded.linear", lambda x, *_: seen.add(len(x)) or x), padded_linears(model):
        for tokens in range(100, 257):
            assert model(torch.zeros(tokens, 4, dtype=dtype)).shape == (tokens, 4)

    assert len(seen) == most
    assert type(model[0]) is nn.Linear  # as it was


def test_a_run_that_fails_leaves_the_model_as_it_was():
    model = tiny_llama().bfloat16()

    with pytest.raises(RuntimeError, match="halfway"), padded_linears(model):
        raise RuntimeError("halfway")

    assert all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))
