"""What counts as a linear layer, and on which side of its weight the inputs are.

`nn.Linear` stores [O, I]; transformers' `Conv1D` (GPT-2) stores [I, O].  Nothing else in this room asks.
"""

from torch import nn

INPUT_DIM = {"Linear": 1, "Conv1D": 0}  # class name in the MRO -> dimension of the weight that meets the input


def is_linear(module: nn.Module) -> bool:
    """Whether the module multiplies its input by a 2-D weight of its own."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and any(c.__name__ in INPUT_DIM for c in type(module).__mro__)


def input_dim(module: nn.Module) -> int:
    """The dimension of a linear layer's weight that holds input channels: 1, or 0 for `Conv1D`."""
    return next(INPUT_DIM[c.__name__] for c in type(module).__mro__ if c.__name__ in INPUT_DIM)


def output_dim(module: nn.Module) -> int:
    """The dimension of a linear layer's weight that holds output channels: 0, or 1 for `Conv1D`."""
    return 1 - input_dim(module)
