"""QATModifier: how layers that are quantized are trained on their grids."""

from typing import Literal

from attrs import field, frozen
from attrs.validators import in_

from coldpress.plugin import Layer, Lifecycle, Modifier, Needs, QuantizedTraining, Stage

RANGES = ("frozen", "recomputed", "learned")


@frozen(kw_only=True, eq=False)
class QATModifier(Modifier):
    """Quantization-aware training of layers that are quantized already: by a modifier of the same recipe, by an earlier
    run, or in the checkpoint that is loaded.

    Weights are rounded at each forward, and gradients pass straight through; so do they through rounded inputs, keys
    and values.  Layers that are not quantized are trained as they are.

    Attributes:
        ranges: `frozen` keeps the scales that the layers have; `recomputed` makes them anew from smallest and largest
            weight at each forward; `learned` trains them beside the weights (LSQ).
    """

    ranges: Literal["frozen", "recomputed", "learned"] = field(default="frozen", validator=in_(RANGES))

    def needs(self) -> Needs:
        """Training."""
        return Needs(training=True)

    def training(self) -> Lifecycle:
        """Round the weights of its layers at each forward."""
        return QuantizedTraining(self._chosen, self.ranges, of="QATModifier")

    def _chosen(self, stage: Stage) -> list[Layer]:
        return self.layers(stage)
