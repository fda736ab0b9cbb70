"""Adapters (PEFT) beside frozen compressed weights: merged, and rounded to the grids that the weights were on."""

from collections.abc import Collection
from typing import Any

import torch

from coldpress.bases.quantized_training import requantize, whole_weight
from coldpress.quantized import encoding_of
from coldpress.stage import find_layers


@torch.no_grad()
def requantize_merged(model: Any) -> list[str]:
    """Round every quantized layer that is off its grid, say after `merge_and_unload`, with the scales that it has.

    Args:
        model: compressed by `oneshot` or loaded from a compressed checkpoint, and then changed.

    Returns:
        The names of the layers that were rounded; the model is saved as it was before, with their new codes.
    """
    rounded = []
    for layer in find_layers(model.named_modules()):
        encoding = encoding_of(layer.module)
        if encoding is not None and encoding.encode(whole_weight(layer)) is None:
            requantize(layer, encoding.quantized)
            rounded.append(layer.name)
    return rounded


def trained_modules(model: Any, names: Collection[str]) -> frozenset[str]:
    """Which modules have something to train, adapters on them among it.

    Args:
        model: as it is trained, with adapters if there are any.
        names: of the modules that it has without adapters.
    """
    found = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path = name.removeprefix("base_model.model.").split(".")  # which PEFT puts in front
        if parameter.requires_grad:
            found.add(next(one for i in range(len(path) - 1, -1, -1) if (one := ".".join(path[:i])) in names))
    return frozenset(found)
