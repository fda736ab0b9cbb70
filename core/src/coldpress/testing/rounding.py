"""The kit's own quantizer, so that pipelines and formats are checked without another plugin."""

from attrs import evolve, frozen
from torch import Tensor

from coldpress.hookspecs import hookimpl
from coldpress.numerics import calculate_qparams, group, quantize
from coldpress.quantizer import Quantizer
from coldpress.schemes import QuantizationArgs, Scheme
from coldpress.stage import Stage
from coldpress.state import Quantized, State


@frozen(kw_only=True, eq=False)
class Rounding(Quantizer):
    """Weights to the nearest point of the grid that their smallest and largest value span; no observer is asked."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage."""
        for layer in self.layers(stage):
            rest = self.quantized(state, layer)
            rounded = rounded_weight(layer.weight, rest.scheme)
            state.set_quantized(
                layer, evolve(rest, codes=rounded.codes, scale=rounded.scale, zero_point=rounded.zero_point)
            )


def rounded_weight(weight: Tensor, scheme: Scheme) -> Quantized:
    """A weight, [O, I], on its scheme's grid; static inputs get the scale of a range from -1 to 3."""
    codes = scale = zero_point = input_scale = input_zero_point = None
    if scheme.weights is not None:
        scale, zero_point = _qparams(group(weight, scheme.weights), scheme.weights)
        codes = quantize(weight, scale, zero_point, scheme.weights)
    inputs = scheme.input_activations
    if inputs is not None and inputs.dynamic is False:
        input_scale, input_zero_point = _qparams(weight.new_tensor([[-1.0, 3.0]]), inputs)
    return Quantized(
        scheme,
        codes=codes,
        scale=scale,
        zero_point=zero_point,
        input_scale=input_scale,
        input_zero_point=input_zero_point,
    )


def _qparams(grouped: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    return calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
