"""A checkpoint folder, written so that it is there whole or not at all.

<output>.partial/     where everything is written, shard after shard; our marker tells it from a user's folder
<output>/             appears by one rename, when all files are on the disk
"""

import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from coldpress.checkpoint.shard import is_storable, write_shard
from coldpress.errors import ArgumentError, CheckpointError

log = logging.getLogger(__name__)

MARKER = ".coldpress-partial"  # the journal of a resumable run takes its place
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class CheckpointWriter:
    """Tensors and small files on their way to a new checkpoint folder.

    Use it as a context manager and call `finish()` at the end of the block.
    Leaving the block in any other way removes what was written and touches nothing at `output`.

    Attributes:
        output: the folder that `finish()` makes.
        folder: where files are written until then; others may write into it too.
        max_shard_size: bytes of tensors in a file, at most; a larger tensor has a file of its own.
    """

    def __init__(self, output: str | Path, *, overwrite: bool = False, max_shard_size: int | str = "5GB") -> None:
        """Look whether `output` can be written, before any work is done; nothing is created yet.

        Args:
            output: a folder that does not exist or is empty; with `overwrite`, a checkpoint.
            overwrite: replace the checkpoint that is there, once the new one is complete.
            max_shard_size: bytes, or a number with a unit: `5GB` is decimal, `5GiB` is not.

        Raises:
            CheckpointError: something is in the way; says what to do about it.
            ArgumentError: `max_shard_size` is not a size.
        """
        self.max_shard_size = _size(max_shard_size)
        # Symbolic links are followed, so that the rename happens on the file system of the real folder.
        self.output = Path(output).resolve()
        if not self.output.name:
            raise CheckpointError(f"{output} is not a folder that a checkpoint can be written to")
        self.folder = self.output.with_name(f"{self.output.name}.partial")
        self._aside = self.output.with_name(f"{self.output.name}.replaced-by-coldpress")
        self._buffer: dict[str, Tensor] = {}
        self._buffered = 0
        self._total = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._names: set[str] = set()
        self._state = "new"
        self._overwrite = overwrite
        self._lock: IO[str] | None = None
        self._check_output()
        self._check_partial()

    def __enter__(self) -> "CheckpointWriter":
        with _disk(self.folder):
            if self.folder.exists():
                log.info("removing %s, left over from an interrupted run", self.folder)
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            self._lock = (self.folder / MARKER).open("w", encoding="utf-8")
            self._lock.write("Unfinished output of coldpress; safe to delete unless a run is writing it.\n")
            self._lock.flush()
            _try_lock(self._lock)
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._state == "open":
            self._state = "discarded"
            self._buffer.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock:
            self._lock.close()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors; they go to disk as soon as they fill a file.

        A tensor that is not on the CPU is copied at once; any other must not change before `finish()`.
        Tensors that share memory are written each in full: hand over only one name of a tied weight.

        Raises:
            CheckpointError: a name comes twice, a tensor cannot be stored, or the disk is full.
        """
        self._require_open()
        for name, tensor in tensors.items():
            _check_storable(name, tensor)
            if name in self._names:
                raise CheckpointError(f"tensor {name!r} is written twice; the names of a checkpoint must be unique")
            size = tensor.numel() * tensor.element_size()
            if self._buffer and self._buffered + size > self.max_shard_size:
                self._flush()
            self._names.add(name)
            self._buffer[name] = tensor.detach().to("cpu")
            self._buffered += size

    def path(self, name: str) -> Path:
        """Where the file `name` of the checkpoint is written, for those who write it themselves.

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
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file; keys keep their order."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def finish(self) -> Path:
        """Write what is left and the index, make it durable, and put it in place by one rename.

        Returns:
            The folder of the finished checkpoint.

        Raises:
            CheckpointError: the disk is full, or `output` was created meanwhile (the work is kept then).
        """
        self._require_open()
        if self._buffer or not self._shards:
            self._flush()
        with _disk(self.folder):
            self._name_shards()
            (self.folder / MARKER).unlink()
            _sync_tree(self.folder)
        self._state = "complete"  # from here on nothing removes the work
        self._publish()
        self._state = "finished"
        return self.output

    def _check_output(self) -> None:
        if self._aside.exists() and not self.output.exists():
            with _disk(self._aside):
                self._aside.rename(self.output)  # a run was killed between its two renames
        if not os.path.lexists(self.output):
            return
        if not self.output.is_dir():
            raise CheckpointError(f"{self.output} is a file; a checkpoint is a folder: name another output")
        if not any(self.output.iterdir()):
            return
        if not self._overwrite:
            raise CheckpointError(
                f"{self.output} exists and is not empty; pass overwrite=True (--overwrite) to replace it, "
                "or name another output"
            )
        if not (self.output / "config.json").is_file() and not any(self.output.glob("*.safetensors")):
            raise CheckpointError(f"{self.output} is not a checkpoint, so it is not overwritten; name another output")
        if Path.cwd().is_relative_to(self.output) or Path.home().is_relative_to(self.output):
            raise CheckpointError(f"{self.output} holds the working or home folder, so it is not overwritten")

    def _check_partial(self) -> None:
        if os.path.lexists(self.folder):
            if not (self.folder / MARKER).is_file():
                raise CheckpointError(
                    f"{self.folder} is in the way and was not left by an interrupted run; "
                    "move it, or name another output"
                )
            with _disk(self.folder), (self.folder / MARKER).open() as marker:
                if not _try_lock(marker):
                    raise CheckpointError(f"another run is writing {self.output} now; name another output")
        parent = next(parent for parent in self.output.parents if parent.exists())
        if not parent.is_dir():
            raise CheckpointError(f"cannot write {self.output}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(f"cannot write {self.output}: no permission to write in {parent}")

    def _require_open(self) -> None:
        if self._state != "open":
            raise RuntimeError(f"this CheckpointWriter is {self._state}; use it inside `with`, and finish it once")

    def _flush(self) -> None:
        path = self.folder / f"shard-{len(self._shards) + 1:05d}.safetensors"
        with _disk(path):
            write_shard(path, self._buffer)
        self._shards.append((path, list(self._buffer)))
        self._total += self._buffered
        self._buffer, self._buffered = {}, 0

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            self._shards[0][0].rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, (path, names) in enumerate(self._shards, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        self.write_json("model.safetensors.index.json", index)

    def _publish(self) -> None:
        replaces = self.output.is_dir() and any(self.output.iterdir())
        if replaces and not self._overwrite:
            raise CheckpointError(
                f"{self.output} was created while this run worked; the finished checkpoint is kept at {self.folder}"
            )
        try:
            if replaces:
                self._set_aside()
            elif self.output.is_dir():
                self.output.rmdir()
            self.folder.rename(self.output)
        except OSError as error:
            if self._aside.exists() and not self.output.exists():
                self._aside.rename(self.output)
            raise CheckpointError(
                f"cannot put the checkpoint in place at {self.output} ({error.strerror or error}); "
                f"it is complete: move {self.folder} there yourself"
            ) from error
        with _disk(self.output):
            _sync(self.output.parent)
            if self._aside.exists():
                shutil.rmtree(self._aside)

    def _set_aside(self) -> None:
        if self._aside.exists():
            shutil.rmtree(self._aside)
        self.output.rename(self._aside)


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


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file into an error for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"the disk is full: cannot write {path}; free some space on it or name an output on another disk"
            ) from error
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; False when another process holds it.  Without locks: always True."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
