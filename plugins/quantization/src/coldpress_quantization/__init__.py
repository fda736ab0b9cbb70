"""Round to nearest: every weight goes to the closest point of its grid."""

from coldpress_quantization.modifier import QuantizationModifier

__all__ = ["QuantizationModifier"]
