"""The tensors of a finished run in the files of its stages, from which a format publishes a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from attrs import evolve
from torch import Tensor

from coldpress.checkpoint.consolidate import Part, Place, index_of, shards_of, write_shards
from coldpress.checkpoint.disk import as_utf8
from coldpress.checkpoint.shard import read_tensor
from coldpress.errors import CheckpointError
from coldpress.format import Parts
from coldpress.spelling import suggest

INDEX = "model.safetensors.index.json"


class StageParts(Parts):
    """Tensors in safetensors files, one or more a stage.

    Args:
        places: where each tensor is, in the order in which they were written.
        parts: the files.
        stages: name to tensors, in the order of the run.
        max_shard_size: bytes of tensors in a file of `consolidate`, at most.

    Attributes:
        digests: name of a file that `consolidate` wrote to its SHA-256.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        parts: Mapping[Path, Part],
        stages: Mapping[str, Sequence[str]],
        max_shard_size: int,
    ) -> None:
        self.files, self.stages = list(parts), stages
        self.digests: dict[str, str] = {}
        self._places, self._parts, self._max_shard_size = places, parts, max_shard_size
        self._unread = dict.fromkeys(places)

    def names(self) -> list[str]:
        """All tensors, in the order in which they were written."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from a header."""
        return self._place(name).entry.shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, from a header."""
        return self._place(name).entry.dtype

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        place = self._place(name)
        self._unread.pop(name, None)
        return read_tensor(place.path, place.entry)

    def consolidate(self, folder: Path) -> None:
        """Write `model.safetensors`, or shards and their index; a file of a stage that is one as it is, is linked.

        Raises:
            OSError: the disk is full.
        """
        shards = shards_of(self._places.items(), self._max_shard_size)
        written = list(write_shards(folder, shards, parts=self._parts))
        if len(written) > 1:
            index = json.dumps(index_of(written, total_size=self.total_size()), indent=2, ensure_ascii=False) + "\n"
            (folder / INDEX).write_bytes(as_utf8(index))
        self.digests = {shard.name: shard.sha256 for shard in written}
        self._unread.clear()

    def tensors_of(self, file: Path) -> list[str]:
        """The tensors in one file."""
        return [name for name, place in self._places.items() if place.path == file]

    def digest_of(self, file: Path) -> str:
        """The SHA-256 of one file, in hexadecimal."""
        return self._parts[file].sha256

    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for place in self._places.values())

    def selected(self, names: Mapping[str, str]) -> "StageParts":
        """Some of the tensors by other names; they count as read here.

        Args:
            names: new name to the name that a tensor has here.
        """
        stage_of = {name: stage for stage, members in self.stages.items() for name in members}
        stages: dict[str, list[str]] = {}
        for new, name in names.items():
            stages.setdefault(stage_of[name], []).append(new)
            self._unread.pop(name, None)
        never_linked = {path: evolve(part, count=-1) for path, part in self._parts.items()}
        places = {new: self._place(name) for new, name in names.items()}
        return StageParts(places, never_linked, stages, self._max_shard_size)

    def unread(self) -> list[str]:
        """Tensors that were neither read nor consolidated, and so are in no checkpoint."""
        return list(self._unread)

    def _place(self, name: str) -> Place:
        if name not in self._places:
            raise CheckpointError(f"no stage has written a tensor {name!r}{suggest(name, self._places)}")
        return self._places[name]
