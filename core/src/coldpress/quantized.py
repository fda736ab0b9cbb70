"""Quantized: a layer as codes and scales, and how a layer in memory becomes that again."""

from collections.abc import Iterator
from typing import Any

import torch
from attrs import asdict, evolve, frozen
from torch import Tensor, nn

from coldpress.numerics import check_codes, check_input_qparams, check_qparams, dequantize, dequantized_rows, quantize
from coldpress.schemes import QuantizationArgs, Scheme

_ENCODING = "coldpress_encoding"  # attribute of a module


@frozen(eq=False)
class Quantized:
    """A layer as a checkpoint keeps it; the shapes of scales follow the strategy of the scheme.

    Attributes:
        scheme: how weights and inputs are quantized.
        codes: points of the number format's grid, [O, I]; None when only the inputs are quantized.
        scale: of the weights.
        zero_point: of the weights, the shape of `scale`; zeros when symmetric.
        global_scale: of the weights' scales, [1].
        input_scale: of static inputs.
        input_zero_point: of static inputs, the shape of `input_scale`.
        input_global_scale: of the inputs' scales, [1].
    """

    scheme: Scheme
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None
    input_scale: Tensor | None = None
    input_zero_point: Tensor | None = None
    input_global_scale: Tensor | None = None

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weights that the codes stand for, [O, I], computed in the wider of this dtype and that of the scales."""
        return dequantize(*self._stored(dtype), dtype=dtype, global_scale=self.global_scale)

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """`weight`, a few rows at a time: which, and what their codes stand for, [rows, I]."""
        return dequantized_rows(*self._stored(dtype), dtype=dtype, global_scale=self.global_scale)

    def _stored(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, QuantizationArgs]:
        assert self.scheme.weights is not None
        assert self.codes is not None
        assert self.scale is not None
        wide = torch.promote_types(self.scale.dtype, dtype)
        return self.codes, self.scale.to(wide), self.zero_point, self.scheme.weights

    def check(self, shape: tuple[int, ...]) -> None:
        """See that codes, scales and zero points are what the scheme implies for a weight of this shape, (O, I).

        Raises:
            ValueError: says what is wrong.
        """
        args = self.scheme.weights
        if args is None:
            if self.codes is not None or self.scale is not None:
                raise ValueError("there are codes or scales of the weights, and its scheme does not quantize weights")
        elif self.codes is None:
            raise ValueError("there are no codes, and its scheme quantizes the weights")
        else:
            check_codes(self.codes, args, shape)
            check_qparams(self.scale, self.zero_point, args, shape, global_scale=self.global_scale)
        inputs = self.input_scale, self.input_zero_point, self.input_global_scale
        try:
            check_input_qparams(*inputs, self.scheme.input_activations)
        except ValueError as error:
            raise ValueError(f"of the inputs, {error}") from error


@frozen(eq=False)
class Encoding:
    """How the weight of a layer was encoded; it stays on the module, so that a layer in memory can be saved later.

    Attributes:
        quantized: without codes, which are found again from the weight.
        dtype: of the weight when it was quantized.
        shape: of the weight, (O, I).
    """

    quantized: Quantized
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, quantized: Quantized, weight: Tensor) -> "Encoding":
        """How a weight, [O, I], was encoded."""
        return cls(evolve(quantized, codes=None), weight.dtype, tuple(weight.shape))

    def encode(self, weight: Tensor) -> Quantized | None:
        """The layer with the codes of its weight; None where the weight is no longer what codes stand for.

        The nearest code of what a code stands for is that code, or another one that stands for the same.

        Args:
            weight: [O, I], in whatever dtype and wherever the model is by now.
        """
        args = self.quantized.scheme.weights
        if args is None:
            return _moved(self.quantized, weight.device)
        if tuple(weight.shape) != self.shape:
            return None
        quantized = _moved(self.quantized, weight.device)
        assert quantized.scale is not None
        wide = torch.promote_types(self.dtype, torch.float32)
        codes = quantize(
            weight.to(wide),
            quantized.scale.to(wide),
            None if args.symmetric else quantized.zero_point,  # adding zero would lose the sign of -0.0
            args,
            global_scale=quantized.global_scale,
        )
        found = evolve(quantized, codes=codes)
        return found if torch.equal(found.weight(self.dtype).to(weight.dtype), weight) else None


def set_encoding(module: nn.Module, quantized: Quantized | None, weight: Tensor) -> None:
    """Keep on a module how its weight, [O, I], was encoded; None forgets it."""
    vars(module).pop(_ENCODING, None)
    if quantized is not None:
        vars(module)[_ENCODING] = Encoding.of(quantized, weight)


def encoding_of(module: nn.Module) -> Encoding | None:
    """How the weight of a module was encoded; None where it was not."""
    found: Encoding | None = vars(module).get(_ENCODING)
    return found


def _moved(quantized: Quantized, device: torch.device) -> Quantized:
    changes: dict[str, Any] = {
        name: value.to(device) for name, value in asdict(quantized, recurse=False).items() if isinstance(value, Tensor)
    }
    return evolve(quantized, **changes)
