"""A model built without reading its weights, which are found on disk by transformers' own rules for names."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.checkpoint.place import Place, PlaceReader, Plain, expert_places, find_places
from coldpress.checkpoint.tie import settle_ties, tensor_names
from coldpress.errors import CheckpointError
from coldpress.experts import linearize_experts
from coldpress.models.dense import DenseCheckpoint
from coldpress.models.streaming import WeightStream
from coldpress.models.tie import separate
from coldpress.source import Weights

log = logging.getLogger(__name__)


class NotStreamable(Exception):  # noqa: N818 - not an error: the model is loaded into memory instead
    """Says why the weights of a model cannot be read stage by stage."""


def stream_model(
    checkpoint: DenseCheckpoint, *, dtype: Any, device: torch.device, trust_remote_code: bool = False
) -> WeightStream:
    """Build a model whose parameters are on the meta device, and know where each of them is on disk.

    Args:
        checkpoint: the model on disk.
        dtype: of the weights when they are read; "auto" is what the configuration says, or else the files.
        device: where weights and buffers are put.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        NotStreamable: it must be loaded into memory as a whole; says why.
        CheckpointError: a file is damaged, or a tensor is missing or has another shape; it is named.
        ModelError: transformers cannot build the model.
    """
    name, reader = checkpoint.name, checkpoint.weights
    model = checkpoint.empty(checkpoint.dtype(dtype), trust_remote_code=trust_remote_code)
    found = find_places(model, reader)
    _check_complete(model, found.places, name)
    _separate_what_differs(model, found.places, reader)
    linearize_experts(model)
    places = _shared_places(model, expert_places(model, found.places, reader))
    _check_shapes(model, places, checkpoint)
    _read_buffers(model, places, reader, device)
    model.config._name_or_path = name
    log.info("built %s: %s in %s; its weights are read stage by stage", name, type(model).__name__, model.dtype)
    return WeightStream(model.eval(), reader, places, device, found.extra)


def _check_complete(model: Any, places: Mapping[str, Place], called: str) -> None:
    """See that every tensor of the model is in the files under one of its names.

    Raises:
        NotStreamable: one is not, and the model's class says that this may be.
        CheckpointError: one is not.
    """
    missing = [names[0] for names in tensor_names(model).values() if not places.keys() & set(names)]
    if not missing:
        return
    allowed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    if any(re.search(pattern, missing[0]) for pattern in allowed):
        raise NotStreamable(f"the model computes {missing[0]!r} by itself")
    raise CheckpointError(
        f"{called!r} lacks {len(missing)} tensors of a {type(model).__name__}, the first is "
        f"{missing[0]!r}: the checkpoint is incomplete, or its configuration is another model's"
    )


def _separate_what_differs(model: Any, places: Mapping[str, Place], reader: Weights) -> None:
    """Untie parameters of the model that are two in the files, with two values, as transformers does."""
    for names in tensor_names(model).values():
        there = [name for name in names if isinstance(places.get(name), Plain)]
        for name in there[1:]:
            first, other = places[there[0]], places[name]
            assert isinstance(first, Plain)
            assert isinstance(other, Plain)
            if first != other and not torch.equal(reader.get(first.tensor), reader.get(other.tensor)):
                log.warning("%s and %s are one by the configuration and two in the files: untied", there[0], name)
                separate(model, [name])
    settle_ties(model)


def _shared_places(model: nn.Module, places: Mapping[str, Place]) -> dict[str, Place]:
    """Name of every parameter and saved buffer to its place; names that share a tensor share its place."""
    groups = tensor_names(model)
    found: dict[str, Place] = {}
    for names in groups.values():
        place = next(places[name] for name in names if name in places)
        found |= dict.fromkeys(names, place)
    return found


def _check_shapes(model: nn.Module, places: Mapping[str, Place], checkpoint: DenseCheckpoint) -> None:
    files = PlaceReader(checkpoint.weights)
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = places[name]
        found = files.shape(place)
        if found != tuple(tensor.shape):
            called = place.tensor if isinstance(place, Plain) else name
            raise CheckpointError(
                f"{checkpoint.name!r}: tensor {called!r} has the shape {found} where a "
                f"{type(model).__name__} of this configuration has {tuple(tensor.shape)}"
            )


def _read_buffers(model: nn.Module, places: Mapping[str, Place], reader: Weights, device: torch.device) -> None:
    """Give buffers their values: from the files where they are saved, else as they were computed."""
    files = PlaceReader(reader)
    for path, module in model.named_modules():
        for part, buffer in module.named_buffers(recurse=False):
            value: Tensor = buffer
            if part not in module._non_persistent_buffers_set:
                value = files.read(places[f"{path}.{part}" if path else part], buffer.dtype)
            module._buffers[part] = value.to(device, buffer.dtype)
