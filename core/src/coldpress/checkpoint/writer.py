"""A checkpoint folder, written so that it is there whole or not at all, and so that a killed run can go on.

<output>.partial/journal.jsonl      which stages are finished, on what they were done (see journal.py)
<output>.partial/part-*.safetensors their tensors, one file a stage
<output>.partial/beside-*.safetensors what else must be known of the run, and is no part of the checkpoint
<output>.partial/checkpoint/        what becomes <output>, made when all stages are there
<output>/                           appears by one rename, when all of it is on the disk (see destination.py)
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from coldpress.checkpoint.consolidate import Part, Place
from coldpress.checkpoint.destination import Destination, resolved
from coldpress.checkpoint.disk import as_utf8, checksum, disk_errors, sync, sync_tree
from coldpress.checkpoint.journal import BESIDE, NAME, Journal, differences
from coldpress.checkpoint.parts import StageParts
from coldpress.checkpoint.replaced import MANIFEST, checksums, with_checksums
from coldpress.checkpoint.shard import is_storable, read_header, read_tensor, write_shard
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.format import REST

Publish = Callable[[StageParts, Path], None]
"""Writes the tensors of all stages into the folder of a checkpoint."""

log = logging.getLogger(__name__)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DISCARD = "pass restart=True to discard it and begin anew"


class CheckpointWriter:
    """Tensors and small files on their way to a new checkpoint folder.

    Use it as a context manager and call `finish()` at the end of the block.
    Leaving the block in any other way touches nothing at `output`; what `commit` has taken is kept, and `begin` with
    the same binding finds it again; everything else is removed.

    Attributes:
        output: the folder that `finish()` makes.
        partial: where everything lies until then.
        folder: the part of it that becomes `output`; others may write into it too.
        max_shard_size: bytes of tensors in a file, at most; a larger tensor has a file of its own.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        overwrite: bool = False,
        any_folder: bool = False,
        restart: bool = False,
        max_shard_size: int | str = "5GB",
        check: bool = True,
    ) -> None:
        """Look whether `output` can be written, before any work is done; nothing is created yet.

        Args:
            output: a folder that does not exist or is empty; with `overwrite`, a checkpoint.
            overwrite: replace the checkpoint that is there, once the new one is complete.
            any_folder: what is there need not be a checkpoint.
            restart: discard what an interrupted run has left.
            max_shard_size: bytes, or a number with a unit: `5GB` is decimal, `5GiB` is not.
            check: look now; of several ranks only the one that writes does, for looking locks what is there.

        Raises:
            CheckpointError: something is in the way; says what to do about it.
            ArgumentError: `max_shard_size` is not a size.
        """
        self.max_shard_size = _size(max_shard_size)
        self._destination = Destination(resolved(output), overwrite, any_folder)
        self.output, self.partial = self._destination.output, self._destination.partial
        self.folder = self._destination.folder
        self._buffer: dict[str, Tensor] = {}
        self._buffered = 0
        self._places: dict[str, Place] = {}  # of every tensor that is in a file, in their order
        self._parts: dict[Path, Part] = {}  # the files
        self._uncommitted: list[dict[str, str]] = []  # files since the last commit
        self._state = "new"
        self._restart = restart
        self._journal: Journal | None = None
        if check:
            self._destination.check()

    def __enter__(self) -> "CheckpointWriter":
        self._destination.make()
        self._journal = Journal(self.partial)
        self._state = "entered"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._journal is not None
        state, kept = self._state, len(self._journal.entries)
        self._state = "left" if state in ("entered", "open") else state
        self._buffer.clear()
        if state in ("entered", "open") and not kept and self._journal.damage is None:
            self._destination.discard()
        elif state == "open":
            shutil.rmtree(self.folder, ignore_errors=True)  # made of the finished stages in no time
            log.warning(
                "%s kept in %s: the same command resumes there; %s",
                *("1 finished stage is" if kept == 1 else f"{kept} finished stages are", self.partial, _DISCARD),
            )
        self._journal.close()

    @property
    def unfinished(self) -> Mapping[str, Any]:
        """What the run works on that an interrupted run left here; empty when there is none."""
        assert self._journal is not None
        return (self._journal.binding or {}) if not self._restart else {}

    def begin(self, binding: Mapping[str, Any] | None = None) -> Sequence[Mapping[str, Any]]:
        """Go on after the stages that an interrupted run has finished, or begin anew; called before the first `add`.

        Args:
            binding: what the run works on, a table that JSON can hold; None when it cannot be resumed.

        Returns:
            What `commit` was told of each stage that is kept.

        Raises:
            CheckpointError: the interrupted run worked on something else; says on what.
        """
        journal = self._journal
        assert journal is not None
        if self._state != "entered":
            raise RuntimeError(f"this CheckpointWriter is {self._state}; begin once, inside `with`")
        if journal.damage is not None and not self._restart:
            raise CheckpointError(f"{journal.damage}; {_DISCARD}")
        if journal.entries and not self._restart:
            self._check_binding(journal, binding)
            journal.keep(self._count_sound(journal.entries))
        if not journal.entries or self._restart:
            journal.start(binding or {})
        with disk_errors(self.partial):
            self._clear()
        self._state = "open"
        return list(journal.entries)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors; they go to disk as soon as they fill a file, or with `commit`.

        A tensor that is not on the CPU is copied at once; any other must not change before `commit` or `finish`.
        Tensors that share memory are written each in full: hand over only one name of a tied weight.

        Raises:
            CheckpointError: a name comes twice, a tensor cannot be stored, or the disk is full.
        """
        self._require_open()
        for name, tensor in tensors.items():
            _check_storable(name, tensor)
            if name in self._places or name in self._buffer:
                raise CheckpointError(f"tensor {name!r} is written twice; the names of a checkpoint must be unique")
            size = tensor.numel() * tensor.element_size()
            if self._buffer and self._buffered + size > self.max_shard_size:
                self._flush()
            self._buffer[name] = tensor.detach().to("cpu")
            self._buffered += size

    def commit(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """Make durable what was added since the last commit, and return name and checksum of the files.

        Args:
            record: what `begin` returns of it in a later run; a table that JSON can hold.

        Raises:
            CheckpointError: the disk is full.
        """
        self._require_open()
        assert self._journal is not None
        if self._buffer:
            self._flush()
        with disk_errors(self.partial):
            sync(self.partial)
        files, self._uncommitted = self._uncommitted, []
        self._journal.add({**record, "files": files})
        return files

    def commit_beside(self, record: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
        """Make tensors durable that are no part of the checkpoint, for `read_beside` of this run or a later one.

        Args:
            record: what `begin` returns of it in a later run.
            name: of the file, without what is before and after it.
            tensors: by name.

        Raises:
            CheckpointError: the disk is full.
        """
        self._require_open()
        path = self.partial / BESIDE.format(name)
        with disk_errors(path):
            path.unlink(missing_ok=True)
            digest = write_shard(path, tensors)
        self.commit({**record, "beside": {"name": path.name, "sha256": digest}})

    def read_beside(self, name: str) -> dict[str, Tensor]:
        """What `commit_beside` was given under this name."""
        path = self.partial / BESIDE.format(name)
        return {key: read_tensor(path, entry) for key, entry in read_header(path).items()}

    def part(self, number: int) -> Path:
        """Where a caller writes a file of tensors by itself, instead of `add`; `adopt` takes it."""
        self._require_open()
        return self.partial / f"part-{number + 1:05d}.tmp"

    def adopt(self, number: int, sha256: str, record: Mapping[str, Any]) -> None:
        """Take a file that was written to `part(number)` and is durable; from here on it survives whatever happens.

        Args:
            number: of the file, from 0; files may be adopted in any order.
            sha256: of the file, in hexadecimal.
            record: as for `commit`.

        Raises:
            CheckpointError: the file is no sound safetensors file.
        """
        assert self._journal is not None
        unnamed = self.part(number)
        path = unnamed.with_suffix(".safetensors")
        with disk_errors(path):
            unnamed.rename(path)
            sync(self.partial)
        files = [{"name": path.name, "sha256": sha256}]
        self._journal.add({**record, "files": files})
        self.learn(files)

    def names(self) -> list[str]:
        """The tensors that are in files by now."""
        return list(self._places)

    def nbytes(self) -> int:
        """Bytes of the tensors that were added by now."""
        return sum(place.nbytes for place in self._places.values()) + self._buffered

    def read(self, name: str) -> Tensor:
        """A tensor that is in a file by now, in memory of its own."""
        place = self._places[name]
        return read_tensor(place.path, place.entry)

    def path(self, name: str) -> Path:
        """Where the file `name` of the checkpoint is written, for a caller that writes it.

        Raises:
            CheckpointError: the name leads out of the folder.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder) or path.resolve() == self.folder:
            raise CheckpointError(f"{name!r} is not the name of a file inside the checkpoint")
        return path

    def write_text(self, name: str, text: str) -> None:
        """Write one text file, UTF-8, in place of any earlier one.

        Raises:
            CheckpointError: the name leads out of the folder, or the disk is full.
        """
        self._require_open()
        path = self.path(name)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_utf8(text))

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file; keys keep their order."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def finish(self, manifest: Mapping[str, Any] | None = None, *, publish: Publish = StageParts.consolidate) -> Path:
        """Make a checkpoint of the files of stages, make it durable, put it in place by one rename.

        Args:
            manifest: content of manifest.json, to which the checksum of every file is added; it lets a later run know
                what in the folder may be replaced.  None writes no manifest.
            publish: writes all tensors into the folder.

        Returns:
            The folder of the finished checkpoint.

        Raises:
            CheckpointError: the disk is full, or `output` was created meanwhile (the work is kept then).
        """
        self._require_open()
        if self._buffer or not self._places:
            self._flush()
        parts = StageParts(self._places, self._parts, self._stages(), self.max_shard_size)
        with disk_errors(self.folder):
            publish(parts, self.folder)
            if manifest is not None:
                self.write_json(MANIFEST, with_checksums(manifest, checksums(self.folder, parts.digests)))
            sync_tree(self.folder)
        self._destination.complete()
        self._state = "complete"  # from here on nothing removes the work
        self._destination.publish()
        self._state = "finished"
        return self.output

    def _stages(self) -> dict[str, list[str]]:
        """Name of each stage to its tensors; what was written after the last of them belongs to `rest`."""
        assert self._journal is not None
        files = [(entry.get("stage", REST), file["name"]) for entry in self._journal.entries for file in entry["files"]]
        stage_of = {self.partial / name: stage for stage, name in files}
        stages: dict[str, list[str]] = {}
        for name, place in self._places.items():
            stages.setdefault(stage_of.get(place.path, REST), []).append(name)
        return stages

    def _check_binding(self, journal: Journal, binding: Mapping[str, Any] | None) -> None:
        count = len(journal.entries)
        what = f"{self.partial} holds an unfinished run, of which {count} stages are done"
        ways = f"go on with the command that began it, name another output, or {_DISCARD}"
        if binding is None:
            raise CheckpointError(f"{what}; {ways}")
        if found := differences(journal.binding or {}, binding):
            lines = [f"{what}, and it is not this one:", *(f"  {one}" for one in found), ways]
            raise CheckpointError("\n".join(lines))

    def _count_sound(self, entries: Sequence[Mapping[str, Any]]) -> int:
        """How many stages, from the first on, have their files as they were written."""
        for number, entry in enumerate(entries):
            for file in _files_of(entry):
                path = self.partial / file["name"]
                if not path.is_file() or checksum(path) != file["sha256"]:
                    log.warning(
                        "%s is %s: its stage, %s, and all later ones are done again",
                        *(path, "damaged" if path.is_file() else "missing", entry.get("stage")),
                    )
                    return number
        return len(entries)

    def _clear(self) -> None:
        """Remove what no line of the journal speaks of, and learn what there is."""
        assert self._journal is not None
        entries = self._journal.entries
        kept = {file["name"]: file["sha256"] for entry in entries for file in entry["files"]}
        beside = {file["name"] for entry in entries for file in _files_of(entry)}
        for path in self.partial.iterdir():
            if path == self.folder:
                shutil.rmtree(path)
            elif self._destination.is_ours(path) and path.name not in (NAME, *kept, *beside):
                path.unlink()
        self.learn([{"name": name, "sha256": digest} for name, digest in kept.items()])
        self.folder.mkdir()

    def learn(self, files: Sequence[Mapping[str, str]]) -> None:
        """Note files that are there, so that they can be read."""
        for file in files:
            path = self.partial / file["name"]
            entries = read_header(path)
            self._parts[path] = Part(len(entries), file["sha256"])
            self._places.update({name: Place(path, entry) for name, entry in entries.items()})

    def _require_open(self) -> None:
        if self._state == "entered":
            self.begin()
        if self._state != "open":
            raise RuntimeError(f"this CheckpointWriter is {self._state}; use it inside `with`, and finish it once")

    def _flush(self) -> None:
        path = self.partial / f"part-{len(self._parts) + 1:05d}.safetensors"
        unnamed = path.with_suffix(".tmp")
        with disk_errors(path):
            unnamed.unlink(missing_ok=True)  # of an attempt for which the disk was too full
            digest = write_shard(unnamed, self._buffer)
            unnamed.rename(path)
        self._uncommitted.append({"name": path.name, "sha256": digest})
        self.learn(self._uncommitted[-1:])
        self._buffer, self._buffered = {}, 0


def _files_of(entry: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The files that a line of the journal speaks of."""
    return [*entry["files"], *([entry["beside"]] if "beside" in entry else [])]


def _size(value: int | str) -> int:
    """Bytes of `5000000000`, `"5GB"` or `"4.5 GiB"`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", str(value).upper())
    size = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if isinstance(value, bool) or size < 1:
        raise ArgumentError(f"max_shard_size is {value!r}; give a number of bytes, or a size such as '5GB' or '500MB'")
    return size


def _check_storable(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise CheckpointError(f"tensor {name!r} has no data (it is on the meta device); load it before it is saved")
    if not is_storable(tensor.dtype) or tensor.layout != torch.strided:
        raise CheckpointError(f"tensor {name!r} is a {tensor.layout} {tensor.dtype}, which safetensors cannot hold")
