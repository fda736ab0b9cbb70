"""Wanda: drop the weights whose size, times the norm of what they are multiplied by, is smallest."""

from coldpress_wanda.modifier import WandaModifier

WandaPruningModifier = WandaModifier  # what llm-compressor calls it

__all__ = ["WandaModifier", "WandaPruningModifier"]
