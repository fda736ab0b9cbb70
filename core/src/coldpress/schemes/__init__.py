"""What a tensor becomes: number formats, `QuantizationArgs`, `Scheme` and the presets."""

from coldpress.schemes.describe import describe
from coldpress.schemes.fit import check_fit
from coldpress.schemes.number_format import FloatFormat, IntegerFormat, NumberFormat, number_format
from coldpress.schemes.presets import preset, preset_names
from coldpress.schemes.quantization_args import QuantizationArgs, is_microscaled, may_be_signed
from coldpress.schemes.scheme import Scheme, with_float16_scales
from coldpress.schemes.support import check_supported

__all__ = [
    "FloatFormat",
    "IntegerFormat",
    "NumberFormat",
    "QuantizationArgs",
    "Scheme",
    "check_fit",
    "check_supported",
    "describe",
    "is_microscaled",
    "may_be_signed",
    "number_format",
    "preset",
    "preset_names",
    "with_float16_scales",
]
