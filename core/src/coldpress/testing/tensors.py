"""Random tensors that are the same on every machine."""

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers of this shape, drawn in float32 with a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_gram(width: int, *, tokens: int | None = None, seed: int = 1) -> Tensor:
    """The Gram matrix of inputs whose channels are correlated and differ in size, [I, I] float32.

    Args:
        width: inputs, I.
        tokens: T, four for each input if None; fewer than `width` give a singular matrix.
        seed: of the inputs.
    """
    x = draw(tokens or 4 * width, width, seed=seed) @ draw(width, width, seed=seed + 1)  # [T, I]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    x = x * torch.linspace(0.2, 3, width)[order]
    return x.t() @ x
