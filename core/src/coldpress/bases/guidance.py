"""Guidance: tokens that count by what an error in their outputs costs the model's loss (GuidedQuant)."""

from typing import Any, TypeVar

from attrs import evolve

from coldpress.calibration.statistics import TokenWeight
from coldpress.statistic import LABELS, GradientStatistic, Labels, Statistic

S = TypeVar("S", bound=Statistic)

GUIDANCE: tuple[Labels | None, ...] = (None, *LABELS)
"""What a setting `guidance` may be: nothing, or the labels of the loss."""


def guided(statistic: S, guidance: Labels | None) -> S:
    """The statistic of inputs, which has a field `weights`, its tokens weighted where there is guidance."""
    weights: dict[str, Any] = {} if guidance is None else {"weights": TokenWeight(labels=guidance)}
    return evolve(statistic, **weights)


def guiding(guidance: Labels | None) -> tuple[GradientStatistic, ...]:
    """What `Needs.loss_gradients` must name for statistics that are `guided`."""
    return () if guidance is None else (TokenWeight(labels=guidance),)
