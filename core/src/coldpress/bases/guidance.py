"""Guidance: tokens that count by what an error in their outputs costs the model's loss (GuidedQuant)."""

from typing import Any, TypeVar

from attrs import evolve

from coldpress.calibration.statistics import TokenWeight
from coldpress.statistic import LABELS, GradientStatistic, Labels, Statistic

S = TypeVar("S", bound=Statistic)

GUIDANCE: tuple[Labels | None, ...] = (None, *LABELS)
"""What a setting `guidance` may be: nothing, or the labels of the loss."""


def guided(statistic: S, guidance: Labels | None, *, group: int = 0, groups: int = 1) -> S:
    """The statistic of inputs, which has a field `weights`, its tokens weighted where there is guidance.

    Args:
        statistic: of inputs.
        guidance: the labels of the loss; None weights all tokens alike.
        group: whose outputs say what a token counts, of so many `groups` that each layer's are cut into.
        groups: of outputs.
    """
    weights: dict[str, Any] = {} if guidance is None else {"weights": _weight(guidance, group, groups)}
    return evolve(statistic, **weights)


def guiding(guidance: Labels | None, *, groups: int = 1) -> tuple[GradientStatistic, ...]:
    """What `Needs.loss_gradients` must name for statistics that are `guided`, in all of their groups."""
    return () if guidance is None else tuple(_weight(guidance, group, groups) for group in range(groups))


def _weight(labels: Labels, group: int, groups: int) -> TokenWeight:
    return TokenWeight(labels=labels, group=group, groups=groups)
