"""What ties finished files to a run; whole checkpoints are not read for it, only their headers."""

from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch

from coldpress.checkpoint.shard import data_start
from coldpress.format import Format
from coldpress.shardwise.opening import Opened


def binding_of(opened: Opened, *, recipe: str, form: Format, device: torch.device, seed: int) -> dict[str, Any]:
    """Everything that the bytes of the output depend on, by text, hash, or what tells that a file was not touched.

    Args:
        opened: the checkpoint.
        recipe: as YAML.
        form: of the output.
        device: where layers are compressed.
        seed: of the run.
    """
    return {
        "recipe": recipe,
        "format": repr(form),
        "device": device.type,
        "files": {path.name: _seen(path) for path in opened.stored.files},
        "configuration": sha256(repr(sorted(_flat(opened.config))).encode()).hexdigest(),
        "seed": seed,
        "coldpress": version("coldpress"),
        "torch": torch.__version__,
    }


def _seen(path: Any) -> list[Any]:
    """Size, time of change, and the checksum of the header."""
    status = path.stat()
    with path.open("rb") as file:
        length = data_start(file)
        file.seek(0)
        return [status.st_size, status.st_mtime_ns, sha256(file.read(length)).hexdigest()]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}={value!r}"]
    return found
