"""WandaModifier: settings and wiring of Wanda."""

from attrs import frozen
from torch import Tensor

from coldpress.plugin import Layer, Pruner, SecondMoment, Stage, State, guided, hookimpl
from coldpress_wanda.algorithm import wanda


@frozen(kw_only=True, eq=False)
class WandaModifier(Pruner):
    """Drop the weights of each row whose size times the norm of their input is smallest.

    All settings are those of `Pruner`: `sparsity`, `mask_structure`, `sparsity_profile`, `guidance`, `targets`,
    `ignore`.
    """

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request the mean squares of inputs."""
        super().initialize(state, stage)
        for layer in self.layers(stage):
            state.request(layer, guided(SecondMoment(), self.guidance))

    def input_norms(self, state: State, layer: Layer) -> Tensor | None:
        """The root of the sum of squares of each input, [I]; None when no token reached the layer."""
        seen = state.statistic(layer, guided(SecondMoment(), self.guidance))
        return None if seen is None else seen.total.sqrt().float()

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Prune the weights of the stage; without data, by magnitude."""
        sparsities = self.sparsities(state, stage)
        for layer in self.layers(stage):
            with state.timed(layer):
                weight, norm = layer.weight, self.input_norms(state, layer)
                known = weight.new_ones(weight.shape[1]) if norm is None else norm
                pruned = wanda(weight, known, sparsity=sparsities[layer.name], structure=self.structure())
                state.set_weight(layer, pruned)
                if norm is None:
                    state.fall_back(layer, "pruned by magnitude: no token of the calibration data reached it")
                elif not bool(norm.any()):
                    state.fall_back(layer, "pruned by magnitude: its inputs are zero for all of the calibration data")
