"""Dropping experts: whether it can be done, and doing it between the measuring pass and the one that compresses."""

from collections.abc import Mapping, Sequence
from functools import partial

from coldpress.experts import check_droppable, drop_experts
from coldpress.models.auto import build_outline
from coldpress.models.streaming import WeightStream
from coldpress.stage import find_layers
from coldpress.state import State


def keep_experts(state: State, kept: Mapping[str, Sequence[int]], weights: WeightStream | None) -> None:
    """Leave the model some of its experts; its layers must be planned anew.

    Args:
        state: of the run; layers have no line in its report any more.
        kept: name of each module of experts to the numbers of those that stay.
        weights: that are streamed; None where they are in memory.
    """
    for layer in find_layers(state.model.named_modules()):
        del state.report[layer.name]
    dropped = drop_experts(state.model, kept, partial(build_outline, type(state.model)))
    if weights is not None:
        weights.follow(dropped)
    state.forget_facts()


def check_fewer_experts(state: State, count: int) -> None:
    """Refuse a run whose decision could not be followed: a model of which not all modules can have so many experts.

    Args:
        state: of the run, before it measures anything.
        count: how many experts of each module would stay.

    Raises:
        ModelError: says what does not fit.
    """
    check_droppable(state.model, count, partial(build_outline, type(state.model)))
