"""Noise: the mean squares of what rounding does to a layer's inputs, channel by channel."""

import torch
from attrs import field, frozen
from torch import Tensor

from coldpress.numerics import calculate_global_scale, calculate_qparams, dynamic_qparams, fake_quantize
from coldpress.plugin import QuantizationArgs, Statistic


@frozen(eq=False)
class NoiseValue:
    """What `InputNoise` has seen.

    Attributes:
        total: sum of squared errors, [I] float64.
        count: of tokens.
    """

    total: Tensor = field()
    count: int = field()

    @property
    def mean(self) -> Tensor:
        """Mean squares, [I] float32."""
        return (self.total / self.count).float()


@frozen(kw_only=True)
class InputNoise(Statistic):
    """Squared errors of inputs on the grid of a scheme; static ones are taken to have the range of each batch.

    Attributes:
        args: of the inputs.
    """

    args: QuantizationArgs

    def update(self, value: NoiseValue | None, x: Tensor) -> NoiseValue:
        """Add the tokens, [T, I]."""
        error = (self._rounded(x).float() - x.float()).square().sum(0).double()  # [I]
        return NoiseValue(error, len(x)) if value is None else NoiseValue(value.total + error, value.count + len(x))

    def merge(self, a: NoiseValue, b: NoiseValue) -> NoiseValue:
        """Add both."""
        return NoiseValue(a.total + b.total, a.count + b.count)

    def _rounded(self, x: Tensor) -> Tensor:
        args = self.args
        if args.dynamic is False:
            low, high = x.amin().clamp(max=0).reshape(1), x.amax().clamp(min=0).reshape(1)
            return fake_quantize(x, *calculate_qparams(low, high, args), args)
        factor = calculate_global_scale(x.abs().amax(), args) if args.dynamic == "local" else None
        scale, point = dynamic_qparams(x, args, global_scale=factor)
        return fake_quantize(
            x, scale, point, args, global_scale=torch.as_tensor(factor) if factor is not None else None
        )
