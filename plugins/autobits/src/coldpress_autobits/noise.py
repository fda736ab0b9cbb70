"""Noise: the mean squares of what rounding does to a layer's inputs, channel by channel."""

import torch
from attrs import frozen
from torch import Tensor

from coldpress.numerics import calculate_global_scale, calculate_qparams, dynamic_qparams, fake_quantize
from coldpress.plugin import Average, QuantizationArgs, Statistic


@frozen(kw_only=True)
class InputNoise(Statistic):
    """Squared errors of inputs on the grid of a scheme; static ones are taken to have the range of each batch.

    Attributes:
        args: of the inputs.
    """

    args: QuantizationArgs

    def update(self, value: Average | None, x: Tensor) -> Average:
        """Add the tokens, [T, I]."""
        seen = Average((self.rounded(x).float() - x.float()).square().sum(0).double(), len(x))
        return seen if value is None else self.merge(value, seen)

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return Average(a.total + b.total, a.count + b.count)

    def rounded(self, x: Tensor) -> Tensor:
        """Inputs, [T, I], on the grid; where no token comes, as they are."""
        args = self.args
        if not len(x):
            return x
        if args.dynamic is False:
            low, high = x.amin().clamp(max=0).reshape(1), x.amax().clamp(min=0).reshape(1)
            return fake_quantize(x, *calculate_qparams(low, high, args), args)
        factor = calculate_global_scale(x.abs().amax(), args) if args.dynamic == "local" else None
        scale, point = dynamic_qparams(x, args, global_scale=factor)
        return fake_quantize(
            x, scale, point, args, global_scale=torch.as_tensor(factor) if factor is not None else None
        )
