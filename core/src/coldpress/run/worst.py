"""Histograms of the layers that lose most: those of a stage are taken, those of the worst layers so far are kept."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from attrs import define, field

from coldpress.calibration.tap import BatchInputs
from coldpress.distributed import Ranks
from coldpress.layer_report import LayerReport
from coldpress.report.histogram import Histogram, keep_worst, largest
from coldpress.stage import Layer

_COUNTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@define(eq=False)
class StageHistograms:
    """Weights of the layers of a stage before it is compressed, and what they are called with.

    Attributes:
        layers: that modifiers claim.
        weights: by name of the layer.
        inputs: by name of the layer, of the last sweep.
    """

    layers: Collection[Layer]
    weights: Mapping[str, Histogram]
    inputs: dict[str, Histogram] = field(factory=dict)

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> "StageHistograms":
        """Those of weights, as they are now."""
        own = {layer.name: layer for layer in layers if layer.weight.numel() and layer.weight.dtype in _COUNTED}
        return cls(list(own.values()), {name: Histogram.of(layer.weight) for name, layer in own.items()})

    def see(self, seen: BatchInputs) -> None:
        """Count one batch; a tensor that several layers read is looked at once."""
        known: dict[int, Histogram] = {}
        for layer in self.layers:
            for key in seen.calls.get(layer.name, ()):
                tokens = seen.tokens[key]
                if not tokens.numel() or tokens.dtype not in _COUNTED:
                    continue
                if key not in known:
                    known[key] = Histogram.of(tokens)
                before = self.inputs.get(layer.name)
                self.inputs[layer.name] = known[key] if before is None else before.merge(known[key])

    def gather(self, ranks: Ranks) -> None:
        """Add what the other ranks have counted."""
        if ranks.size == 1:
            return
        found: dict[str, Histogram] = {}
        for own in ranks.gather("histograms of inputs", self.inputs):
            found |= {name: found[name].merge(one) if name in found else one for name, one in own.items()}
        self.inputs = found

    def keep(self, report: Mapping[str, LayerReport]) -> None:
        """Put into the report what belongs to the layers that have lost most so far."""
        for layer in self.layers:
            report[layer.name].histograms = self._parts(layer)
        keep_worst(report)

    def _parts(self, layer: Layer) -> dict[str, Any]:
        kept = float(f"{largest(layer.weight).item():.6g}")
        parts = {"weights": {**self.weights[layer.name].to_dict(), "largest_kept": kept}}
        return parts | ({"inputs": self.inputs[layer.name].to_dict()} if layer.name in self.inputs else {})
