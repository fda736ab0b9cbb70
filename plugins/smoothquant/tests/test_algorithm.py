"""Theorems of SmoothQuant."""

import pytest
import torch

from coldpress import QuantizationArgs, preset
from coldpress_smoothquant.algorithm import Reader, equalizing_scale, predicted_error, smoothing_scale

W8, A8 = preset("W8A8").weights, preset("W8A8").input_activations


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outliers(seed, tokens, width):
    x = random(seed, tokens, width)
    x[:, ::7] *= 40
    return x


def reader(x, weight, weight_args=W8, input_args=A8):
    return Reader(weight, x.t() @ x, x, x.abs().amax(0), len(x), weight_args, input_args)


def test_strength_one_makes_the_channels_of_activations_alike():
    x, weight = outliers(0, 50, 32), random(1, 24, 32)

    scale = smoothing_scale(x.abs().amax(0), weight.abs().amax(0), strength=1.0)

    torch.testing.assert_close((x / scale).abs().amax(0), torch.ones(32))


def test_strength_zero_makes_the_columns_of_weights_alike():
    x, weight = outliers(0, 50, 32), random(1, 24, 32)

    scale = smoothing_scale(x.abs().amax(0), weight.abs().amax(0), strength=0.0)

    torch.testing.assert_close((weight * scale).abs().amax(0), torch.ones(32))


def test_a_half_shares_the_range_out_evenly():
    x, weight = outliers(0, 50, 32), random(1, 24, 32)

    scale = smoothing_scale(x.abs().amax(0), weight.abs().amax(0), strength=0.5)

    torch.testing.assert_close((x / scale).abs().amax(0), (weight * scale).abs().amax(0))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_channels_of_zeros_are_left_alone(strength):
    x, w = torch.tensor([0.0, 2.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 5.0])

    scale = smoothing_scale(x, w, strength=strength)

    assert scale[:3].tolist() == [1, 1, 1]
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_logarithmic_equalization_divides_the_largest_to_its_logarithm():
    x = torch.tensor([0.0, 1.0, 6.0, 1000.0])

    torch.testing.assert_close(x[1:] / equalizing_scale(x)[1:], torch.log2(2 + x[1:]))
    assert equalizing_scale(x)[0] == 1


def test_the_error_of_weights_on_the_gram_matrix_is_that_of_outputs():
    x, weight = outliers(0, 64, 32), random(1, 24, 32)
    scale = smoothing_scale(x.abs().amax(0), weight.abs().amax(0), strength=0.4)
    scaled = weight * scale
    step = scaled.abs().amax(1, keepdim=True) / 127.5
    rounded = (scaled / step).round().clamp(-128, 127) * step

    predicted = predicted_error(reader(x, weight, input_args=None), scale)

    torch.testing.assert_close(predicted, ((x / scale) @ (rounded - scaled).t()).square().sum() / 64, rtol=1e-3, atol=0)


def test_the_error_of_inputs_is_that_of_outputs():
    x, weight = outliers(0, 64, 32), random(1, 24, 32)
    scale = torch.rand(32, generator=torch.Generator().manual_seed(2)) + 0.5
    small = x / scale
    step = small.abs().amax(1, keepdim=True) / 127.5
    rounded = (small / step).round().clamp(-128, 127) * step

    predicted = predicted_error(reader(x, weight, weight_args=None), scale)

    torch.testing.assert_close(
        predicted, ((rounded - small) @ (weight * scale).t()).square().sum() / 64, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    "inputs", [A8, QuantizationArgs(strategy="tensor"), preset("FP8_DYNAMIC").input_activations], ids=str
)
def test_both_errors_together_are_those_of_the_quantized_layer(inputs):
    """The error of weights and of inputs are independent, so their squares add up."""
    from coldpress.numerics import calculate_qparams, dynamic_qparams, fake_quantize

    x, weight = outliers(0, 400, 64), random(1, 48, 64)
    scale = smoothing_scale(x.abs().amax(0), weight.abs().amax(0), strength=0.5)
    small, scaled = x / scale, weight * scale
    bound = small.abs().amax().reshape(1)
    params = dynamic_qparams(small, inputs) if inputs.dynamic else calculate_qparams(-bound, bound, inputs)
    rows = calculate_qparams(scaled.amin(1, keepdim=True), scaled.amax(1, keepdim=True), W8)
    out = fake_quantize(small, *params, inputs) @ fake_quantize(scaled, *rows, W8).t()

    predicted = predicted_error(reader(x, weight, input_args=inputs), scale)

    torch.testing.assert_close(predicted, (out - x @ weight.t()).square().sum() / 400, rtol=0.1, atol=0)
