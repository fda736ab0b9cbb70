"""SmoothQuant: outliers of activations move into weights, where they are easier to quantize."""

from coldpress_smoothquant.modifier import LogarithmicEqualizationModifier, SmoothQuantModifier

__all__ = ["LogarithmicEqualizationModifier", "SmoothQuantModifier"]
