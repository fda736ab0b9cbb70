"""Tensors that the files of a model hold in another dtype than the model in memory: written again as they were stored.

A_log in float32, in a checkpoint of bfloat16 ── transformers ──> bfloat16 ── nothing changed it ──> float32
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coldpress.checkpoint.place import Place, Plain
from coldpress.errors import CheckpointError
from coldpress.source import Weights

_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def stored_otherwise(model: nn.Module, places: Mapping[str, Place], files: Weights) -> dict[str, str]:
    """Name of each such tensor to its name in the files.

    Raises:
        CheckpointError: the files hold whole or complex numbers, or codes, where the model has weights.
    """
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = places.get(name)
        if not isinstance(place, Plain):
            continue
        dtype = files.dtype(place.tensor)
        if tensor.is_floating_point() and dtype not in _NUMBERS:
            raise CheckpointError(
                f"tensor {place.tensor!r} has the dtype {str(dtype).removeprefix('torch.')} where a "
                f"{type(model).__name__} has weights, and config.json says of no quantization: it is another model's, "
                "or was quantized by a tool that did not write down how"
            )
        if dtype != tensor.dtype:
            found[name] = place.tensor
    return found


def as_stored(tensor: Tensor, files: Weights, name: str) -> Tensor:
    """The tensor as the files have it, if it is what that becomes in the tensor's dtype; else the tensor itself."""
    if files.shape(name) != tuple(tensor.shape):
        return tensor
    stored = files.read(name)
    return stored if torch.equal(stored.to(tensor.dtype), tensor.detach().to("cpu")) else tensor
