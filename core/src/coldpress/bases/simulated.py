"""Simulated layers: a stage computes with other weights, and rounded inputs, than it has."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from coldpress.attachment import attachments_as, attachments_on
from coldpress.bases.quantized_inputs import QuantizedInputs, simulation_of
from coldpress.quantized import Quantized
from coldpress.stage import Layer, oriented


@contextmanager
def simulated(weights: Mapping[Layer, Tensor], inputs: Iterable[tuple[Layer, Quantized]] = ()) -> Iterator[None]:
    """Inside, layers compute with these weights, and round their inputs; afterwards all is as before.

    A weight may be part of a graph or a leaf of one: what runs inside of `torch.enable_grad()` is differentiated with
    respect to it.  Rounding of inputs passes gradients straight through.

    Args:
        weights: of each layer, [O, I], in the dtype of its own.
        inputs: layers, and how each is quantized; where its scheme rounds no inputs they stay as they are.
    """
    own: dict[Layer, Any] = {layer: layer.module._parameters["weight"] for layer in weights}
    rounded = {layer.module: simulation_of(quantized) for layer, quantized in inputs}
    others = {module: [one for one in attachments_on(module) if one.kind != QuantizedInputs.kind] for module in rounded}
    with torch.enable_grad():  # a view of a leaf is part of its graph
        stored = {layer: oriented(weight, layer.classes) for layer, weight in weights.items()}
    for layer, weight in stored.items():
        layer.module._parameters["weight"] = weight  # type: ignore[assignment]
    try:
        with attachments_as({m: [*others[m], *([one] if one else [])] for m, one in rounded.items()}):
            yield
    finally:
        for layer, parameter in own.items():
            layer.module._parameters["weight"] = parameter
