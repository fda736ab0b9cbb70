"""Experts: the fused weights of a mixture of experts as linear layers, found and split by what they compute."""

from coldpress.experts.linear import Expert, LinearExperts
from coldpress.experts.linearize import Linearized, fused_state_dict, linear_experts, linearize_experts
from coldpress.experts.tokens import TokenCount, report_unseen, siblings
from coldpress.experts.watch import watched_experts

__all__ = [
    "Expert",
    "LinearExperts",
    "Linearized",
    "TokenCount",
    "fused_state_dict",
    "linear_experts",
    "linearize_experts",
    "report_unseen",
    "siblings",
    "watched_experts",
]
