"""The tensors of a GGUF file that we wrote, as they were in the run."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coldpress.plugin import CheckpointError, Weights
from coldpress_gguf.file import GgufFile
from coldpress_gguf.writing import BLOCKS, ORIGIN, apart

FILE = "model.gguf"
_SHARDS = "model-*-of-*.gguf"


class GgufTensors(Weights):
    """What the files of a folder hold, by the names that tensors had before.

    Args:
        folder: with `model.gguf`, or its shards.

    Raises:
        CheckpointError: there is none, a shard is missing or damaged, or another tool wrote it.
    """

    def __init__(self, folder: Path) -> None:
        paths = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(_SHARDS))
        if not paths:
            raise CheckpointError(f"{folder} lacks {FILE}")
        files = [GgufFile(path) for path in paths]
        count = files[0].metadata.get("split.count", 1)
        if count != len(files):
            raise CheckpointError(f"{folder} has {len(files)} of the {count} files of its model")
        if ORIGIN not in files[0].metadata:
            raise CheckpointError(f"{paths[0]} was not written by coldpress: name the file itself, and it is decoded")
        self.files = paths
        self._homes = {name: file for file in files for name in file.names()}
        self._places: dict[str, tuple[str, int, dict[str, Any]]] = {}
        for name, origin in json.loads(files[0].metadata[ORIGIN]).items():
            if name not in self._homes:
                raise CheckpointError(f"{folder} lacks the tensor {name!r} of its model")
            for number, part in enumerate(origin["parts"]):
                self._places[part] = name, number, origin
            self._places.update({part: (name, 0, origin) for part in origin.get("also", ())})

    def names(self) -> list[str]:
        """All tensors, in the order of the file."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; of blocks in bytes."""
        home, _, origin = self._place(name)
        if origin["reciprocals"] is not None:
            return (1,)
        file = self._homes[home]
        shape = file.byte_shape(home) if name.endswith(f".{BLOCKS}") else file.shape(home)
        return shape[1:] if origin["stacked"] else shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the tensor had."""
        found: torch.dtype = getattr(torch, self._place(name)[2]["dtype"])
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        home, number, origin = self._place(name)
        if origin["reciprocals"] is not None:
            return torch.tensor([origin["reciprocals"][number]], dtype=self.dtype(name))
        file = self._homes[home]
        of_stack = number if origin["stacked"] else None
        tensor = file.raw(home, of_stack) if name.endswith(f".{BLOCKS}") else file.get(home, of_stack)
        if origin["heads"]:
            tensor = apart(tensor, origin["heads"])
        if origin["more"]:
            tensor = tensor - origin["more"]
        return tensor.to(self.dtype(name)).clone(memory_format=torch.contiguous_format)

    def _place(self, name: str) -> tuple[str, int, dict[str, Any]]:
        if name not in self._places:
            raise CheckpointError(f"{self.files[0]} holds no tensor {name!r}")
        return self._places[name]
