"""Rounding that gradients pass."""

import pytest
import torch

from coldpress import QuantizationArgs
from coldpress.numerics import (
    calculate_qparams,
    fake_quantize,
    fake_quantize_straight_through,
    group,
    lsq_gradient_scale,
    scale_gradient,
)

GRIDS = {
    "int4 group": QuantizationArgs(num_bits=4, group_size=8),
    "int3 asymmetric": QuantizationArgs(num_bits=3, group_size=8, symmetric=False),
    "int8 channel": QuantizationArgs(num_bits=8, strategy="channel"),
    "fp8 tensor": QuantizationArgs(num_bits=8, type="float", strategy="tensor"),
}


def _given(args):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    grouped = group(weight, args)
    return weight, *calculate_qparams(grouped.amin(-1) * 0.7, grouped.amax(-1) * 0.7, args)


@pytest.mark.parametrize("args", GRIDS.values(), ids=GRIDS)
def test_forward_is_fake_quantization_bit_for_bit(args):
    weight, scale, point = _given(args)

    found = fake_quantize_straight_through(weight.clone().requires_grad_(), scale, point, args)

    assert torch.equal(found, fake_quantize(weight, scale, point, args))


def test_gradients_pass_where_weights_are_rounded_and_stop_where_they_are_clipped():
    args = QuantizationArgs(num_bits=4, strategy="tensor")
    x = torch.tensor([[-9.0, -8.2, -3.3, 0.0, 2.5, 7.4, 8.0]], requires_grad=True)  # the grid goes from -8 to 7

    fake_quantize_straight_through(x, torch.ones(1), None, args).sum().backward()

    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 1, 0]]


def test_the_gradient_of_a_scale_is_that_of_lsq():
    args = QuantizationArgs(num_bits=4, strategy="tensor")
    x, scale = torch.tensor([[-9.0, 1.3, 20.0]]), torch.tensor([1.0], requires_grad=True)

    fake_quantize_straight_through(x, scale, None, args).sum().backward()

    assert scale.grad.item() == pytest.approx(-8 + (1 - 1.3) + 7)


def test_the_gradient_of_a_scale_is_scaled_by_what_shares_it():
    args = QuantizationArgs(num_bits=3, group_size=8)
    weight, scale = torch.zeros(4, 16), torch.ones(4, 2, requires_grad=True)
    factor = lsq_gradient_scale(weight, scale, args)

    scale_gradient(scale, factor).sum().backward()

    assert factor == pytest.approx((8 * 3) ** -0.5)
    assert torch.equal(scale.grad, torch.full((4, 2), factor))
