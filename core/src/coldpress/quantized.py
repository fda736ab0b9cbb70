"""Quantized: a layer as codes and scales."""

import torch
from attrs import frozen
from torch import Tensor

from coldpress.numerics import dequantize
from coldpress.schemes import Scheme


@frozen(eq=False)
class Quantized:
    """A layer as a checkpoint keeps it; the shapes of scales follow the strategy of the scheme.

    Attributes:
        scheme: how weights and inputs are quantized.
        codes: points of the number format's grid, [O, I]; None when only the inputs are quantized.
        scale: of the weights.
        zero_point: of the weights, the shape of `scale`; zeros when symmetric.
        global_scale: of the weights' scales, [1].
        input_scale: of static inputs.
        input_zero_point: of static inputs, the shape of `input_scale`.
        input_global_scale: of the inputs' scales, [1].
    """

    scheme: Scheme
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None
    input_scale: Tensor | None = None
    input_zero_point: Tensor | None = None
    input_global_scale: Tensor | None = None

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weights that the codes stand for, [O, I], computed in the wider of this dtype and that of the scales."""
        assert self.scheme.weights is not None
        assert self.codes is not None
        assert self.scale is not None
        scale = self.scale.to(torch.promote_types(self.scale.dtype, dtype))
        return dequantize(
            self.codes, scale, self.zero_point, self.scheme.weights, dtype=dtype, global_scale=self.global_scale
        )
