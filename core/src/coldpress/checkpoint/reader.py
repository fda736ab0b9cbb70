"""A checkpoint folder, read by memory map: nothing is loaded until a tensor is asked for, and then only that."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coldpress import registry
from coldpress.checkpoint.config import quantization_in
from coldpress.checkpoint.shard import Entry, read_header, read_tensor
from coldpress.errors import CheckpointError
from coldpress.source import Weights
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

_SINGLE = "model.safetensors"
_INDEX = ".safetensors.index.json"


class CheckpointReader(Weights):
    """The tensors and the configuration of one folder.

    The files are, in this order: `model.safetensors`; what an index names; every `*.safetensors` of the folder.
    The first question reads every header; `check()` asks none, so that damage is found before any work is done.

    Attributes:
        folder: where it reads.
        files: the safetensors files, sorted by name.
    """

    def __init__(self, folder: str | Path) -> None:
        """Find the files of a folder.

        Raises:
            CheckpointError: there are none, or the index cannot be read.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is not a folder; a checkpoint is a folder of safetensors files")
        self._index = self._read_index()
        self.files = self._find_files()
        self._headers: dict[Path, dict[str, Entry]] = {}
        self._open: dict[Path, Any] = {}
        self._where: dict[str, Path] | None = None

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._places())

    def get(self, name: str) -> Tensor:
        """One tensor on the CPU, backed by the file: clone it before writing into it.

        Raises:
            CheckpointError: there is no such tensor, or its file is damaged.
        """
        path = self._place(name)
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read tensor {name!r} from {path}: {error}") from error
        return tensor

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU in memory of its own; nothing of the file stays mapped.

        Raises:
            CheckpointError: there is no such tensor, or its file is damaged.
        """
        return read_tensor(self._place(name), self._entry(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from the header."""
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        """The bytes a tensor takes in its file, from the header."""
        entry = self._entry(name)
        return entry.end - entry.begin

    def homes(self) -> dict[str, Path]:
        """Every tensor to the file that it is in."""
        return dict(self._places())

    def entry(self, name: str) -> Entry:
        """Where the bytes of a tensor are in its file, from the header."""
        return self._entry(name)

    def check(self) -> None:
        """Read every header and compare it with its file and with the index; no tensor data are read.

        Raises:
            CheckpointError: names the file and what is wrong with it.
        """
        self._places()

    def config(self) -> dict[str, Any]:
        """`config.json`, parsed.

        Raises:
            CheckpointError: it is missing or not a JSON object.
        """
        return read_json(self.folder / "config.json")

    def quantization(self) -> Mapping[str, Any]:
        """What `config.json`, or the configuration of a language model inside of it, says of how weights are stored.

        Raises:
            CheckpointError: as `config`.
        """
        return quantization_in(self.config())

    def passed_over(self) -> list[tuple[Path, str]]:
        """File and name of tensors that lie in files where the index does not say that they do; nothing reads them."""
        places = self._places()
        return [(path, name) for path in self.files for name in self._header(path) if places.get(name) != path]

    def warn_of_passed_over(self) -> None:
        """Say which tensors of the files nothing reads."""
        found = self.passed_over()
        if found:
            log.warning(
                "%d tensors do not come along, because the index does not say that they lie in these files; the first "
                "is %s in %s",
                *(len(found), found[0][1], found[0][0]),
            )

    def _entry(self, name: str) -> Entry:
        return self._header(self._place(name))[name]

    def _header(self, path: Path) -> dict[str, Entry]:
        if path not in self._headers:
            self._headers[path] = read_header(path)
        return self._headers[path]

    def _place(self, name: str) -> Path:
        places = self._places()
        if name not in places:
            raise CheckpointError(f"{self.folder} holds no tensor {name!r}{suggest(name, places)}")
        return places[name]

    def _places(self) -> dict[str, Path]:
        if self._where is None:
            found: dict[str, Path] = {}
            for path in self.files:
                for name in self._header(path):
                    if self._index and self._index.get(name) != path.name:
                        continue  # the index decides who owns a tensor
                    if name in found:
                        raise CheckpointError(f"{found[name]} and {path} both hold tensor {name!r}; remove one of them")
                    found[name] = path
            for name, file in self._index.items():
                if name not in found:
                    raise CheckpointError(
                        f"{self.folder}: the index says that {file} holds tensor {name!r}, and it does not"
                    )
            self._where = found
        return self._where

    def _read_index(self) -> dict[str, str]:
        """Tensor to file name; empty when the folder needs no index."""
        if (self.folder / _SINGLE).is_file():
            return {}
        indices = sorted(self.folder.glob(f"*{_INDEX}"))
        if not indices:
            return {}
        path = next((path for path in indices if path.name == f"model{_INDEX}"), indices[0])
        return read_weight_map(path)

    def _find_files(self) -> list[Path]:
        if (self.folder / _SINGLE).is_file():
            return [self.folder / _SINGLE]
        if self._index:
            files = [self.folder / file for file in sorted(set(self._index.values()))]
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise CheckpointError(
                    f"{self.folder} lacks {', '.join(missing)}, which its index names ({len(missing)} of {len(files)} "
                    "files); fetch the checkpoint again"
                )
            return files
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder} holds no safetensors file{_instead(self.folder)}")
        return files


def read_weight_map(path: Path) -> dict[str, str]:
    """The table from tensor to file of an index.

    Raises:
        CheckpointError: it cannot be read, or names what is no file of its folder.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no 'weight_map', the table from tensor to file")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path} places tensor {name!r} in {file!r}, which is not a file of this folder")
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no regular file")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")


def _instead(folder: Path) -> str:
    """What to say of a folder without safetensors."""
    if next(folder.glob("*.bin"), None):
        return "; convert its .bin files first: load it with transformers and call save_pretrained"
    files = (path for path in sorted(folder.iterdir()) if path.suffix.removeprefix(".") in registry.names("sources"))
    file = next(files, None)
    return "" if file is None else f"; {file.name} is a model by itself: name the file"
