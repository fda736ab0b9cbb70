"""SpinQuant (arXiv 2405.16406): x W^T = (x R) (W R)^T, R orthogonal, so that x R has no outliers.

R1 rotates the residual stream, R2 each value head, R3 queries and keys, R4 what the down projection reads.

Learned rotations minimize the loss of the model whose inputs are rounded, L(R), over orthogonal R.  Nothing need be
rotated for that: a layer that would read Q(x R) with the weight W R computes the same from Q(x R) R^T with W.

Letters: I in, n order of a rotation.
"""

from collections.abc import Iterable
from hashlib import sha256
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from coldpress.numerics import Rotation, cayley_step, dynamic_qparams, fake_quantize, orthogonalized
from coldpress.plugin import QuantizationArgs


def seeded(seed: int, name: str) -> torch.Generator:
    """Random numbers of one rotation, the same in every run and on every machine."""
    digest = sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def rounded_rotated(
    x: Tensor, rotation: Rotation | None, gain: Tensor | None, args: QuantizationArgs, turn: Tensor | None = None
) -> Tensor:
    """What a layer computes with if its inputs are rotated and rounded: g Q((x / g) R) R^T, [..., I].

    With E = Q((x / g) R) - (x / g) R, which counts as a constant for gradients (straight through), that is
    x + g E R^T: the gradient for x is that of the result, and R matters by E alone.  Products are in the dtype of x.

    Args:
        x: inputs of the layer, [..., I].
        rotation: R, of I channels; None for no rotation.
        gain: g, what the norm before multiplies its channels by, [I]; None for ones.
        args: the grid.
        turn: what asks for the gradient of a step to R exp(A), A skew: zeros, [n, n] with n the order of R's blocks.
            The gradient that it gets is only right for skew A.
    """
    found: Tensor = _Rounded.apply(x, turn, rotation, None if gain is None else gain.to(x), args)  # type: ignore[no-untyped-call]
    return found


class _Rounded(torch.autograd.Function):
    """`rounded_rotated` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        turn: Tensor | None,
        rotation: Rotation | None,
        gain: Tensor | None,
        args: QuantizationArgs,
    ) -> Tensor:
        scaled = x if gain is None else x / gain
        turned = scaled if rotation is None else rotation.apply(scaled)
        flat = turned.flatten(0, -2).float()
        error = (fake_quantize(flat, *dynamic_qparams(flat, args), args) - flat).to(x).reshape(x.shape)
        ctx.rotation, ctx.dtype = rotation, None if turn is None else turn.dtype
        ctx.save_for_backward(*((error, gain) if turn is not None else ()))
        back = error if rotation is None else rotation.apply_transposed(error)
        return x + (back if gain is None else back * gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """For y = x + g E R^T: dy, and for the turn ((g dy) R)^T E, summed over tokens and blocks."""
        (dy,), turn = gradients, None
        if ctx.needs_input_grad[1]:
            error, gain = ctx.saved_tensors
            turned = ctx.rotation.apply(dy if gain is None else dy * gain)
            order = ctx.rotation.block_size
            turn = turned.reshape(-1, order).t() @ error.reshape(-1, order)
            turn = turn.to(ctx.dtype)
        return dy, turn, None, None, None


def descend(
    rotations: Iterable[Tensor], gradients: Iterable[Tensor], *, step: int, steps: int, learning_rate: float
) -> list[Tensor]:
    """One Cayley step of every rotation; the learning rate falls as a cosine does.

    Args:
        rotations: orthogonal matrices R, [n, n] each.
        gradients: of the loss for their turns A, R exp(A), [n, n] each.
        step: from 0.
        steps: of the whole descent.
        learning_rate: of the first step.
    """
    rate = learning_rate * (1 + cos(pi * step / steps)) / 2
    pairs = zip(rotations, gradients, strict=True)
    return [cayley_step(r, r @ turn, learning_rate=rate) for r, turn in pairs]


def settled(rotation: Tensor) -> Tensor:
    """A learned rotation as it is folded: orthogonal in float64, [n, n]."""
    return orthogonalized(rotation)
