"""Where a model that is in memory was loaded from, as far as it says so and the folder is still there."""

from pathlib import Path
from typing import Any

from coldpress.checkpoint.reader import read_json
from coldpress.errors import CheckpointError

_CONFIG = "config.json"


def origin_folder(model: Any) -> Path | None:
    """The folder that a model was loaded from; of a model from a hub, that of its files in the local cache.

    None where the model names none, where it is gone, or where it now holds a model of another kind.
    """
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    folder = Path(name).expanduser()
    try:
        found = folder.resolve() if folder.is_dir() else _cached(name, getattr(config, "_commit_hash", None))
    except OSError:
        return None
    return found if found is not None and _is_of(config, found) else None


def _cached(name: str, commit: str | None) -> Path | None:
    """The snapshot of a hub's cache that holds the configuration of this model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, _CONFIG, revision=commit)
    except HFValidationError:  # no name that a hub has
        return None
    return Path(path).parent if isinstance(path, str) else None


def _is_of(config: Any, folder: Path) -> bool:
    try:
        stored = read_json(folder / _CONFIG)
    except CheckpointError:
        return False
    return stored.get("model_type") == getattr(config, "model_type", None)
