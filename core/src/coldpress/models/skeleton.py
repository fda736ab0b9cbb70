"""A model built from a folder without reading its weights, if the names in its files are the model's own."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coldpress.checkpoint import CheckpointReader
from coldpress.checkpoint.names import checkpoint_names
from coldpress.errors import CheckpointError, ModelError
from coldpress.experts import linearize_experts
from coldpress.models.loading import load_config, read_generation_settings
from coldpress.models.streaming import WeightStream, without_weights

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
    model = _build(folder, settings, dtype=dtype, reader=reader, trust_remote_code=trust_remote_code)
    if dtype != torch.float32 and any(getattr(model, f"_keep_in_fp32_modules{end}", None) for end in ("", "_strict")):
        raise NotStreamable(f"{type(model).__name__} keeps some of its weights in float32")
    linearize_experts(model)
    places = _places(model, reader)
    for path, module in model.named_modules():
        for part, buffer in module.named_buffers(recurse=False):
            saved = part not in module._non_persistent_buffers_set
            value = reader.read(places[_join(path, part)]) if saved else buffer
            module._buffers[part] = value.to(device, buffer.dtype)
    model.config._name_or_path = name
    log.info("built %s: %s in %s; its weights are read stage by stage", name, type(model).__name__, model.dtype)
    return WeightStream(model.eval(), reader, places, device)


def _build(folder: Path, config: Any, *, dtype: Any, reader: CheckpointReader, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        if dtype == "auto":
            dtype = getattr(config, "dtype", None) or _first_floating(reader)
        with without_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        read_generation_settings(model, folder)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"transformers cannot build the model of {str(folder)!r}: {first}") from error
    return model


def _first_floating(reader: CheckpointReader) -> torch.dtype:
    return next((reader.dtype(n) for n in reader.names() if reader.dtype(n).is_floating_point), torch.float32)


def _places(model: nn.Module, reader: CheckpointReader) -> dict[str, str]:
    """Name of every parameter and saved buffer to the tensor in the files; names that share one share its place."""
    known, names = set(reader.names()), checkpoint_names(model)
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        disk = names.on_disk(name)
        groups.setdefault(id(tensor), []).append(disk if disk in known else name)
    missing = [group[0] for group in groups.values() if not known.intersection(group)]
    extra = sorted(known.difference(*groups.values()))
    if missing and extra:
        raise NotStreamable(
            f"names in its files are not the model's ({extra[0]!r} there, {missing[0]!r} here), so that transformers "
            "must translate them"
        )
    if missing:
        if getattr(model, "_keys_to_ignore_on_load_missing", None):
            raise NotStreamable(f"the model computes {missing[0]!r} by itself")
        raise CheckpointError(
            f"{str(reader.folder)!r} lacks {len(missing)} tensors of a {type(model).__name__}, the first is "
            f"{missing[0]!r}: the checkpoint is incomplete, or its config.json is another model's"
        )
    if extra:
        log.warning("%s: not read, because the model has no such weights: %s", reader.folder, ", ".join(extra))
    found = {tensor: _one_place(group, known, reader) for tensor, group in groups.items()}
    places = {name: found[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
    _check_shapes(model, places, reader)
    return places


def _one_place(names: list[str], known: set[str], reader: CheckpointReader) -> str:
    """Where the one tensor of several names is."""
    there = [name for name in names if name in known]
    first = reader.get(there[0])
    for other in there[1:]:
        if not torch.equal(first, reader.get(other)):
            raise NotStreamable(f"{there[0]!r} and {other!r} are one in the model and two in its files")
    return there[0]


def _check_shapes(model: nn.Module, places: Mapping[str, str], reader: CheckpointReader) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = reader.shape(places[name])
        if found != tuple(tensor.shape):
            raise CheckpointError(
                f"{str(reader.folder)!r}: tensor {places[name]!r} has the shape {found} where a "
                f"{type(model).__name__} of this config.json has {tuple(tensor.shape)}"
            )


def _join(owner: str, part: str) -> str:
    return f"{owner}.{part}" if owner else part
