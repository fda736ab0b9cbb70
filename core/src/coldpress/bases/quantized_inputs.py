"""Inputs of quantized layers, rounded to their grid as the serving engine's kernel rounds them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.attachment import Attachment, attach, detach
from coldpress.numerics import dynamic_qparams, fake_quantize_straight_through
from coldpress.quantized import Quantized
from coldpress.schemes import QuantizationArgs


def _to_args(value: Mapping[str, Any] | QuantizationArgs) -> QuantizationArgs:
    return value if isinstance(value, QuantizationArgs) else QuantizationArgs.from_dict(value)


@frozen(kw_only=True, eq=False)
class QuantizedInputs(Attachment):
    """Inputs of a layer on the grid of its scheme.

    Attributes:
        args: of the inputs.
        scale: of static inputs; None where it is found while serving.
        zero_point: of static inputs, the shape of `scale`.
        global_scale: of the inputs' scales, [1]; None for most schemes.
    """

    kind: ClassVar[str] = "quantized_inputs"
    of_scheme: ClassVar[bool] = True

    args: QuantizationArgs = field(converter=_to_args)
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The inputs, [..., I], rounded; gradients pass straight through."""
        factor = None if self.global_scale is None else self.global_scale.to(x.device)
        if self.args.dynamic:
            scale, zero_point = dynamic_qparams(x.detach(), self.args, global_scale=factor)
        else:
            assert self.scale is not None
            assert self.zero_point is not None
            wider = torch.promote_types(self.scale.dtype, x.dtype)  # a kernel multiplies by scales in full
            scale, zero_point = self.scale.to(x.device, wider), self.zero_point.to(x.device)
        return fake_quantize_straight_through(x, scale, zero_point, self.args, global_scale=factor)


def quantize_inputs(module: nn.Module, quantized: Quantized) -> None:
    """Round the inputs of a layer from now on, if its scheme quantizes them; else as they are."""
    found = simulation_of(quantized)
    if found is None:
        detach(module, QuantizedInputs.kind)
    else:
        attach(module, found)


def simulation_of(quantized: Quantized) -> QuantizedInputs | None:
    """What rounds the inputs of a layer that is quantized so; None where its scheme leaves them as they are."""
    args = quantized.scheme.input_activations
    if args is None:
        return None
    return QuantizedInputs(
        args=args,
        scale=quantized.input_scale,
        zero_point=quantized.input_zero_point,
        global_scale=quantized.input_global_scale,
    )
