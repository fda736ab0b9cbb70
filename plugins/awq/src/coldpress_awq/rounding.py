"""Rounding to nearest, for an AWQModifier that has a scheme of its own."""

from attrs import frozen

from coldpress.plugin import Quantizer, Stage, State, hookimpl


@frozen(kw_only=True, eq=False)
class Rounding(Quantizer):
    """Quantize weights by rounding to nearest, and inputs as the scheme says; all settings are those of `Quantizer`."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage."""
        for layer in self.layers(stage):
            with state.timed(layer):
                state.set_quantized(layer, self.rounded(state, layer))
