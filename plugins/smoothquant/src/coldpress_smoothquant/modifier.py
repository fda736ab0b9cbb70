"""SmoothQuantModifier: settings and wiring of SmoothQuant, and of logarithmic equalization."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import in_
from torch import Tensor

from coldpress.plugin import Cost, Layer, Note, Smoother, Smoothing, State, Statistic
from coldpress_smoothquant.algorithm import (
    STRENGTHS,
    Reader,
    equalizing_scale,
    predicted_error,
    smoothing_scale,
)
from coldpress_smoothquant.sample import Sample

AUTO = "auto"


@frozen(kw_only=True, eq=False)
class SmoothQuantModifier(Smoother):
    """Divide the channels of activations by a scale that makes outliers smaller, and multiply weights by it.

    Further settings are those of `Smoother`: `mappings`, `targets`, `ignore`.

    Attributes:
        smoothing_strength: how much of the range moves from activations into weights, from 0 to 1; `auto` searches for
            each pair the one that loses least under the scheme that a later modifier quantizes its readers with.
        algorithm: `smoothquant`, or `log_equalization`, which looks at activations only and has no strength.
        num_calibration_steps: understood and without effect: all calibration data count.
    """

    notes: ClassVar[tuple[Note, ...]] = (
        Note("smoothing_strength", "", "the strength that the search chose; none where no scaling was better"),
    )

    smoothing_strength: float | Literal["auto"] = field(default=0.5)
    algorithm: Literal["smoothquant", "log_equalization"] = field(
        default="smoothquant", validator=in_(("smoothquant", "log_equalization"))
    )
    num_calibration_steps: int | None = None

    @smoothing_strength.validator
    def _check_strength(self, attribute: object, value: Any) -> None:
        if value != AUTO and not (isinstance(value, float | int) and 0 <= value <= 1):
            raise ValueError(f"must be from 0 to 1, or 'auto'; got {value!r}")

    def cost(self, layers: Sequence[Layer], tokens: int) -> Cost:
        """What folding takes; of a search the Gram matrix of the inputs, and every strength on it and on a sample."""
        width, rows = layers[0].weight.shape[1], sum(layer.weight.shape[0] for layer in layers)
        if not self._searches():
            return Cost(elements=6.0 * rows * width)
        tries, sample = len(STRENGTHS) + 1, min(tokens, Sample().count)
        return Cost(
            flops=2.0 * tokens * width**2 + tries * 2.0 * rows * width * (width + sample),
            elements=tries * 6.0 * rows * width,
            steps=tries * 40.0 * len(layers),
            nbytes=4 * (width**2 + 4 * rows * width),
        )

    def statistics(self, smoothing: Smoothing) -> Iterable[str | Statistic]:
        """Largest magnitudes; what a search needs more."""
        return ("absmax", "gram", Sample()) if self._searches() else ("absmax",)

    def scale(self, state: State, smoothing: Smoothing) -> Tensor | str:
        """The scale of a pair, [C]."""
        seen = [layer for layer in smoothing.layers if state.statistic(layer, "absmax") is not None]
        if not seen:
            return "no token of the calibration data reached its readers"
        pair = smoothing.pair
        activations = torch.stack([pair.gather(state.require(one, "absmax"), one.name) for one in seen]).amax(0)  # [C]
        if not bool(activations.any()):
            return "its channels are zero for all of the calibration data"
        if self.algorithm == "log_equalization":
            return equalizing_scale(activations)
        columns = [pair.gather(one.weight.float().abs().amax(0), one.name) for one in smoothing.layers]
        weights = torch.stack(columns).amax(0)  # [C]
        if self.smoothing_strength != AUTO:
            return smoothing_scale(activations, weights, strength=float(self.smoothing_strength))
        return self._searched(state, smoothing, activations, weights)

    def _searched(self, state: State, smoothing: Smoothing, activations: Tensor, weights: Tensor) -> Tensor | str:
        """The scale that loses least; 1 is one of those that are tried."""
        readers = self._readers(state, smoothing)
        if not readers:
            return "no later modifier quantizes its readers, so there is nothing to search for"
        scales = [smoothing_scale(activations, weights, strength=strength) for strength in STRENGTHS]
        scales.append(torch.ones_like(activations))
        spread = {name: [smoothing.pair.spread(scale, name) for scale in scales] for name in readers}
        losses = [
            torch.stack([predicted_error(reader, spread[name][i]) for name, reader in readers.items()]).sum()
            for i in range(len(scales))
        ]
        best = int(torch.stack(losses).argmin())
        for layer in smoothing.layers:
            state.report[layer.name].notes["smoothing_strength"] = STRENGTHS[best] if best < len(STRENGTHS) else None
        return scales[best]

    def _readers(self, state: State, smoothing: Smoothing) -> dict[str, Reader]:
        """Every reader that will be quantized, and that tokens have reached, by name."""
        found = {}
        for layer in smoothing.layers:
            scheme, gram = state.scheme_of(layer), state.statistic(layer, "gram")
            if scheme is not None and gram is not None:
                found[layer.name] = Reader(
                    weight=layer.weight,
                    gram=gram.total,
                    sample=state.require(layer, Sample()).tokens,
                    largest=state.require(layer, "absmax"),
                    tokens=gram.count,
                    weight_args=scheme.weights,
                    input_args=scheme.input_activations,
                )
        return found

    def _searches(self) -> bool:
        return self.smoothing_strength == AUTO and self.algorithm == "smoothquant"


@frozen(kw_only=True, eq=False)
class LogarithmicEqualizationModifier(SmoothQuantModifier):
    """SmoothQuant with `algorithm: log_equalization`: scales follow the logarithm of activations, not the weights."""

    algorithm: Literal["smoothquant", "log_equalization"] = field(
        default="log_equalization", validator=in_(("log_equalization",))
    )
