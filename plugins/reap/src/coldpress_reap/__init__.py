"""REAP: drop the experts of a mixture that add least to what their router makes of them."""

from coldpress_reap.modifier import REAPPruningModifier

__all__ = ["REAPPruningModifier"]
