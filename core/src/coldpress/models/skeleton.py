"""A model built from a folder without reading its weights, which are found in its files by transformers' own rules."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.checkpoint import CheckpointReader
from coldpress.checkpoint.place import Place, PlaceReader, Plain, expert_places, find_places
from coldpress.errors import CheckpointError, ModelError
from coldpress.experts import linearize_experts
from coldpress.models.auto import build_model
from coldpress.models.loading import load_config, read_generation_settings
from coldpress.models.streaming import WeightStream, without_weights
from coldpress.models.tie import separate

log = logging.getLogger(__name__)


class NotStreamable(Exception):  # noqa: N818 - not an error: the model is loaded into memory instead
    """Says why the weights of a model cannot be read stage by stage."""


def stream_model(
    folder: Path,
    *,
    name: str,
    dtype: Any,
    device: torch.device,
    trust_remote_code: bool = False,
    config: str | None = None,
) -> WeightStream:
    """Build a model whose parameters are on the meta device, and know where each of them is in the files.

    Args:
        folder: with config.json and safetensors files.
        name: what the user called it.
        dtype: of the weights when they are read; "auto" is what the configuration says, or else the files.
        device: where weights and buffers are put.
        trust_remote_code: run Python code that comes with the model.
        config: folder, JSON file or hub id of a configuration to use instead of the folder's.

    Raises:
        NotStreamable: it must be loaded into memory as a whole; says why.
        CheckpointError: a file is damaged, or a tensor is missing or has another shape; it is named.
        ModelError: transformers cannot build the model.
    """
    if next(folder.glob("*.safetensors"), None) is None:
        raise NotStreamable("its weights are not in safetensors files")
    reader = CheckpointReader(folder)
    reader.check()
    settings = load_config(config or str(folder), trust_remote_code=trust_remote_code)
    if dtype == "auto":
        dtype = getattr(settings, "dtype", None) or _first_floating(reader)
    model = _build(folder, settings, dtype=dtype, trust_remote_code=trust_remote_code)
    found = find_places(model, reader)
    _check_complete(model, found.places, reader)
    _separate_what_differs(model, found.places, reader)
    linearize_experts(model)
    places = _shared_places(model, expert_places(model, found.places, reader))
    _check_shapes(model, places, reader)
    _read_buffers(model, places, reader, device)
    model.config._name_or_path = name
    log.info("built %s: %s in %s; its weights are read stage by stage", name, type(model).__name__, model.dtype)
    return WeightStream(model.eval(), reader, places, device, found.extra)


def _build(folder: Path, config: Any, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The model on the meta device; parameters that its class keeps in float32 are in float32."""
    try:
        with without_weights():
            model = build_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
        read_generation_settings(model, folder)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"transformers cannot build the model of {str(folder)!r}: {first}") from error
    _keep_float32(model, dtype)
    return model


def _keep_float32(model: Any, dtype: torch.dtype) -> None:
    """Give parameters the dtype that transformers reads them in, where that is not the model's."""
    patterns = {name.replace("*", ".*") for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()}
    if dtype == torch.float16:
        patterns |= {name.replace("*", ".*") for name in getattr(model, "_keep_in_fp32_modules", None) or ()}
    if not patterns or dtype not in (torch.float16, torch.bfloat16):
        return
    kept = re.compile("|".join(f"({pattern})" for pattern in sorted(patterns)))
    for name, parameter in model.named_parameters():
        if kept.search(name):
            parameter.data = parameter.data.float()


def _first_floating(reader: CheckpointReader) -> torch.dtype:
    return next((reader.dtype(n) for n in reader.names() if reader.dtype(n).is_floating_point), torch.float32)


def _check_complete(model: Any, places: Mapping[str, Place], reader: CheckpointReader) -> None:
    """See that every tensor of the model is in the files under one of its names.

    Raises:
        NotStreamable: one is not, and the model's class says that this may be.
        CheckpointError: one is not.
    """
    missing = [names[0] for names in _groups(model).values() if not places.keys() & set(names)]
    if not missing:
        return
    allowed = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    if any(re.search(pattern, missing[0]) for pattern in allowed):
        raise NotStreamable(f"the model computes {missing[0]!r} by itself")
    raise CheckpointError(
        f"{str(reader.folder)!r} lacks {len(missing)} tensors of a {type(model).__name__}, the first is "
        f"{missing[0]!r}: the checkpoint is incomplete, or its config.json is another model's"
    )


def _separate_what_differs(model: Any, places: Mapping[str, Place], reader: CheckpointReader) -> None:
    """Untie parameters of the model that are two in the files, with two values, as transformers does."""
    for names in _groups(model).values():
        there = [name for name in names if isinstance(places.get(name), Plain)]
        for name in there[1:]:
            first, other = places[there[0]], places[name]
            assert isinstance(first, Plain)
            assert isinstance(other, Plain)
            if first != other and not torch.equal(reader.get(first.tensor), reader.get(other.tensor)):
                log.warning("%s and %s are one by the configuration and two in the files: untied", there[0], name)
                separate(model, [name])


def _shared_places(model: nn.Module, places: Mapping[str, Place]) -> dict[str, Place]:
    """Name of every parameter and saved buffer to its place; names that share a tensor share its place."""
    groups = _groups(model)
    found: dict[str, Place] = {}
    for names in groups.values():
        place = next(places[name] for name in names if name in places)
        found |= dict.fromkeys(names, place)
    return found


def _groups(model: nn.Module) -> dict[int, list[str]]:
    """The id of every parameter and saved buffer to its names."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return groups


def _check_shapes(model: nn.Module, places: Mapping[str, Place], reader: CheckpointReader) -> None:
    files = PlaceReader(reader)
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = places[name]
        found = files.shape(place)
        if found != tuple(tensor.shape):
            called = place.tensor if isinstance(place, Plain) else name
            raise CheckpointError(
                f"{str(reader.folder)!r}: tensor {called!r} has the shape {found} where a "
                f"{type(model).__name__} of this config.json has {tuple(tensor.shape)}"
            )


def _read_buffers(
    model: nn.Module, places: Mapping[str, Place], reader: CheckpointReader, device: torch.device
) -> None:
    """Give buffers their values: from the files where they are saved, else as they were computed."""
    files = PlaceReader(reader)
    for path, module in model.named_modules():
        for part, buffer in module.named_buffers(recurse=False):
            value: Tensor = buffer
            if part not in module._non_persistent_buffers_set:
                value = files.read(places[f"{path}.{part}" if path else part], buffer.dtype)
            module._buffers[part] = value.to(device, buffer.dtype)
