"""The numbers a weight or an activation may become: int2 to int8, float8 (E4M3), float6 (E2M3) and float4 (E2M1).

The registry is open: a plugin offers more under `coldpress.number_formats`, one `NumberFormat` an entry point,
named `<type><num_bits>`, for example `int1` or `float5`.
"""

from functools import lru_cache

import torch
from attrs import frozen
from torch import Tensor

from coldpress.errors import BrokenPluginError, SchemeError, UnknownPluginError, must_implement
from coldpress.registry import available, find
from coldpress.schemes.quantization_args import QuantizationArgs
from coldpress.spelling import suggest

_EXPONENTS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""Dtype to an integer of its width, and the bits of its exponent."""


@frozen(kw_only=True)
class NumberFormat:
    """A grid of numbers.

    Attributes:
        name: `<type><num_bits>`, which is also its name as a plugin.
        num_bits: bits of one number on disk.
        minimum: the smallest number of the grid.
        maximum: the largest number of the grid.
        code_dtype: a torch dtype that holds every number of the grid exactly.
    """

    name: str
    num_bits: int
    minimum: float
    maximum: float
    code_dtype: torch.dtype

    def round(self, x: Tensor) -> Tensor:
        """The nearest number of the grid, ties to even; beyond the ends, the end.  Same shape and dtype as `x`."""
        raise must_implement(self, "round(x)")

    def round_(self, x: Tensor) -> Tensor:
        """`round(x)`, in the memory of `x`."""
        return x.copy_(self.round(x))

    def spacing(self, x: Tensor) -> Tensor:
        """The distance of the numbers of the grid that `x` lies between, which learned rounding moves it by.

        Same shape and dtype as `x`; beyond the ends of the grid, as at the end.
        """
        raise must_implement(self, "spacing(x)")

    def encode(self, x: Tensor) -> Tensor:
        """`round(x)` in the code dtype."""
        return self.round(x).to(self.code_dtype)


@frozen(kw_only=True)
class IntegerFormat(NumberFormat):
    """The integers between two ends."""

    def round(self, x: Tensor) -> Tensor:
        """The nearest integer of the grid, ties to even."""
        return x.clamp(self.minimum, self.maximum).round_()

    def round_(self, x: Tensor) -> Tensor:
        """`round(x)`, in the memory of `x`."""
        return x.clamp_(self.minimum, self.maximum).round_()

    def spacing(self, x: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(x)


@frozen(kw_only=True)
class FloatFormat(NumberFormat):
    """Floating-point numbers with subnormals and without infinities.

    Attributes:
        exponent_bits: width of the exponent.
        mantissa_bits: width of the mantissa, without the leading one.
        native: `code_dtype` is this very grid, so a cast rounds.
    """

    exponent_bits: int
    mantissa_bits: int
    native: bool = False

    def round(self, x: Tensor) -> Tensor:
        """The nearest number of the grid, ties to the even mantissa."""
        if self.native:
            return self.encode(x).to(x.dtype)
        x = x.clamp(self.minimum, self.maximum)
        step = self._step(x)  # [*x]
        return x.div_(step).round_().mul_(step)  # exact but for round_: the steps are powers of two

    def spacing(self, x: Tensor) -> Tensor:
        """2^(floor(log2 |x|) - mantissa bits), and that of the smallest normal number below it."""
        return self._step(x.clamp(self.minimum, self.maximum))

    def _step(self, x: Tensor) -> Tensor:
        least = 2 - 2 ** (self.exponent_bits - 1)  # exponent of the smallest normal number
        return _power_below(x).clamp_(min=2.0**least).mul_(2.0**-self.mantissa_bits)

    def encode(self, x: Tensor) -> Tensor:
        """`round(x)` in the code dtype."""
        if self.native:
            return x.clamp(self.minimum, self.maximum).to(self.code_dtype)
        return self.round(x).to(self.code_dtype)


def _power_below(x: Tensor) -> Tensor:
    """The largest power of two that is not above |x|: its exponent bits alone; 0 or less than it for subnormal x."""
    found = _EXPONENTS.get(x.dtype)
    if found is None:
        return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 1)
    integer, mask = found
    return (x.contiguous().view(integer) & mask).view(x.dtype)


def _integer(num_bits: int) -> IntegerFormat:
    end = 2 ** (num_bits - 1)
    return IntegerFormat(name=f"int{num_bits}", num_bits=num_bits, minimum=-end, maximum=end - 1, code_dtype=torch.int8)


BUILT_IN: dict[str, NumberFormat] = {f"int{num_bits}": _integer(num_bits) for num_bits in range(2, 9)}
BUILT_IN["float8"] = FloatFormat(
    name="float8",
    num_bits=8,
    minimum=-448.0,
    maximum=448.0,
    code_dtype=torch.float8_e4m3fn,
    exponent_bits=4,
    mantissa_bits=3,
    native=True,
)
BUILT_IN["float6"] = FloatFormat(
    name="float6",
    num_bits=6,
    minimum=-7.5,
    maximum=7.5,
    code_dtype=torch.float8_e4m3fn,  # holds 0, 1/8, ... 2, 9/4, ... 4, 9/2, ... 15/2 exactly
    exponent_bits=2,
    mantissa_bits=3,
)
BUILT_IN["float4"] = FloatFormat(
    name="float4",
    num_bits=4,
    minimum=-6.0,
    maximum=6.0,
    code_dtype=torch.float8_e4m3fn,  # holds 0, .5, 1, 1.5, 2, 3, 4, 6 exactly
    exponent_bits=2,
    mantissa_bits=1,
)


def number_format(args: QuantizationArgs) -> NumberFormat:
    """The grid that these arguments name: built in, or of an installed plugin.

    Raises:
        SchemeError: no installed plugin has it.
        PluginError: the plugin that offers it cannot be used.
    """
    name = f"{args.type}{args.num_bits}"
    return BUILT_IN.get(name) or _from_plugin(name)


@lru_cache
def _from_plugin(name: str) -> NumberFormat:
    try:
        found = find("number_formats", name)
    except UnknownPluginError as error:
        known = [*BUILT_IN, *(plugin.name for plugin in available("number_formats"))]
        raise SchemeError(
            f"no number format is called {name!r}{suggest(name, known)} (there are: {', '.join(known)}); "
            f"a plugin may offer it as entry point {name!r} of coldpress.number_formats"
        ) from error
    if not isinstance(found, NumberFormat):
        raise BrokenPluginError(f"the number format {name!r} is a {type(found).__name__}, not a NumberFormat")
    return found
