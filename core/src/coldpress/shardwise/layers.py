"""Weights of layers by their names in the outline, as they are stored, and dense."""

import torch
from attrs import evolve, frozen
from torch import Tensor

from coldpress.checkpoint.named import Part
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.shardwise.outline import Matrix, Outline
from coldpress.source import Cut, Weights


@frozen(eq=False)
class LayerReader:
    """Reads one layer at a time.

    Attributes:
        weights: of the dense model.
        outline: which says where each layer's weight is.
        stored: the tensors as they lie in the files.
        device: where tensors are put.
    """

    weights: Weights
    outline: Outline
    stored: Weights
    device: torch.device

    def scheme(self, name: str) -> Scheme | None:
        """How the checkpoint has a layer quantized."""
        return self.weights.scheme(self.outline.matrices[name].tensor)

    def kinds(self, stored: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of a tensor as it lies in the files."""
        return self.stored.dtype(stored), tuple(self.stored.shape(stored))

    def quantized(self, name: str) -> Quantized:
        """A layer as codes and scales, as the checkpoint has it."""
        matrix = self.outline.matrices[name]
        return self.weights.quantized(matrix.tensor, None if matrix.part is None else _cut(matrix.part))

    def dense(self, name: str, dtype: torch.dtype) -> Tensor:
        """The weight of a layer, as its module stores it, in memory of its own; what is decoded is so in float32."""
        matrix = self.outline.matrices[name]
        if self.weights.scheme(matrix.tensor) is not None:
            return self.quantized(name).weight(torch.float32).to(self.device, dtype)
        return self._whole(matrix).to(self.device, dtype)

    def _whole(self, matrix: Matrix) -> Tensor:
        if matrix.part is None:
            return self.weights.read(matrix.tensor)
        return matrix.part.of(self.weights.get(matrix.tensor))


def _cut(part: Part) -> Cut:
    """Rows of one expert of what begins with [E, O]."""
    slot = evolve(part.slot, transposed=False)
    return lambda stored: slot.weights({slot.parameter: stored})[part.number]
