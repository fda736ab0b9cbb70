"""The files of stages, joined into the shards of a checkpoint; bytes are copied, no tensor is loaded."""

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress.checkpoint.disk import pieces
from coldpress.checkpoint.shard import Entry, data_start, header_of


@frozen
class Place:
    """Where a tensor is.

    Attributes:
        path: of the file.
        entry: what the file's header says of it.
    """

    path: Path
    entry: Entry

    @property
    def nbytes(self) -> int:
        """The bytes it takes."""
        return self.entry.end - self.entry.begin


@frozen
class Part:
    """A file of tensors, as it was written.

    Attributes:
        count: of its tensors.
        sha256: of the file, in hexadecimal.
    """

    count: int
    sha256: str


@frozen
class Written:
    """A file of a checkpoint.

    Attributes:
        name: of the file.
        tensors: in it.
        sha256: of the file, in hexadecimal.
    """

    name: str
    tensors: list[str]
    sha256: str


Shard = dict[str, Place]


def shards_of(places: Iterable[tuple[str, Place]], max_shard_size: int) -> list[Shard]:
    """Tensors in their order, as few files as hold them; one that is larger than a file may be has its own."""
    shards: list[Shard] = [{}]
    size = 0
    for name, place in places:
        if shards[-1] and size + place.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = place
        size += place.nbytes
    return shards


def write_shards(folder: Path, shards: list[Shard], *, parts: Mapping[Path, Part]) -> Iterator[Written]:
    """Write the files of a checkpoint, with the names that every reader knows.

    Args:
        folder: where.
        shards: what goes into each file.
        parts: the files that the tensors are in; one that is a shard as it is, is linked instead of copied.

    Yields:
        Each file.

    Raises:
        OSError: the disk is full, ...
    """
    count = len(shards)
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        sources = list({place.path for place in shard.values()})
        if len(sources) == 1 and parts[sources[0]].count == len(shard) and _link(sources[0], folder / name):
            digest = parts[sources[0]].sha256
        else:
            digest = _write(folder / name, shard)
        yield Written(name, list(shard), digest)


def index_of(shards: Iterable[Written], *, total_size: int) -> dict[str, Any]:
    """The index that says which file holds which tensor."""
    weight_map = {tensor: file.name for file in shards for tensor in file.tensors}
    return {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # file systems without links
        return False
    return True


def _write(path: Path, shard: Shard) -> str:
    order, header = header_of({name: (place.entry.dtype, place.entry.shape) for name, place in shard.items()})
    digest = sha256(header)
    with path.open("xb") as file:
        file.write(header)
        for name in order:
            place = shard[name]
            with place.path.open("rb") as source:
                source.seek(data_start(source) + place.entry.begin)
                for piece in pieces(source, place.nbytes):
                    file.write(piece)
                    digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
