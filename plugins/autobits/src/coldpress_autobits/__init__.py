"""AutoBits: which layer gets how many bits, so that the model's predictions change least in a given size."""

from coldpress_autobits.modifier import AutoBitsModifier

__all__ = ["AutoBitsModifier"]
