"""SpinQuant (arXiv 2405.16406): x W^T = (x R) (W R)^T, R orthogonal, so that x R has no outliers.

R1 rotates the residual stream, R2 each value head, R3 queries and keys, R4 what the down projection reads.

Learned rotations minimize the loss of the model whose inputs are rounded, L(R), over orthogonal R.  Nothing need be
rotated for that: a layer that would read Q(x R) with the weight W R computes the same from Q(x R) R^T with W.

Letters: I in, n order of a rotation.
"""

from collections.abc import Iterable
from hashlib import sha256
from math import cos, pi

import torch
from torch import Tensor

from coldpress.numerics import Rotation, cayley_step, dynamic_qparams, fake_quantize, orthogonalized
from coldpress.plugin import QuantizationArgs


def seeded(seed: int, name: str) -> torch.Generator:
    """Random numbers of one rotation, the same in every run and on every machine."""
    digest = sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def rounded_rotated(x: Tensor, rotation: Rotation | None, gain: Tensor | None, args: QuantizationArgs) -> Tensor:
    """What a layer computes with if its inputs are rotated and rounded: g Q((x / g) R) R^T, [..., I].

    The rounding counts as the identity for gradients (straight through).

    Args:
        x: inputs of the layer, [..., I].
        rotation: R, of I channels; None for no rotation.
        gain: g, what the norm before multiplies its channels by, [I]; None for ones.
        args: the grid.
    """
    scaled = x if gain is None else x / gain.to(x)
    turned = scaled if rotation is None else rotation.apply(scaled)
    with torch.no_grad():
        flat = turned.flatten(0, -2)
        rounded = fake_quantize(flat, *dynamic_qparams(flat, args), args).reshape(turned.shape)
    turned = turned + (rounded - turned).detach()
    back = turned if rotation is None else rotation.apply_transposed(turned)
    return back if gain is None else back * gain.to(x)


def descend(
    rotations: Iterable[Tensor], gradients: Iterable[Tensor], *, step: int, steps: int, learning_rate: float
) -> list[Tensor]:
    """One Cayley step of every rotation; the learning rate falls as a cosine does.

    Args:
        rotations: orthogonal matrices, [n, n] each.
        gradients: of the loss, [n, n] each.
        step: from 0.
        steps: of the whole descent.
        learning_rate: of the first step.
    """
    rate = learning_rate * (1 + cos(pi * step / steps)) / 2
    return [cayley_step(r, g, learning_rate=rate) for r, g in zip(rotations, gradients, strict=True)]


def settled(rotation: Tensor) -> Tensor:
    """A learned rotation as it is folded: orthogonal in float64, [n, n]."""
    return orthogonalized(rotation)
