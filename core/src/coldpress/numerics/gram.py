"""Gram matrices: sums of outer products of tokens, in float32."""

from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """The Gram matrix x^T x of tokens, [T, I] -> [I, I] float32, symmetric."""
    values = x.float()
    product = values.t() @ values  # [I, I]
    return product.add_(product.t().clone()).mul_(0.5)
