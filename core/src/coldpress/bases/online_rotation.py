"""Online rotations: products with an orthogonal matrix as the model runs, undone in weights or in attention.

input_rotation       x R before a layer, whose weight is W R            R4 of SpinQuant, V of QuIP
output_rotation      y U^T behind a layer, whose weight is U^T W        U of QuIP
attention_rotation   q R and k R where attention runs                   R3 of SpinQuant
"""

from functools import lru_cache
from typing import Any, ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, in_
from torch import Tensor, nn

from coldpress.attachment import Attachment
from coldpress.attention import AttentionStates
from coldpress.numerics import TRANSFORM_TYPES, Rotation, TransformType, rotation_of


@frozen(kw_only=True)
class OnlineRotation(Attachment):
    """What online rotations have in common; the matrix follows from the settings, or is a buffer of the module.

    Attributes:
        group: its name in a configuration, such as `R4`.
        width: channels that are rotated.
        block_size: channels that are mixed with each other.
        transform_type: of the matrix.
        seed: of what is random in it.
        stored: whether the matrix is a buffer, [block_size, block_size], with entries of magnitude 1 as
            compressed-tensors stores it, so that it is divided by sqrt(block_size); as read from a checkpoint.
    """

    group: str
    width: int = field(validator=ge(1))
    block_size: int = field(validator=ge(1))
    transform_type: TransformType = field(default="hadamard", validator=in_(TRANSFORM_TYPES))
    seed: int = 0
    stored: bool = False

    def buffers(self) -> tuple[str, ...]:
        """The matrix, where it is stored."""
        return (f"{self.group}_{self.kind}",) if self.stored else ()

    def describe(self, buffer: str) -> str:
        """What the matrix is."""
        return f"online rotation {self.group}: {self.transform_type}, blocks of {self.block_size}"

    def rotation(self, module: nn.Module | None = None) -> Rotation:
        """The matrix that the module is rotated by."""
        if not self.stored:
            return _drawn(self.width, self.block_size, self.transform_type, self.seed)
        matrix: Tensor = getattr(module, self.buffers()[0])
        block = matrix.to(torch.promote_types(matrix.dtype, torch.float32)) / self.block_size**0.5
        return Rotation(self.width, self.block_size, block=block)

    def matrix(self) -> Tensor:
        """What compressed-tensors stores of it: a block times sqrt(block_size), of 1 and -1 for Hadamard matrices."""
        one: OnlineRotation = evolve(self, width=self.block_size)
        found: Tensor = one.rotation().matrix() * self.block_size**0.5
        return found

    def _turned(self, module: nn.Module, x: Tensor, *, back: bool) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rotation = self.rotation(module)
        return (rotation.apply_transposed(wide) if back else rotation.apply(wide)).to(x.dtype)


@lru_cache(maxsize=64)
def _drawn(width: int, block_size: int, transform_type: TransformType, seed: int) -> Rotation:
    generator = torch.Generator().manual_seed(seed)
    return rotation_of(width, transform_type, block_size=block_size, generator=generator)


@frozen(kw_only=True)
class InputRotation(OnlineRotation):
    """Inputs of a layer times R."""

    kind: ClassVar[str] = "input_rotation"

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The product x R."""
        return self._turned(module, x, back=False)


@frozen(kw_only=True)
class OutputRotation(OnlineRotation):
    """Outputs of a layer times U^T."""

    kind: ClassVar[str] = "output_rotation"

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        """The product y U^T."""
        return self._turned(module, y, back=True)


@frozen(kw_only=True)
class AttentionRotation(OnlineRotation):
    """Queries and keys times R, head by head; their products are what they were."""

    kind: ClassVar[str] = "attention_rotation"

    def attention(self, module: nn.Module, states: AttentionStates) -> AttentionStates:
        """Rotated queries and keys, the values as they are."""
        turned: dict[str, Any] = {
            part: self._turned(module, getattr(states, part), back=False) for part in ("keys", "queries")
        }
        return AttentionStates(values=states.values, **turned)
