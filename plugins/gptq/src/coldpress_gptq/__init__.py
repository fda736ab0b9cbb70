"""GPTQ: weights are rounded one column after the other, and later columns make up for the error of earlier ones."""

from coldpress_gptq.modifier import GPTQModifier

__all__ = ["GPTQModifier"]
