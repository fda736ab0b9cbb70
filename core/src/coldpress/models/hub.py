"""A model on a hub as a folder: its snapshot in the local cache, downloaded where the hub can be reached."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from coldpress.arguments.hub import hub_is_reachable
from coldpress.errors import CheckpointError, ModelError
from coldpress.models.location import Location, locate, neighbours

log = logging.getLogger(__name__)

_WEIGHTS = tuple(
    f".{end}"
    for end in (
        *("bin", "ckpt", "engine", "gguf", "gz", "h5", "mlmodel", "msgpack", "npy", "npz", "onnx", "onnx_data", "ot"),
        *("pb", "pt", "pth", "safetensors", "tar", "tflite", "xml", "zip"),
    )
)
_INDEX = ".index.json"


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    reachable = hub_is_reachable()
    where = "on the hub" if reachable else "in the local cache of the hub, which cannot be reached"
    try:
        wanted = _wanted(name, revision, weights=weights) if reachable else None
        found = snapshot_download(name, revision=revision, local_files_only=not reachable, allow_patterns=wanted)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"no model {name!r}: no folder of this name exists, and it is not {where} ({reason}){neighbours(name)}"
        ) from error
    folder = Path(found)
    if not (folder / "config.json").is_file() and weights:
        raise ModelError(f"the snapshot of {name!r} {where} holds no config.json, so it is no model of transformers")
    return folder


def _wanted(name: str, revision: str, *, weights: bool) -> list[str]:
    """The files of a repository that are fetched."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(name, revision=revision)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    small = [file for file in files if not file.lower().endswith(_WEIGHTS)]
    if not weights:
        return [file for file in small if not file.endswith(_INDEX)]
    top = {file for file in files if "/" not in file}
    for single, index, suffix in (
        ("model.safetensors", f"model.safetensors{_INDEX}", ".safetensors"),
        ("pytorch_model.bin", f"pytorch_model.bin{_INDEX}", ".bin"),
    ):
        if single in top:
            return [*small, single]
        if index in top:
            return [*small, *_named_by(Path(hf_hub_download(name, index, revision=info.sha or revision)))]
        if any(file.endswith(suffix) for file in top):
            return [*small, *(file for file in sorted(top) if file.endswith(suffix))]
    return small


def _named_by(index: Path) -> Sequence[str]:
    """The files that an index names.

    Raises:
        CheckpointError: it is not an index.
    """
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(shard) for shard in shards})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} has no 'weight_map', the table from tensor to file") from error
