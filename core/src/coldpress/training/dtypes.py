"""The dtypes of a model's tensors, which is trained in float32 and is to have its own again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Those of all parameters and buffers, by name."""
    return {name: tensor.dtype for name, tensor in _tensors(model)}


def restore_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give each tensor the dtype of its name, in place; those that have no such name keep theirs."""
    for name, tensor in _tensors(model):
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
