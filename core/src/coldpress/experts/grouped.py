"""One projection of all experts in a module of its own, called with tokens that lie expert by expert: JetMoE's.

Legend: E experts, O out, I in, T tokens, sorted by expert.
"""

import inspect
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.experts.fused import fused_weights
from coldpress.experts.layout import ONLY, Layout, Slot

_OUT, _IN = 5, 4  # of a trial
_TROUBLE = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError)


def grouped_layout(module: nn.Module) -> Layout | None:
    """How a module multiplies groups of tokens by the parts of its only tensor; None where it does nothing like that.

    It is called with tokens, [T, I], and how many of them belong to each expert, as whole numbers or as a tensor.
    """
    weights, parameters = fused_weights(module), dict(module.named_parameters())
    if len(weights) != 1 or parameters.keys() != weights.keys() or any(True for _ in module.children()):
        return None
    if len(inspect.signature(module.forward).parameters) != 2:
        return None
    ((name, weight),) = weights.items()
    slots = (Slot(name), Slot(name, transposed=True))
    return next(
        (Layout({ONLY: slot}, order=("hidden", "sizes")) for slot in slots if _agrees(module, slot, weight)), None
    )


def _agrees(module: nn.Module, slot: Slot, weight: Tensor) -> bool:
    """Whether a copy with small weights computes what a slot says."""
    generator, count = torch.Generator().manual_seed(0), len(weight)
    shape = (count, _IN, _OUT) if slot.transposed else (count, _OUT, _IN)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    stand_in: Any = copy(module)
    stand_in._parameters = {slot.parameter: nn.Parameter(drawn, requires_grad=False)}
    sizes = [number % 3 for number in range(count)]
    x = torch.randn(sum(sizes), _IN, generator=generator, dtype=torch.float64)
    parts = zip(slot.weights({slot.parameter: drawn}), torch.split(x, sizes), strict=True)
    expected = torch.cat([own @ part.T for part, own in parts])
    for given in (sizes, torch.tensor(sizes)):
        try:
            output = stand_in(x, given)
        except _TROUBLE:
            continue
        if isinstance(output, Tensor) and output.shape == expected.shape and torch.allclose(output, expected):
            return True
    return False
