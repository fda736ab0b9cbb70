"""Usage: how many tokens a router sends each expert, and what these experts add.

Legend: T tokens, E experts; g the weight that a router gives an expert's output f.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from statistics import mean
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor, nn

from coldpress.calibration.batch import mask_for, token_masks
from coldpress.experts.linearize import linear_experts
from coldpress.routed import routed_tapped


@frozen
class Usage:
    """What calibration data make of the experts of one module.

    Attributes:
        name: of the module.
        tokens: that the router sent to each expert, padding excluded.
        saliency: of each expert, the mean of g |f| over these tokens; 0 where there were none.
    """

    name: str
    tokens: tuple[int, ...]
    saliency: tuple[float, ...]

    def busiest(self) -> float:
        """Tokens of the busiest expert over those of an average one: 1 where the load is balanced."""
        average = mean(self.tokens)
        return max(self.tokens) / average if average else 0.0

    def unreached(self) -> int:
        """How many experts no token was sent to."""
        return sum(not count for count in self.tokens)


@define
class _Sums:
    """Tokens, and g |f| summed over them, of each expert, [E] both, float64."""

    masks: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    worth: Tensor | None = None

    def see(self, table: Tensor) -> None:
        """Take in a table as `RoutedTokens` describes it, [T, E, 2]."""
        mask = mask_for(table.new_empty(len(table), 0), self.masks)
        gate, norm = (table if mask is None else table[mask.flatten().to(table.device)]).double().unbind(-1)
        sent = norm >= 0  # [T, E]
        tokens, worth = sent.sum(0).double(), (gate * norm * sent).sum(0)
        self.tokens = tokens if self.tokens is None else self.tokens + tokens
        self.worth = worth if self.worth is None else self.worth + worth


def measure_usage(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[Usage]:
    """Run a model on batches, and see what its routers send to which experts.

    Args:
        model: whose experts are linear layers; modules of experts that tokens are not routed to are left out.
        batches: keyword arguments of its forward.
    """
    routed = {name: module for name, module in linear_experts(model).items() if module.layout.is_routed}
    sums = {name: _Sums() for name in routed}
    with ExitStack() as taps, torch.no_grad():
        for name, module in routed.items():
            taps.enter_context(routed_tapped(module, sums[name].see))
        for batch in batches:
            for one in sums.values():
                one.masks = token_masks(batch)
            model(**batch)
    return [_usage(name, one) for name, one in sums.items() if one.tokens is not None]


def _usage(name: str, sums: _Sums) -> Usage:
    assert sums.tokens is not None
    assert sums.worth is not None
    mean_worth = sums.worth / sums.tokens.clamp(min=1)
    return Usage(name, tuple(int(count) for count in sums.tokens.tolist()), tuple(mean_worth.tolist()))
