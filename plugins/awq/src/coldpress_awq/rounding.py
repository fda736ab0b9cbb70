"""Rounding to nearest, for an AWQModifier that has a scheme of its own."""

from attrs import evolve, frozen

from coldpress import Quantizer, Stage, State, hookimpl, weight_qparams
from coldpress.numerics import quantize


@frozen(kw_only=True, eq=False)
class Rounding(Quantizer):
    """Quantize weights by rounding to nearest, and inputs as the scheme says; all settings are those of `Quantizer`."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage."""
        for layer in self.layers(stage):
            with state.timed(layer):
                quantized = self.quantized(state, layer)
                args = quantized.scheme.weights
                if args is not None:
                    factor = quantized.global_scale
                    scale, zero_point = weight_qparams(
                        layer.weight, args, global_scale=factor, importance=self.importance(state, layer)
                    )
                    codes = quantize(layer.weight, scale, zero_point, args, global_scale=factor)
                    quantized = evolve(quantized, codes=codes, scale=scale, zero_point=zero_point)
                state.set_quantized(layer, quantized)
