"""How often a tensor was changed in place."""

from torch import Tensor


def version(tensor: Tensor) -> int:
    """A number that grows with every change in place; 0 for tensors of inference mode, which do not count."""
    return 0 if tensor.is_inference() else tensor._version
