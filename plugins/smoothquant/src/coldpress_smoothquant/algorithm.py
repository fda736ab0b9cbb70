"""SmoothQuant (arXiv 2211.10438): X W^T = (X / s) (W s)^T, with s so that both factors are easy to quantize.

Letters: O out, I in, C channels of a pair, T tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import calculate_global_scale, calculate_qparams, dynamic_qparams, fake_quantize, group
from coldpress.plugin import QuantizationArgs

SMALLEST = 1e-5
"""No scale is smaller: a channel of weights that are almost zero would make it so."""

STRENGTHS = tuple(step / 20 for step in range(21))
"""What a search tries."""


def smoothing_scale(activations: Tensor, weights: Tensor, *, strength: float) -> Tensor:
    """The scale of each channel, max|x|^a / max|w|^(1 - a) (eq. 4).

    Args:
        activations: the largest magnitude of each channel, [C].
        weights: the largest magnitude of the weights that meet it, [C].
        strength: a; 1 makes the channels of the activations alike, 0 the columns of the weights.

    Returns:
        The scale, [C] float32; 1 for channels that are always zero or that nothing reads.
    """
    x, w = activations.float(), weights.float()
    scale = x.pow(strength) / w.pow(1 - strength)  # [C]
    return torch.where((x > 0) & (w > 0), scale.clamp(min=SMALLEST), 1.0)


def equalizing_scale(activations: Tensor) -> Tensor:
    """The scale x / log2(2 + x) for the largest magnitude x of each channel, [C] -> [C]; 1 where x is zero."""
    x = activations.float()
    return torch.where(x > 0, (x / torch.log2(2 + x)).clamp(min=SMALLEST), 1.0)


class Reader(NamedTuple):
    """A matrix that reads the channels, and how it will be quantized.

    Attributes:
        weight: [O, I].
        gram: of its inputs, [I, I] float32, summed over tokens.
        sample: some tokens of its inputs, [T, I].
        largest: magnitude of each of its inputs, [I].
        tokens: in the Gram matrix.
        weight_args: None leaves the weights as they are.
        input_args: None leaves the inputs as they are.
    """

    weight: Tensor
    gram: Tensor
    sample: Tensor
    largest: Tensor
    tokens: int
    weight_args: QuantizationArgs | None
    input_args: QuantizationArgs | None


def predicted_error(reader: Reader, scale: Tensor) -> Tensor:
    """The squared error of the outputs of a reader for a token, if its inputs are divided by `scale`, [I].

    The error of the weights meets all tokens, by the Gram matrix; that of the inputs is seen on a sample, because
    what a token's largest number does to its others no matrix of second moments tells.
    """
    weight = reader.weight.float() * scale  # [O, I]
    error = weight.new_zeros(())
    if reader.weight_args is not None:
        grouped = group(weight, reader.weight_args)
        two = reader.weight_args.strategy == "tensor_group"
        factor = calculate_global_scale(weight.abs().amax(), reader.weight_args) if two else None
        params = calculate_qparams(grouped.amin(-1), grouped.amax(-1), reader.weight_args, global_scale=factor)
        off = (fake_quantize(weight, *params, reader.weight_args, global_scale=factor) - weight) / scale  # [O, I]
        error += (off @ reader.gram).mul_(off).sum() / reader.tokens
    if reader.input_args is not None and reader.input_args.dynamic != "local":
        x = reader.sample.float() / scale  # [T, I]
        if reader.input_args.dynamic:
            params = dynamic_qparams(x, reader.input_args)
        else:
            bound = (reader.largest / scale).amax().reshape(1)
            params = calculate_qparams(-bound, bound, reader.input_args)
        off = fake_quantize(x, *params, reader.input_args) - x  # [T, I]
        error += (off @ weight.t()).square_().sum() / len(x)
    return error
