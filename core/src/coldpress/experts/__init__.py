"""Experts: the fused weights of a mixture of experts as linear layers, found and split by what they compute."""

from coldpress.experts.drop import Dropped, Rows, check_droppable, drop_experts
from coldpress.experts.few_tokens import FewTokens
from coldpress.experts.linear import Expert, LinearExperts
from coldpress.experts.linearize import Linearized, fused_state_dict, linear_experts, linearize_experts
from coldpress.experts.tokens import TokenCount, report_unseen, siblings
from coldpress.experts.usage import Usage, measure_usage
from coldpress.experts.watch import observed_experts, watched_experts

__all__ = [
    "Dropped",
    "Expert",
    "FewTokens",
    "LinearExperts",
    "Linearized",
    "Rows",
    "TokenCount",
    "Usage",
    "check_droppable",
    "drop_experts",
    "fused_state_dict",
    "linear_experts",
    "linearize_experts",
    "measure_usage",
    "observed_experts",
    "report_unseen",
    "siblings",
    "watched_experts",
]
