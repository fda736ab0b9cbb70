"""What a run works on, in a few hashes: an interrupted run resumes only if they are the same.

Files are hashed whole (SHA-256), so that no change of a weight goes unseen.
A file whose size, time of change and inode are those that the journal has noted is not read again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coldpress.calibration.batch import CalibrationBatch
from coldpress.checkpoint.disk import checksum
from coldpress.checkpoint.shard import bytes_of

_VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash")


def of_files(files: Iterable[Path], known: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """The checksum of each file by name, and what tells that a file was not touched.

    Args:
        files: of one folder.
        known: the second result of an earlier call; its checksums are taken over for files that were not touched.

    Returns:
        Name to checksum, and name to size, time of change, inode and checksum.
    """
    seen: dict[str, list[Any]] = {}
    for path in files:
        status = path.stat()
        signature = [status.st_size, status.st_mtime_ns, status.st_ino]
        before = known.get(path.name, [])
        digest = before[3] if list(before[:3]) == signature else checksum(path)
        seen[path.name] = [*signature, digest]
    return {name: entry[3] for name, entry in seen.items()}, seen


def of_model(model: nn.Module) -> str:
    """A hash over the names, dtypes, shapes and bytes of all parameters and saved buffers of a model in memory."""
    digest = sha256()
    for name, tensor in model.state_dict().items():
        _add(digest, name, tensor)
    return digest.hexdigest()


def of_config(model: Any) -> str | None:
    """A hash over a model's configuration, but for where it came from; None when it has none."""
    if not hasattr(getattr(model, "config", None), "to_dict"):
        return None
    config = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    return sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def of_batches(batches: Sequence[Mapping[str, Any]]) -> str | None:
    """A hash over calibration data; None when there are none."""
    if not batches:
        return None
    digest = sha256()
    for index, batch in enumerate(batches):
        digest.update(f"batch {index};".encode())
        for name in sorted(batch):
            _add(digest, name, batch[name])
        if isinstance(batch, CalibrationBatch):
            _add(digest, "token_masks", batch.token_masks)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(bytes_of(value.to_dense()))
    elif isinstance(value, Mapping):
        for key in value:
            _add(digest, f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _add(digest, f"{name}.{index}", item)
    elif value is None or isinstance(value, str | int | float | bool):
        digest.update(f"{name}={value!r};".encode())
    else:  # its text may hold an address, which no two runs share
        digest.update(f"{name}:{type(value).__qualname__};".encode())
