"""What modifiers that fit weights to a layer's outputs say of the fit, in the report and, of few tokens, aloud."""

import logging
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from coldpress.layer_report import LayerReport
from coldpress.stage import Layer
from coldpress.state import State

log = logging.getLogger(__name__)

_least: WeakKeyDictionary[State, float] = WeakKeyDictionary()  # tokens for a column of the layers so far, 1 at most


def note_fit(
    state: State,
    layers: Sequence[Layer],
    *,
    tokens: int,
    dampening: float,
    losses: Sequence[float],
    rounding_losses: Sequence[float] = (),
) -> None:
    """In `finalize`: report how layers that read the same input were fitted, and warn where that had few tokens.

    A layer's notes get `tokens`, `dampening`, `output_error`, its loss for a token, and where that of rounding to
    nearest is known, `rounding_ratio`, its loss over that: 1 is no better than rounding.
    Fewer tokens than columns are warned of once, and again where there are fewer still for each column.

    Args:
        state: of the run.
        layers: which read the same input.
        tokens: of the calibration data that reached them, at least 1.
        dampening: share of the mean diagonal that was added to the diagonal of their Gram matrix.
        losses: squared error of the outputs of each layer, summed over tokens.
        rounding_losses: that of rounding to nearest with the same scales; empty where it is not known.
    """
    columns = layers[0].weight.shape[1]
    if state not in _least:
        _least[state] = _least_of(state.report)
    if tokens / columns < _least[state]:
        _least[state] = tokens / columns
        log.warning(
            "%s: %d tokens for %d columns; more calibration data would make it better (the report has the tokens of "
            "every layer; further layers are not listed)",
            layers[0].name,
            tokens,
            columns,
        )
    for layer, loss in zip(layers, losses, strict=True):
        state.report[layer.name].notes |= {
            "tokens": tokens,
            "dampening": dampening,
            "output_error": loss / tokens,
        }
    for layer, loss, rounding in zip(layers, losses, rounding_losses, strict=False):
        if rounding > 0:
            state.report[layer.name].notes["rounding_ratio"] = loss / rounding


def _least_of(report: Mapping[str, LayerReport]) -> float:
    """What an interrupted run came to."""
    found = (float(line.notes["tokens"]) / line.shape[1] for line in report.values() if "output_error" in line.notes)
    return min([1.0, *found])
