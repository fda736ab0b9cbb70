"""A modifier of a user's own."""

import torch
from attrs import frozen

from coldpress.plugin import Modifier, Needs, Stage, State, hookimpl


@frozen(kw_only=True, eq=False)
class Halves(Modifier):
    """Halve the weights.

    Attributes:
        factor: that weights are multiplied with.
    """

    factor: float = 0.5

    def needs(self) -> Needs:
        return Needs(data=False)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in stage.layers(self.targets, self.ignore):
            with torch.no_grad():
                layer.weight.copy_(layer.weight * self.factor)


Needs(dta=True)  # wrong


def names(stage: Stage) -> list[str]:
    return [layer.nam for layer in stage.layers(["Linear"])]  # wrong
