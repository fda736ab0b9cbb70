"""AutoRound: rounding offsets and ranges of a block's weights are learned by signed gradient descent."""

from coldpress_autoround.modifier import AutoRoundModifier

__all__ = ["AutoRoundModifier"]
