"""Layers that share weights: which of them get weights of their own in a run, and whether they can."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from coldpress.checkpoint.tie import check_untying
from coldpress.models.tie import untie
from coldpress.modifier import Modifier
from coldpress.run.preflight import Claim
from coldpress.stage import Stage
from coldpress.state import State

log = logging.getLogger(__name__)


def untie_layers(claims: Sequence[Claim], modifiers: Sequence[Modifier], state: State) -> None:
    """Give layers weights of their own where they share them; the report says with what, and the bytes that it adds."""
    names, model = separate_layers(claims, modifiers, state.model), state.model
    sharing = _sharing(model, names)
    for name in untie(model, names):
        weight: Any = model.get_submodule(name).weight
        other, nbytes = sharing[name], weight.numel() * weight.element_size()
        state.report[name].notes |= {"untied_from": other, "untied_bytes": nbytes}
        log.info("%s is no longer tied to %s: %d bytes more, before it is compressed", name, other, nbytes)


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


def _sharing(model: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """Another module with the weight of each layer; nothing where there is none."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        owners.setdefault(id(module._parameters.get("weight")), []).append(name)
    weights = {name: model.get_submodule(name)._parameters.get("weight") for name in layers}
    return {
        name: "" if weight is None else next((other for other in owners[id(weight)] if other != name), "")
        for name, weight in weights.items()
    }
