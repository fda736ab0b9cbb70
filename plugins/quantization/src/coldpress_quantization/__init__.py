"""Round to nearest: every weight goes to the closest point of its grid; and training with weights that are there."""

from coldpress_quantization.modifier import QuantizationModifier
from coldpress_quantization.training import QATModifier

__all__ = ["QATModifier", "QuantizationModifier"]
