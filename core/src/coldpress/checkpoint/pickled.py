"""Weights as torch pickles them: `pytorch_model.bin`, or shards of it behind an index."""

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from coldpress.checkpoint.reader import CheckpointReader, read_weight_map
from coldpress.errors import CheckpointError
from coldpress.foreign import reading
from coldpress.source import Weights
from coldpress.spelling import suggest

_SINGLE = "pytorch_model.bin"


class PickledReader(Weights):
    """The tensors of `.bin` files, memory-mapped where torch can; nothing but tensors is unpickled.

    Attributes:
        folder: where it reads.
        files: the `.bin` files, sorted by name.
    """

    def __init__(self, folder: str | Path) -> None:
        """Find the files of a folder.

        Raises:
            CheckpointError: there are none, one that the index names is missing, or the index cannot be read.
        """
        self.folder = Path(folder)
        single, index = self.folder / _SINGLE, self.folder / f"{_SINGLE}.index.json"
        self._index = read_weight_map(index) if index.is_file() and not single.is_file() else {}
        named = sorted(set(self._index.values())) or [path.name for path in pickled_files(self.folder)]
        self.files = [self.folder / name for name in named]
        missing = [path.name for path in self.files if not path.is_file()]
        if missing or not self.files:
            raise CheckpointError(f"{self.folder} lacks {', '.join(missing) or _SINGLE}; fetch the checkpoint again")
        self._found: dict[str, Tensor] | None = None

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._tensors())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.get(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.get(name).dtype

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU in memory of its own."""
        return self.get(name).clone()

    def get(self, name: str) -> Tensor:
        """One tensor on the CPU, backed by its file.

        Raises:
            CheckpointError: there is no such tensor.
        """
        found = self._tensors()
        if name not in found:
            raise CheckpointError(f"{self.folder} holds no tensor {name!r}{suggest(name, found)}")
        return found[name]

    def check(self) -> None:
        """Open every file and compare it with the index.

        Raises:
            CheckpointError: names the file and what is wrong with it.
        """
        self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        if self._found is None:
            found: dict[str, Tensor] = {}
            for path in self.files:
                found |= {
                    name: one for name, one in _load(path).items() if self._index.get(name, path.name) == path.name
                }
            lost = self._index.keys() - found.keys()
            if lost:
                name = min(lost)
                raise CheckpointError(
                    f"{self.folder}: the index says that {self._index[name]} holds tensor {name!r}, and it does not"
                )
            self._found = found
        return self._found


def pickled_files(folder: Path) -> list[Path]:
    """The `.bin` files of a folder that transformers reads where there are no safetensors files, sorted."""
    single = folder / _SINGLE
    return [single] if single.is_file() else sorted(folder.glob("pytorch_model-*.bin"))


def open_files(folder: Path) -> CheckpointReader | PickledReader:
    """The weights of a folder: its safetensors files, or its `.bin` files where there are none of these.

    Raises:
        CheckpointError: there are neither, or an index is damaged.
    """
    if next(folder.glob("*.safetensors*"), None) is None and pickled_files(folder):
        return PickledReader(folder)
    return CheckpointReader(folder)


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        CheckpointError: it is damaged, or holds something else.
    """
    with reading(f"{path} cannot be read", CheckpointError):
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise CheckpointError(f"{path} is no table from names to tensors, as the weights of a model are")
    return found
