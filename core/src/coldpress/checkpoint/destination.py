"""Where a checkpoint appears: what lies there before, the folder that a run works in, and the last rename.

<output>.partial/checkpoint/    becomes <output>, by one rename
<output>.partial/replaced/      what <output> was, while it is replaced (see replaced.py)
<output>.replaced/              what was in it that no run of ours wrote and that the new checkpoint has no place for

A folder that cannot be renamed, because it is the working folder, a mount point, or in a folder that is read-only, is
filled file by file; then the run works inside of it, in `.coldpress.partial`.
"""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from coldpress.checkpoint.companion import CONFIG
from coldpress.checkpoint.disk import disk_errors, sync
from coldpress.checkpoint.journal import NAME, Journal, is_journal
from coldpress.checkpoint.replaced import settle
from coldpress.errors import CheckpointError

log = logging.getLogger(__name__)

_INSIDE = ".coldpress.partial"
_COMPLETE = "complete"  # a file that says: when the folder beside it is gone, it was renamed
_FILLING, _EMPTIED = "filling", "emptied"  # how far a folder is that is filled file by file
_LONGEST_NAME = 255  # bytes, where a file system does not say


@define(eq=False)
class Destination:
    """A folder that does not exist, is empty, or is replaced; nothing that no run of ours wrote is ever deleted.

    Attributes:
        output: the folder that `publish` makes.
        overwrite: replace the checkpoint that is there.
        any_folder: what is there may be no checkpoint.
        partial: where a run works.
    """

    output: Path
    overwrite: bool = False
    any_folder: bool = False
    partial: Path = field(init=False)
    _made: list[Path] = field(init=False, factory=list)  # folders on the way to the output, the innermost first

    @partial.default
    def _choose_partial(self) -> Path:
        inside, beside = self.output / _INSIDE, self.output.parent / f"{self.output.name}.partial"
        with disk_errors(self.output):
            fixed = _is_fixed(self.output) and not is_journal(beside / NAME)
            return inside if fixed or is_journal(inside / NAME) else beside

    @property
    def folder(self) -> Path:
        """The part of it that becomes the output."""
        return self.partial / "checkpoint"

    @property
    def _replaced(self) -> Path:
        return self.partial / "replaced"

    def check(self) -> None:
        """Look whether the output can be written; what a killed run has left half renamed is put right.

        Raises:
            CheckpointError: something is in the way; says what to do about it.
        """
        with disk_errors(self.output):
            self._check_name()
            self._check_partial()
            self._recover()
            self._check_output()
            self._check_permission()

    def make(self) -> None:
        """Make the folder that a run works in, and those on the way."""
        self._made = [parent for parent in self.partial.parents if not parent.exists()]
        with disk_errors(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove what a run has left, and the folders that `make` made."""
        self._clear()
        with suppress(OSError):  # it is in use by now
            for parent in self._made:
                parent.rmdir()

    def is_ours(self, path: Path) -> bool:
        """Whether something in `partial` has a name that a run gives."""
        parts = path.name.startswith(("part-", "beside-")) and path.suffix in (".safetensors", ".tmp")
        return parts or path == self.folder or path.name in (NAME, _COMPLETE, _FILLING, _EMPTIED)

    def complete(self) -> None:
        """Note that the checkpoint is whole and durable: from here on nothing but `publish` may move it."""
        with disk_errors(self.folder):
            self._mark(_COMPLETE)

    def publish(self) -> None:
        """Put the complete checkpoint in place.

        Raises:
            CheckpointError: the output was created meanwhile, or cannot be renamed; the work is kept.
        """
        if self._holds_something() and not self.overwrite:
            raise CheckpointError(
                f"{self.output} was created while this run worked; the finished checkpoint is kept at {self.folder}"
            )
        try:
            if self.partial.name == _INSIDE or _is_fixed(self.output):
                self._mark(_FILLING)
                self._fill()
            else:
                self._rename()
        except OSError as error:
            raise CheckpointError(
                f"cannot put the checkpoint in place at {self.output} ({error.strerror or error}); "
                f"it is complete: move {self.folder} there yourself"
            ) from error
        self._end()

    def _rename(self) -> None:
        if self._holds_something():
            self.output.rename(self._replaced)
        elif self.output.is_dir():
            self.output.rmdir()
        try:
            self.folder.rename(self.output)
        except OSError:
            if self._replaced.exists() and not self.output.exists():
                self._replaced.rename(self.output)
            raise

    def _fill(self) -> None:
        """Move what is in the output aside and the checkpoint in, its configuration last; may be called again."""
        self._replaced.mkdir(exist_ok=True)
        if not (self.partial / _EMPTIED).exists():
            for path in list(self.output.iterdir()):
                if path != self.partial:
                    with suppress(OSError):  # a mount point: it stays
                        shutil.move(path, self._replaced / path.name)
            self._mark(_EMPTIED)
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == CONFIG):
            shutil.move(path, self.output / path.name)
        self.folder.rmdir()

    def _end(self) -> None:
        with disk_errors(self.output):
            sync(self.output.parent)
            if self._replaced.is_dir():
                settle(self._replaced, self.output)
            self._clear()

    def _mark(self, name: str) -> None:
        (self.partial / name).touch()
        sync(self.partial)

    def _check_name(self) -> None:
        if not self.output.name:
            raise CheckpointError(f"{self.output} is not a folder that a checkpoint can be written to")
        parent = next(parent for parent in self.output.parents if parent.exists())
        longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else _LONGEST_NAME
        parts = (*self.output.relative_to(parent).parts, self.partial.name)
        if any(len(os.fsencode(part)) > longest for part in parts):
            raise CheckpointError(
                f"cannot write {self.output}: a name in it is too long for this file system, which takes {longest} "
                f"bytes, {len(self.partial.suffix)} of them for {self.partial.suffix!r}"
            )

    def _check_partial(self) -> None:
        if not os.path.lexists(self.partial):
            return
        folder = self.partial.is_dir() and not self.partial.is_symlink()
        empty = folder and not any(self.partial.iterdir())  # killed before its first byte
        if not empty and not (folder and is_journal(self.partial / NAME)):
            raise CheckpointError(
                f"{self.partial} is in the way and was not left by an interrupted run of this version; "
                "move it, or name another output"
            )
        Journal(self.partial).close()  # says so if another run holds it

    def _recover(self) -> None:
        if self._replaced.is_dir() and not os.path.lexists(self.output):
            self._replaced.rename(self.output)  # killed between its two renames
        if (self.partial / _FILLING).is_file() and self.folder.exists():
            self._fill()  # killed while the folder was filled
        if (self.partial / _COMPLETE).is_file() and not self.folder.exists():
            self._end()  # killed after its last rename

    def _check_output(self) -> None:
        if not os.path.lexists(self.output):
            return
        if not self.output.is_dir():
            raise CheckpointError(f"{self.output} is a file; a checkpoint is a folder: name another output")
        if not self._holds_something():
            return
        if not self.overwrite:
            raise CheckpointError(
                f"{self.output} exists and is not empty; pass overwrite=True to replace it, or name another output"
            )
        is_checkpoint = (self.output / CONFIG).is_file() or any(self.output.glob("*.safetensors"))
        if not self.any_folder and not is_checkpoint:
            raise CheckpointError(f"{self.output} is not a checkpoint, so it is not overwritten; name another output")
        if Path.home().is_relative_to(self.output):
            raise CheckpointError(f"{self.output} holds the home folder, so it is not overwritten")

    def _check_permission(self) -> None:
        parent = next(parent for parent in self.partial.parents if parent.exists())
        if not parent.is_dir():
            raise CheckpointError(f"cannot write {self.output}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(f"cannot write {self.output}: no permission to write in {parent}")

    def _holds_something(self) -> bool:
        return self.output.is_dir() and any(path.name != _INSIDE for path in self.output.iterdir())

    def _clear(self) -> None:
        for path in self.partial.iterdir() if self.partial.is_dir() else ():
            if path == self.folder:
                shutil.rmtree(path, ignore_errors=True)
            elif self.is_ours(path):
                path.unlink(missing_ok=True)
        try:
            self.partial.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            log.warning("%s holds files that coldpress did not write, so it is left there", self.partial)


def resolved(output: str | Path) -> Path:
    """An output as an absolute path; links are followed, so that the rename is on the file system of the real folder.

    Raises:
        CheckpointError: it cannot be the name of a folder.
    """
    with disk_errors(Path(output)):
        try:
            return Path(output).expanduser().resolve()
        except (ValueError, RuntimeError) as error:  # a NUL, a loop of links, ~name of no user
            raise CheckpointError(f"{str(output)!r} cannot be the name of a folder: {error}") from error


def _is_fixed(folder: Path) -> bool:
    """Whether a folder is there and cannot be renamed, but written into."""
    if not folder.is_dir():
        return False
    try:
        is_working = Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # a working folder that is gone
        is_working = False
    if is_working or os.path.ismount(folder):
        return True
    return os.access(folder, os.W_OK | os.X_OK) and not os.access(folder.parent, os.W_OK | os.X_OK)
