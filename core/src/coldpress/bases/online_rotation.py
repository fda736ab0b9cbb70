"""Online rotations: products with an orthogonal matrix as the model runs, undone in weights or in attention.

input_rotation       x R before a layer, whose weight is W R            R4 of SpinQuant, V of QuIP
output_rotation      y U^T behind a layer, whose weight is U^T W        U of QuIP
attention_rotation   q R and k R where attention runs                   R3 of SpinQuant
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, optional
from torch import Tensor, nn

from coldpress.attachment import Attachment
from coldpress.attention import AttentionStates
from coldpress.numerics import TRANSFORM_TYPES, Rotation, TransformType, rotation_of


@frozen(kw_only=True)
class OnlineRotation(Attachment):
    """What online rotations have in common; the matrix follows from the settings, or is a buffer of the module.

    Attributes:
        group: its name in a configuration, such as `R4`.
        block_size: channels that are mixed with each other; None for all.
        transform_type: of the matrix.
        seed: of what is random in it.
        stored: whether the matrix is a buffer, [block_size, block_size], as compressed-tensors stores it: the root of
            its order times R, so that entries of Hadamard matrices are 1 and -1; of one that is learned or read.
    """

    shared: ClassVar[bool] = True

    location: ClassVar[str] = ""
    """Where compressed-tensors says that it acts."""

    group: str
    block_size: int | None = field(default=None, validator=optional(ge(1)))
    transform_type: TransformType = field(default="hadamard", validator=in_(TRANSFORM_TYPES))
    seed: int = 0
    stored: bool = False

    def buffers(self) -> tuple[str, ...]:
        """The matrix, where it is stored."""
        return (f"{self.group}_{self.location}",) if self.stored else ()

    def describe(self, buffer: str) -> str:
        """What the matrix is."""
        return f"online rotation {self.group}: {self.transform_type}, blocks of {self.block_size or 'all channels'}"

    def rotation(self, width: int, module: nn.Module | None = None) -> Rotation:
        """The matrix that this many channels are rotated by; of a module that has it, where it is stored.

        Raises:
            NumericsError: the width is no multiple of the block size, or there is no Hadamard matrix of it.
        """
        if not self.stored:
            return _drawn(width, self.block_size or width, self.transform_type, self.seed)
        matrix: Tensor = getattr(module, self.buffers()[0])
        return _scaled(width, matrix.to(torch.promote_types(matrix.dtype, torch.float32)))

    def matrix(self, width: int) -> Tensor:
        """What compressed-tensors stores of it: a block times its root of order, of 1 and -1 for Hadamard matrices."""
        size = self.block_size or width
        found: Tensor = self.rotation(size).matrix() * size**0.5
        return found

    def buffers_of(self, block: Tensor) -> dict[str, Tensor]:
        """Of a rotation by an orthogonal block, [n, n], where it is stored: rounded to bfloat16, as engines load it."""
        return {name: (block * len(block) ** 0.5).to(torch.bfloat16) for name in self.buffers()}

    def undone(self, width: int, buffers: Mapping[str, Tensor]) -> Rotation:
        """What vectors of weights are multiplied by: R^-T, which is R but for what rounding does to a stored R."""
        if not self.stored:
            return self.rotation(width)
        stored = buffers[self.buffers()[0]].double()
        return Rotation(width, len(stored), block=torch.linalg.inv(stored).t() * len(stored) ** 0.5)

    def _turned(self, module: nn.Module, x: Tensor, *, back: bool) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rotation = self.rotation(x.shape[-1], module)
        return (rotation.apply_transposed(wide) if back else rotation.apply(wide)).to(x.dtype)


def _scaled(width: int, stored: Tensor) -> Rotation:
    return Rotation(width, len(stored), block=stored / len(stored) ** 0.5)


@lru_cache(maxsize=64)
def _drawn(width: int, block_size: int, transform_type: TransformType, seed: int) -> Rotation:
    generator = torch.Generator().manual_seed(seed)
    return rotation_of(width, transform_type, block_size=block_size, generator=generator)


@frozen(kw_only=True)
class InputRotation(OnlineRotation):
    """Inputs of a layer times R."""

    kind: ClassVar[str] = "input_rotation"
    location: ClassVar[str] = "input"

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The product x R."""
        return self._turned(module, x, back=False)


@frozen(kw_only=True)
class OutputRotation(OnlineRotation):
    """Outputs of a layer times U^T."""

    kind: ClassVar[str] = "output_rotation"
    location: ClassVar[str] = "output"

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        """The product y U^T."""
        return self._turned(module, y, back=True)


@frozen(kw_only=True)
class AttentionRotation(OnlineRotation):
    """Queries and keys times R, head by head; their products are what they were."""

    kind: ClassVar[str] = "attention_rotation"
    location: ClassVar[str] = "q_attn"

    def attention(self, module: nn.Module, states: AttentionStates) -> AttentionStates:
        """Rotated queries and keys, the values as they are."""
        turned: dict[str, Any] = {
            part: self._turned(module, getattr(states, part), back=False) for part in ("keys", "queries")
        }
        return AttentionStates(values=states.values, **turned)
