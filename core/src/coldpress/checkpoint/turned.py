"""Joint tensors of experts that are on disk in another order of their numbers, as transformers' rules say.

memory    mlp.experts.gate_up_proj    gate's rows, then the other ones'
disk      mlp.experts.w13_weight      row by row, an Inkling
"""

from copy import deepcopy
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

_TROUBLE = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError)


@frozen(eq=False)
class Turned:
    """A tensor that is made of one of the files alone.

    Attributes:
        name: in memory.
        disk: its name in the files.
        model: what transformers' functions take for a model.
        rule: transformers' converter for loading, never used itself.
    """

    name: str
    disk: str
    model: Any
    rule: Any

    def to_disk(self, tensor: Tensor) -> Tensor:
        """The tensor as it is saved."""
        return _reverted(self.model, self.name, tensor)[1]

    def to_memory(self, tensor: Tensor) -> Tensor:
        """The tensor as it is loaded."""
        rule = deepcopy(self.rule)
        rule.add_tensor(self.name, self.disk, rule.source_patterns[0], tensor)
        (made,) = rule.convert(self.name, model=self.model, config=self.model.config).values()
        found: Tensor = made[0] if isinstance(made, list) else made
        return found


def turned_tensor(name: str, sample: Tensor, model: Any, rule: Any) -> Turned | None:
    """How a joint tensor is turned, if one of the files is all that it is made of, and both ways are known.

    Args:
        name: in memory.
        sample: a small tensor with as many dimensions, whose numbers differ.
        model: what transformers' functions take for a model.
        rule: transformers' converter that saves it.
    """
    if len(rule.source_patterns) != 1 or len(rule.target_patterns) != 1:
        return None
    try:
        disk, saved = _reverted(model, name, sample)
        found = Turned(name, disk, model, rule.reverse_transform())
        sound = torch.equal(found.to_memory(saved), sample)
    except _TROUBLE:
        return None
    return found if sound else None


def _reverted(model: Any, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    ((disk, saved),) = revert_weight_conversion(model, {name: tensor}).items()
    return disk, saved.contiguous()
