"""Distillation: a model is trained to say what its teacher says, and to compute what it computes."""

from coldpress_distillation.modifier import OutputDistillationModifier

__all__ = ["OutputDistillationModifier"]
