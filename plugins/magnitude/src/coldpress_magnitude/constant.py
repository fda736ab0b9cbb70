"""ConstantPruningModifier: what is zero stays zero, whatever the other modifiers of a recipe do."""

from typing import ClassVar

from attrs import evolve, frozen
from torch import Tensor

from coldpress.plugin import (
    RUNS_LAST,
    BlockTargets,
    Layer,
    Lifecycle,
    MaskedTraining,
    Note,
    SchemeError,
    Stage,
    State,
    Training,
    hookimpl,
)
from coldpress_magnitude.algorithm import codes_with_zeros


@frozen(kw_only=True, eq=False)
class ConstantPruningModifier(BlockTargets):
    """Make weights zero again that were zero before the first modifier of the recipe; it runs last.

    It keeps the zeros that a model comes with, not those that a modifier of the same recipe makes; in training also
    those that were made just before, by the same recipe.
    """

    traits: ClassVar[frozenset[str]] = frozenset({RUNS_LAST})
    notes: ClassVar[tuple[Note, ...]] = (
        Note("zeros_put_back", "weights", "that were zero before the run, and were made zero again"),
    )

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Remember where the weights are zero."""
        for layer in self.layers(stage):
            state.scratch[self, layer] = layer.weight == 0  # [O, I]

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Put back the zeros that were lost, in codes too."""
        for layer in self.layers(stage):
            zeros = state.scratch.pop(self, layer)
            lost = int((layer.weight[zeros] != 0).sum())
            line = state.report[layer.name]
            if lost:
                with state.timed(layer):
                    self._restore(state, layer, zeros)
            elif line.status == "untouched" and line.reason is None:
                state.skip(layer, "its zeros are still zero" if bool(zeros.any()) else "no weight of it is zero")
            line.notes["zeros_put_back"] = lost

    def training(self) -> Lifecycle:
        """Keep zeros through every optimizer step."""
        return KeptZeros(self)

    def _restore(self, state: State, layer: Layer, zeros: Tensor) -> None:
        quantized = state.quantized.get(layer.name)
        if quantized is None or quantized.codes is None:
            state.set_weight(layer, layer.weight.masked_fill(zeros, 0))
            return
        args = quantized.scheme.weights
        assert args is not None
        assert quantized.scale is not None
        codes = codes_with_zeros(quantized.codes, zeros, quantized.scale, quantized.zero_point, args)
        if codes is None:
            raise SchemeError(
                f"{layer.name} is quantized on a grid without an exact zero, so its zeros cannot be kept; use a "
                "symmetric scheme, or let ConstantPruningModifier ignore the layer"
            )
        state.set_quantized(layer, evolve(quantized, codes=codes))


class KeptZeros(MaskedTraining):
    """The zeros that the layers of a modifier have when training begins.

    Args:
        modifier: whose layers.
    """

    def __init__(self, modifier: ConstantPruningModifier) -> None:
        super().__init__()
        self._modifier = modifier

    def attach(self, training: Training) -> None:
        """Remember where the weights are zero.

        Raises:
            SchemeError: no weight of the model is zero, so there is nothing to keep.
        """
        self.claim(self._modifier.layers(training.stage()))
        for layer in self.layers:
            self.mask(layer, layer.weight == 0)
        if not any(bool(gone.any()) for gone in self.gone.values()):
            raise SchemeError(
                "ConstantPruningModifier keeps zeros, and no weight of its layers is zero: prune the model first, or "
                "take MagnitudePruningModifier, which prunes while it trains"
            )
