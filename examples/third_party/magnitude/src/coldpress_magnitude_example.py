"""Magnitude pruning: in each row, the weights nearest to zero become zero."""

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, lt
from torch import Tensor

from coldpress.plugin import PRUNES, Modifier, Stage, State, hookimpl


def prune(weight: Tensor, sparsity: float) -> Tensor:
    """Zero the share `sparsity` of each row that is smallest, [O, I] -> [O, I]."""
    drop = int(weight.shape[1] * sparsity)
    order = weight.abs().argsort(dim=1)  # [O, I], smallest first
    return weight.scatter(1, order[:, :drop], 0)


@frozen(kw_only=True, eq=False)
class MagnitudeExampleModifier(Modifier):
    """Prune each row to the given sparsity, without looking at data.

    Attributes:
        sparsity: share of the weights of a row to drop.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float = field(default=0.5, validator=[ge(0.0), lt(1.0)])

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Prune the layers of the stage."""
        for layer in self.layers(stage):
            state.set_weight(layer, prune(layer.weight, self.sparsity))
