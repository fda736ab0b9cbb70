"""QuIP: layers are rotated on both sides, so that weights and inputs are incoherent, and few bits hold them."""

from coldpress_quip.modifier import QuIPModifier

__all__ = ["QuIPModifier"]
