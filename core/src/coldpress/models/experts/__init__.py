"""Experts: the fused weights of a mixture of experts as linear layers, found and split by what they compute."""

from coldpress.models.experts.linear import Expert, LinearExperts
from coldpress.models.experts.linearize import Linearized, linearize_experts
from coldpress.models.experts.watch import watched_experts

__all__ = ["Expert", "LinearExperts", "Linearized", "linearize_experts", "watched_experts"]
