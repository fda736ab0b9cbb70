"""Where a checkpoint appears: what lies there before, the folder beside it that a run works in, and the last rename.

<output>.partial/checkpoint/    becomes <output>, by one rename
<output>.partial/replaced/      what <output> was, while it is replaced
<output>.replaced/              what was in it that no run of ours wrote and that the new checkpoint has no place for
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from coldpress.checkpoint.companion import is_of_weights
from coldpress.checkpoint.disk import checksum, sync, telling
from coldpress.checkpoint.journal import NAME, Journal, is_journal
from coldpress.errors import CheckpointError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FILES = "files"  # of the manifest: name of every file of a checkpoint to its SHA-256
_COMPLETE = "complete"  # a file that says: when the folder beside it is gone, it was renamed
_LONGEST_NAME = 255  # bytes, where a file system does not say


@define(eq=False)
class Destination:
    """A folder that does not exist, is empty, or is replaced; nothing that no run of ours wrote is ever deleted.

    Attributes:
        output: the folder that `publish` makes.
        overwrite: replace the checkpoint that is there.
    """

    output: Path
    overwrite: bool = False
    _made: list[Path] = field(init=False, factory=list)  # folders on the way to the output, the innermost first

    @property
    def partial(self) -> Path:
        """Where a run works."""
        return self.output.parent / f"{self.output.name}.partial"

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
        with telling(self.output):
            self._check_name()
            self._check_partial()
            self._recover()
            self._check_output()
            self._check_parent()

    def make(self) -> None:
        """Make the folder that a run works in, and those on the way."""
        self._made = [parent for parent in self.partial.parents if not parent.exists()]
        with telling(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove what a run has left, and the folders that `make` made."""
        self._clear()
        with suppress(OSError):  # somebody else uses it by now
            for parent in self._made:
                parent.rmdir()

    def is_ours(self, path: Path) -> bool:
        """Whether something in `partial` has a name that a run gives."""
        parts = path.name.startswith("part-") and path.suffix in (".safetensors", ".tmp")
        return parts or path == self.folder or path.name in (NAME, _COMPLETE)

    def complete(self) -> None:
        """Note that the checkpoint is whole and durable: from here on nothing but `publish` may move it."""
        with telling(self.folder):
            (self.partial / _COMPLETE).touch()
            sync(self.partial)

    def publish(self) -> None:
        """Put the complete checkpoint in place.

        Raises:
            CheckpointError: the output was created meanwhile, or cannot be renamed; the work is kept.
        """
        replaces = self.output.is_dir() and any(self.output.iterdir())
        if replaces and not self.overwrite:
            raise CheckpointError(
                f"{self.output} was created while this run worked; the finished checkpoint is kept at {self.folder}"
            )
        try:
            if replaces:
                self.output.rename(self._replaced)
            elif self.output.is_dir():
                self.output.rmdir()
            self.folder.rename(self.output)
        except OSError as error:
            if self._replaced.exists() and not self.output.exists():
                self._replaced.rename(self.output)
            raise CheckpointError(
                f"cannot put the checkpoint in place at {self.output} ({error.strerror or error}); "
                f"it is complete: move {self.folder} there yourself"
            ) from error
        with telling(self.output):
            sync(self.output.parent)
            self._settle()
            self._clear()

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
        if (self.partial / _COMPLETE).is_file() and not self.folder.exists():
            self._settle()  # killed after its last rename
            self._clear()

    def _check_output(self) -> None:
        if not os.path.lexists(self.output):
            return
        if not self.output.is_dir():
            raise CheckpointError(f"{self.output} is a file; a checkpoint is a folder: name another output")
        with suppress(FileNotFoundError):  # a working folder that is gone
            if Path.cwd().is_relative_to(self.output):
                raise CheckpointError(
                    f"{self.output} is or holds the working folder, and a checkpoint takes the place of its folder: "
                    f"name one inside of it, such as {self.output / 'out'}"
                )
        if os.path.ismount(self.output):
            raise CheckpointError(
                f"{self.output} is a mount point, which cannot be renamed: name a folder inside of it, such as "
                f"{self.output / 'out'}"
            )
        if not any(self.output.iterdir()):
            return
        if not self.overwrite:
            raise CheckpointError(
                f"{self.output} exists and is not empty; pass overwrite=True (--overwrite) to replace it, "
                "or name another output"
            )
        if not (self.output / "config.json").is_file() and not any(self.output.glob("*.safetensors")):
            raise CheckpointError(f"{self.output} is not a checkpoint, so it is not overwritten; name another output")
        if Path.home().is_relative_to(self.output):
            raise CheckpointError(f"{self.output} holds the home folder, so it is not overwritten")

    def _check_parent(self) -> None:
        parent = next(parent for parent in self.output.parents if parent.exists())
        if not parent.is_dir():
            raise CheckpointError(f"cannot write {self.output}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(f"cannot write {self.output}: no permission to write in {parent}")

    def _settle(self) -> None:
        """Delete what the replaced checkpoint was; move what was beside it back, or where its user finds it."""
        if not self._replaced.is_dir():
            return
        _delete_known(self._replaced, self.output)
        _move(self._replaced, self.output)
        with suppress(OSError):
            self._replaced.rmdir()
        if not self._replaced.exists():
            return
        kept = next(path for path in _numbered(self.output.with_name(f"{self.output.name}.replaced")))
        self._replaced.rename(kept)
        names = sorted(path.name for path in kept.iterdir())
        log.warning("%s held files that coldpress did not write; they are in %s: %s", self.output, kept, names)

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
    with telling(Path(output)):
        try:
            return Path(output).expanduser().resolve()
        except (ValueError, RuntimeError) as error:  # a NUL, a loop of links, ~somebody who is not there
            raise CheckpointError(f"{str(output)!r} cannot be the name of a folder: {error}") from error


def checksums(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Name of every file of a checkpoint to its SHA-256.

    Args:
        folder: of the checkpoint.
        known: of some of them, so that these need not be read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or checksum(folder / name) for name in names if name != MANIFEST}


def _delete_known(folder: Path, new: Path) -> None:
    """Delete the files of a checkpoint as its manifest has them, and what is in the new one byte by byte."""
    old, fresh = _manifest_files(folder / MANIFEST), _manifest_files(new / MANIFEST)
    for path in [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]:
        name = path.relative_to(folder).as_posix()
        known = {files[name] for files in (old, fresh) if name in files}
        if (old and name == MANIFEST) or (known and checksum(path) in known):
            path.unlink()
            for parent in list(path.relative_to(folder).parents)[:-1]:
                with suppress(OSError):  # something is in it
                    (folder / parent).rmdir()


def _manifest_files(path: Path) -> dict[str, str]:
    """What a manifest of ours says of the files beside it; nothing where there is none."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))[_FILES]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _move(source: Path, target: Path) -> None:
    """Move what is in one folder into another, but for what is there, and for weights, which readers would take up."""
    for path in source.iterdir():
        place = target / path.name
        both = path.is_dir() and place.is_dir() and not path.is_symlink() and not place.is_symlink()
        if both:
            _move(path, place)
            with suppress(OSError):  # something is in it
                path.rmdir()
        elif not os.path.lexists(place) and (path.is_dir() or not is_of_weights(path.name)):
            with suppress(OSError):  # a mount point: it stays
                path.rename(place)


def _numbered(path: Path) -> Iterator[Path]:
    """This name and those after it, as far as they are free."""
    number = 1
    while True:
        found = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not os.path.lexists(found):
            yield found
        number += 1
