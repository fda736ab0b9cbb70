"""Magnitude pruning: the weights nearest to zero become zero; and a modifier that keeps them there."""

from coldpress_magnitude.constant import ConstantPruningModifier
from coldpress_magnitude.modifier import MagnitudePruningModifier

__all__ = ["ConstantPruningModifier", "MagnitudePruningModifier"]
