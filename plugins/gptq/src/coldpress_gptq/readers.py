"""Which layers are rounded in one go: those that read the same input, and those of several inputs that are alike."""

from collections.abc import Sequence
from typing import Literal

from attrs import evolve, frozen
from torch import Tensor

from coldpress.plugin import Layer, QuantizationArgs, TokenWeight

ROWS = 16384
"""Rows of weights that are rounded at once: more are no faster, and take four times their memory in float32."""


@frozen(eq=False)
class Readers:
    """Layers that read the same input and are rounded alike.

    Attributes:
        layers: at least one.
        args: how their weights are quantized.
        keep_zeros: weights that are zero stay zero.
        group: which rows of them, of so many `groups` that the rows of each layer are cut into.
        groups: 1 for all rows.
    """

    layers: Sequence[Layer]
    args: QuantizationArgs
    keep_zeros: bool
    group: int = 0
    groups: int = 1

    def names(self) -> tuple[str, ...]:
        """Of the layers."""
        return tuple(layer.name for layer in self.layers)

    def weights(self) -> list[Tensor]:
        """The rows of each layer, [O, I] each."""
        rows = TokenWeight(group=self.group, groups=self.groups).rows
        return [layer.weight[rows(layer.weight.shape[0])] for layer in self.layers]

    def count(self) -> int:
        """Rows of all of them."""
        return sum(len(weight) for weight in self.weights())

    def in_groups(self, groups: int) -> list["Readers"]:
        """Their rows in so many groups, without those that have none."""
        found = [evolve(self, group=group, groups=groups) for group in range(groups)]
        return [one for one in found if one.count()]

    def kind(self) -> object:
        """What inputs whose layers are rounded in one go have in common."""
        weight = self.layers[0].weight
        return self.args, self.keep_zeros, self.count(), weight.shape[1], weight.dtype, weight.device


def divided(layers: Sequence[Layer], most: int = ROWS) -> list[list[Layer]]:
    """Layers, in order, in parts of at most so many rows; a layer stays whole."""
    parts: list[list[Layer]] = []
    for layer in layers:
        if not parts or rows_of([*parts[-1], layer]) > most:
            parts.append([])
        parts[-1].append(layer)
    return parts


def batches_of(inputs: Sequence[Readers], size: int | Literal["auto"] | None) -> list[list[Readers]]:
    """Inputs in batches of one kind.

    Args:
        inputs: in order; a batch stands where its first one did.
        size: of a batch; `auto` for up to `ROWS` rows, None for one.
    """
    batches: list[list[Readers]] = []
    latest: dict[object, list[Readers]] = {}
    for readers in inputs:
        most = max(1, ROWS // readers.count()) if size == "auto" else size or 1
        batch = latest.get(readers.kind())
        if batch is None or len(batch) >= most:
            batch = latest[readers.kind()] = []
            batches.append(batch)
        batch.append(readers)
    return batches


def rows_of(layers: Sequence[Layer]) -> int:
    """Rows of all weights."""
    return sum(layer.weight.shape[0] for layer in layers)
