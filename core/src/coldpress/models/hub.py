"""A model on a hub as a folder: its snapshot in the local cache, downloaded where the hub can be reached."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from coldpress.arguments.hub import hub_is_reachable
from coldpress.errors import CheckpointError, ModelError
from coldpress.installed import container_suffixes
from coldpress.models.location import Location, check_adapter, locate, neighbours

log = logging.getLogger(__name__)

_WEIGHTS = tuple(
    f".{end}"
    for end in (
        *("bin", "ckpt", "engine", "gz", "h5", "mlmodel", "msgpack", "npy", "npz", "onnx", "onnx_data", "ot"),
        *("pb", "pt", "pth", "safetensors", "tar", "tflite", "xml", "zip"),
    )
)


def on_this_disk(found: Location, revision: str = "main") -> Location:
    """The same model as a folder or file: one on a hub in its snapshot.

    Raises:
        ModelError: the hub has no such model, or cannot be reached and the local cache has not.
    """
    if found.path is not None:
        return found
    return evolve(locate(str(hub_folder(found.name, revision))), name=found.name)


def hub_folder(name: str, revision: str = "main", *, weights: bool = True) -> Path:
    """The folder of a model's snapshot, with all that the model needs and nothing that it does not.

    Of weights in several formats only those are fetched that are read: safetensors, else PyTorch's.

    Args:
        name: its id.
        revision: branch, tag or commit.
        weights: False leaves them out, for the tokenizer alone.

    Raises:
        ModelError: there is no such model, or it may not be read; says where was looked.
    """
    from huggingface_hub.errors import HfHubHTTPError

    where = "on the hub" if hub_is_reachable() else "in the local cache of the hub, which cannot be reached"
    try:
        other = [*_WEIGHTS, *(f".{suffix}" for suffix in sorted(container_suffixes()))]
        folder = _snapshot(name, revision, but=[f"*{ending}" for ending in other])
        if weights:
            _fetch_weights(name, revision, folder)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"no model {name!r}: no folder of this name exists, and it is not {where} ({reason}){neighbours(name)}"
        ) from error
    if weights:
        check_adapter(name, folder)
    if not (folder / "config.json").is_file() and weights:
        raise ModelError(f"the snapshot of {name!r} {where} holds no config.json, so it is no model of transformers")
    return folder


def _fetch_weights(name: str, revision: str, folder: Path) -> None:
    """Fetch the files that weights are read from, of the first kind that there is: by their names, or by an index."""
    for single, ending in (("model.safetensors", ".safetensors"), ("pytorch_model.bin", ".bin")):
        index = folder / f"{single}.index.json"
        for wanted in [_named_by(index)] if index.is_file() else ([single], [f"*{ending}"]):
            _snapshot(name, revision, only=wanted, but=["*/*"])
            if any(folder.glob(wanted[0])):
                return


def _snapshot(name: str, revision: str, *, but: Sequence[str], only: Sequence[str] | None = None) -> Path:
    """The folder of a snapshot, after files of these patterns were fetched, where the hub can be reached."""
    from huggingface_hub import snapshot_download

    here = not hub_is_reachable()
    found = snapshot_download(
        name,
        revision=revision,
        local_files_only=here,
        allow_patterns=None if only is None else list(only),
        ignore_patterns=list(but),
    )
    return Path(found)


def _named_by(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        CheckpointError: it is not an index.
    """
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(shard) for shard in shards})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} has no 'weight_map', the table from tensor to file") from error
