"""AWQ: channels are scaled so that rounding the weights that meet the most active ones changes outputs least."""

from coldpress_awq.mapping import AWQMapping
from coldpress_awq.modifier import AWQModifier

__all__ = ["AWQMapping", "AWQModifier"]
