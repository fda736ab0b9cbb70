"""The kit's own quantizer, so that pipelines and formats are checked without another plugin."""

from attrs import evolve, frozen
from torch import Tensor

from coldpress.bases.quantizer import Quantizer
from coldpress.hookspecs import hookimpl
from coldpress.numerics import calculate_global_scale, calculate_qparams, group, in_weight_dtype, quantize
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.stage import Layer, Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class Rounding(Quantizer):
    """Weights to the nearest point of the grid that their smallest and largest value span; no observer is asked."""

    def takes_whole_range(self, state: State, layer: Layer) -> bool:
        """It takes no other, so no modifier searches for one."""
        return False

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage."""
        for layer in self.planned(state, stage):
            rest = self.quantized(state, layer)
            rounded = rounded_weight(layer.weight, rest.scheme, global_scale=rest.global_scale)
            state.set_quantized(
                layer, evolve(rest, codes=rounded.codes, scale=rounded.scale, zero_point=rounded.zero_point)
            )


def rounded_weight(weight: Tensor, scheme: Scheme, *, global_scale: Tensor | None = None) -> Quantized:
    """A weight, [O, I], on its scheme's grid; static inputs get the scale of a range from -1 to 3.

    A scheme that needs a global scale gets that of this weight alone if there is none.
    """
    found, args, inputs = Quantized(scheme), scheme.weights, scheme.input_activations
    if args is not None:
        if args.strategy == "tensor_group" and global_scale is None:
            global_scale = calculate_global_scale(weight.abs().amax(), args)
        grouped = group(weight, args)  # [*scale shape, n]
        scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=global_scale)
        scale = in_weight_dtype(scale, weight, args)
        codes = quantize(weight, scale, zero_point, args, global_scale=global_scale)
        found = evolve(found, codes=codes, scale=scale, zero_point=zero_point, global_scale=global_scale)
    ends = weight.new_tensor([-1.0]), weight.new_tensor([3.0])
    if inputs is not None and inputs.dynamic == "local":
        found = evolve(found, input_global_scale=calculate_global_scale(ends[1], inputs))
    elif inputs is not None and not inputs.dynamic:
        scale, zero_point = calculate_qparams(*ends, inputs)
        found = evolve(found, input_scale=scale, input_zero_point=zero_point)
    return found
