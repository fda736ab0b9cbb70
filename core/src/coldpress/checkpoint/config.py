"""The configuration of a checkpoint: what it says of how weights are stored, and one that says nothing of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import CheckpointError

QUANTIZATION = ("quantization_config", "compression_config")  # the second is what compressed-tensors once wrote
_INNER = ("text_config", "language_config", "llm_config")


def quantization_in(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `config.json`, or a configuration inside of it, says of how weights are stored; empty if nothing."""
    found = _place(config)
    return {} if found is None else found[0][found[1]]


def replace_quantization(config: dict[str, Any], quantization: Mapping[str, Any] | None) -> None:
    """Take out all that a `config.json` says of how weights are stored, and say this instead, in the same place.

    Args:
        config: changed.
        quantization: None where weights are stored as they are.
    """
    found = _place(config)
    place: Any = config if found is None else found[0]
    for table in tables(config):
        for name in QUANTIZATION:
            table.pop(name, None)  # type: ignore[attr-defined]
    if quantization is not None:
        place[QUANTIZATION[0]] = quantization


def _place(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """The configuration that says how weights are stored, and under which name: the outermost one.

    Raises:
        CheckpointError: what it says is no JSON object.
    """
    for table, name in ((table, name) for table in tables(config) for name in QUANTIZATION):
        found = table.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise CheckpointError(f"config.json: {name} must be a JSON object, not {type(found).__name__} {found!r}")
        if found:
            return table, name
    return None


def tables(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A configuration and those of language models inside of it."""
    return [config, *(config[name] for name in _INNER if isinstance(config.get(name), Mapping))]


def without_quantization(config: Any) -> Any:
    """The configuration, changed in place: it and those inside of it, such as `text_config`, name no quantization."""
    for name in QUANTIZATION:
        config.__dict__.pop(name, None)
    for part in list(config.__dict__.values()):
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            without_quantization(part)
    return config


def check_storable(config: Any) -> None:
    """Refuse a configuration that JSON cannot hold.

    Raises:
        CheckpointError: names what it cannot hold.
    """
    try:
        config.to_json_string()
    except TypeError as error:
        found = [name for name, value in config.to_dict().items() if not _is_storable(value)]
        raise CheckpointError(
            f"config.json cannot hold {', '.join(map(repr, found)) or 'the configuration'} of the model ({error}): "
            "make it text, a number, a list or a dict of these, or delete it from model.config"
        ) from error


def _is_storable(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def is_generation_config_of(model: Any, path: Path) -> bool:
    """Whether a file holds the settings of generation that the model has now."""
    from transformers import GenerationConfig

    try:
        stored = GenerationConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return bool(_settings(stored) == _settings(model.generation_config))


def _settings(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ("_from_model_config",)}
