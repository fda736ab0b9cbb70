"""Rotations: orthogonal matrices that are applied without being written out, and steps on the manifold of them.

    R = P D B      P a reflection or nothing, D signs, B a normalized Hadamard matrix or any orthogonal one, in blocks

Rotated inputs are x R, and a weight that reads them is W R, so that (x R) (W R)^T = x W^T.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coldpress.errors import NumericsError
from coldpress.numerics.hadamard import apply_hadamard, apply_hadamard_transposed, hadamard_orders

TransformType = Literal["hadamard", "random-hadamard", "random-matrix"]
TRANSFORM_TYPES: tuple[TransformType, ...] = ("hadamard", "random-hadamard", "random-matrix")

_WIDE = 512  # order from which on steps of descent are bounded by 1


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix R of order `width`.

    Attributes:
        width: columns that it is for.
        block_size: columns that are mixed with each other; divides the width.
        block: B, [block_size, block_size]; None for the normalized Hadamard matrix.
        signs: D, [width], of 1 and -1; None for ones.
        keeps_ones: whether P is the reflection by which R maps a row of ones to itself, so that means are kept; for
            Hadamard matrices, whose first row is ones, and signs that begin each block with 1.
    """

    width: int
    block_size: int
    block: Tensor | None = None
    signs: Tensor | None = None
    keeps_ones: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit, and orders without a Hadamard matrix."""
        if self.block_size < 1 or self.width % self.block_size:
            raise NumericsError(f"blocks of {self.block_size} columns do not divide a width of {self.width}")
        if self.block is None:
            hadamard_orders(self.block_size)

    def apply(self, x: Tensor) -> Tensor:
        """The product x R, [..., width], in the dtype of x."""
        x = _reflected(x, self.block_size) if self.keeps_ones else x
        x = x if self.signs is None else x * self.signs.to(x)
        return apply_hadamard(x, self.block_size) if self.block is None else _blockwise(x, self.block)

    def apply_transposed(self, x: Tensor) -> Tensor:
        """The product x R^T, [..., width]: the inverse of `apply`."""
        x = apply_hadamard_transposed(x, self.block_size) if self.block is None else _blockwise(x, self.block.t())
        x = x if self.signs is None else x * self.signs.to(x)
        return _reflected(x, self.block_size) if self.keeps_ones else x

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """R written out, [width, width]."""
        return self.apply(torch.eye(self.width, dtype=dtype))

    def block_matrix(self) -> Tensor:
        """What R does to each block of columns, written out, [block_size, block_size] float64."""
        n = self.block_size
        signs = None if self.signs is None else self.signs[:n]
        return Rotation(n, n, block=self.block, signs=signs, keeps_ones=self.keeps_ones).matrix()


def rotation_of(
    width: int,
    transform_type: TransformType,
    *,
    block_size: int | None = None,
    keeps_ones: bool = False,
    generator: torch.Generator | None = None,
) -> Rotation:
    """A rotation by the name that compressed-tensors has for its kind.

    Args:
        width: columns that it is for.
        transform_type: `hadamard`; `random-hadamard`, the same after random signs; `random-matrix`, any orthogonal
            matrix, drawn uniformly.
        block_size: columns that are mixed with each other; None for all.
        keeps_ones: a row of ones is mapped to itself; signs are random then.
        generator: of signs and matrices; None for the default seed.

    Raises:
        NumericsError: the block size does not divide the width, or there is no Hadamard matrix of it.
    """
    size = width if block_size is None else block_size
    generator = generator or torch.Generator().manual_seed(0)
    if transform_type == "random-matrix":
        block = random_orthogonal(size, generator)
        return Rotation(width, size, block=_ones_kept(block) if keeps_ones else block)
    signs = None
    if keeps_ones or transform_type == "random-hadamard":  # P and H alone would leave the first column as it is
        signs = torch.randint(0, 2, (size,), generator=generator).mul(2).sub(1).to(torch.int8)
        signs[0] = 1
        signs = signs.repeat(width // size)
    return Rotation(width, size, signs=signs, keeps_ones=keeps_ones)


def random_orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix that is uniform among all, [n, n] float64."""
    return orthogonalized(torch.randn(n, n, generator=generator, dtype=torch.float64))


def orthogonalized(matrix: Tensor) -> Tensor:
    """The orthogonal matrix of a QR decomposition whose triangle has a positive diagonal, [n, n] float64."""
    q, r = torch.linalg.qr(matrix.double())
    found: Tensor = q * r.diagonal().sgn()
    return found


def cayley_step(rotation: Tensor, gradient: Tensor, *, learning_rate: float) -> Tensor:
    """A step of descent on the Stiefel manifold, by the Cayley transform (arXiv 2002.01113, algorithm 1).

    With A the skew part of the gradient G, A = G R^T - R G^T, the step R <- (I + c/2 A)^-1 (I - c/2 A) R is orthogonal
    for any c; the solve is exact, where the paper iterates.  c times the largest column sum of A is bounded, by 1, or
    in proportion to the order where that is small.  Noise makes the sum large, and so steps short; less so in few
    columns, where steps up to 1 ended above where they began.

    Args:
        rotation: R, orthogonal, [n, n].
        gradient: G, of the loss for R, [n, n].
        learning_rate: c at most; it is smaller where the largest column sum of |A| is large.

    Returns:
        The new rotation, [n, n] in the dtype of the old one.
    """
    r, g = rotation.detach().double(), gradient.double()
    half = g @ r.t()  # [n, n]
    skew = half - half.t()
    longest = min(1.0, len(r) / _WIDE) / (float(torch.linalg.matrix_norm(skew, 1)) + 1e-8)
    size = min(learning_rate, longest)
    unit = torch.eye(len(r), dtype=r.dtype, device=r.device)
    stepped: Tensor = torch.linalg.solve(unit + size / 2 * skew, (unit - size / 2 * skew) @ r)
    return stepped.to(rotation.dtype)


def _ones_kept(matrix: Tensor) -> Tensor:
    """An orthogonal matrix that maps a row of ones to itself, made of one of the same order, [n, n]."""
    n = len(matrix)
    inner = torch.eye(n, dtype=matrix.dtype)
    inner[1:, 1:] = orthogonalized(matrix[1:, 1:])
    return _reflected(_reflected(inner, n).t(), n)


def _blockwise(x: Tensor, block: Tensor) -> Tensor:
    """Every n columns of x, [..., I], by a matrix, [n, n]."""
    return (x.reshape(-1, len(block)) @ block.to(x)).view(x.shape)


def _reflected(x: Tensor, n: int) -> Tensor:
    """The product x P; P swaps the first unit vector and the direction of ones, in blocks of n columns."""
    if n == 1:
        return x
    v = torch.full((n,), -(n**-0.5), dtype=x.dtype, device=x.device)
    v[0] += 1
    blocks = x.reshape(*x.shape[:-1], -1, n)
    return (blocks - (blocks @ v)[..., None] * (2 / (v @ v)) * v).flatten(-2)
