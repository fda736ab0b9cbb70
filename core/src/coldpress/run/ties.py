"""Layers that share weights: which of them get weights of their own in a run, and whether they can."""

from collections.abc import Sequence

from torch import nn

from coldpress.checkpoint.tie import check_untying
from coldpress.modifier import Modifier
from coldpress.run.preflight import Claim
from coldpress.stage import Stage
from coldpress.state import State


def separate_layers(claims: Sequence[Claim], modifiers: Sequence[Modifier], model: nn.Module) -> list[str]:
    """Names of the layers that get weights of their own where they share them: what is claimed, or must be untied."""
    claimed = [layer.name for claim in claims for layer in claim.layers]
    untied = [name for modifier in modifiers for name in modifier.unties(Stage.whole(model))]
    return list(dict.fromkeys([*claimed, *untied]))


def check_ties(claims: Sequence[Claim], modifiers: Sequence[Modifier], state: State) -> None:
    """Refuse to untie what readers of the checkpoint will tie whatever it says.

    Raises:
        SchemeError: names the layer and what it is tied to.
    """
    untied = separate_layers((), modifiers, state.model)
    check_untying(state.model, separate_layers(claims, modifiers, state.model), [*state.plan, *untied])
