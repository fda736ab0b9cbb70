"""SpinQuant: rotations spread outliers of activations over all channels, so that few bits hold them."""

from coldpress_spinquant.modifier import SpinQuantModifier

__all__ = ["SpinQuantModifier"]
