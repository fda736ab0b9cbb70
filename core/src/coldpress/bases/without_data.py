"""What a layer becomes by a scheme, on the meta device: shapes and dtypes, and so what it takes on disk."""

from functools import lru_cache
from math import ceil

import torch
from attrs import evolve
from torch import Tensor

from coldpress.bases.quantizer import observed_input
from coldpress.format import Format
from coldpress.numerics import scale_shape
from coldpress.quantized import Quantized
from coldpress.schemes import QuantizationArgs, Scheme, number_format
from coldpress.stage import Layer


def stored_nbytes(form: Format | None, layer: Layer, scheme: Scheme) -> int:
    """Bytes of the tensors that a checkpoint holds of a layer's weight and scales; its bias is not counted.

    Args:
        form: of the checkpoint; None counts codes without gaps.
        layer: whose weight may be on the meta device.
        scheme: of the layer.
    """
    found = without_data(scheme, layer.weight)
    if found.codes is None:
        return layer.weight.numel() * layer.weight.element_size()
    if form is not None:
        return sum(tensor.numel() * tensor.element_size() for tensor in form.tensors(found).values())
    assert scheme.weights is not None
    codes = ceil(found.codes.numel() * number_format(scheme.weights).num_bits / 8)
    return codes + sum(one.numel() * one.element_size() for one in (found.scale,) if one is not None)


def without_data(scheme: Scheme, weight: Tensor) -> Quantized:
    """What a layer becomes by a scheme, on the meta device.

    Args:
        scheme: of the layer.
        weight: [O, I], on any device.
    """
    args, inputs = scheme.weights, scheme.input_activations
    found = Quantized(scheme)
    if args is not None:
        shape = tuple(weight.shape)
        scales = scale_shape(shape, args)
        found = evolve(
            found,
            codes=_meta(shape, number_format(args).code_dtype),
            scale=_meta(scales, weight.dtype),
            zero_point=_meta(scales, _point_dtype(args)),
            global_scale=_meta((1,), torch.float32) if args.strategy == "tensor_group" else None,
        )
    if inputs is None or inputs.dynamic is True:
        return found
    if inputs.dynamic == "local":
        return evolve(found, input_global_scale=_meta((1,), torch.float32))
    scale = _meta((1,), _input_scale_dtype(scheme, weight.dtype))
    return evolve(found, input_scale=scale, input_zero_point=_meta((1,), _point_dtype(inputs)))


def _point_dtype(args: QuantizationArgs) -> torch.dtype:
    if args.symmetric:
        return torch.int8
    return args.zp_dtype or number_format(args).code_dtype


@lru_cache
def _input_scale_dtype(scheme: Scheme, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the scale of static inputs, which is that of the range that its observer finds."""
    observed = observed_input(scheme)
    assert observed is not None
    low, _ = observed.observer.range(observed.finish(observed.update(None, torch.ones(1, 8, dtype=dtype))))
    return low.dtype


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
