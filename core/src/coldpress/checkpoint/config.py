"""The configuration that a checkpoint gets: what the model says of itself, and nothing of how it was stored before."""

import json
from pathlib import Path
from typing import Any

_STORED = ("quantization_config", "compression_config")  # the second is what compressed-tensors once wrote


def without_quantization(config: Any) -> Any:
    """The configuration, changed in place: it and those inside of it, such as `text_config`, name no quantization."""
    for name in _STORED:
        config.__dict__.pop(name, None)
    for part in list(config.__dict__.values()):
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            without_quantization(part)
    return config


def names_quantization(config: Any) -> bool:
    """Whether a configuration, or one inside of it, says that weights are stored in some quantized form."""
    if any(config.__dict__.get(name) for name in _STORED):
        return True
    parts = [part for part in config.__dict__.values() if hasattr(part, "to_dict") and hasattr(part, "model_type")]
    return any(names_quantization(part) for part in parts)


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
