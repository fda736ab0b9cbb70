"""What a checkpoint replaces: files that a run of ours wrote are deleted, all others put back where they were."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from coldpress.checkpoint.companion import is_of_weights
from coldpress.checkpoint.disk import checksum

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FILES = "files"  # of the manifest: name of every file of a checkpoint to its SHA-256


def settle(old: Path, new: Path) -> None:
    """Delete the files of a replaced checkpoint, and move what lay beside them back, or where its user finds it.

    Args:
        old: what the folder held before.
        new: the folder, with the checkpoint that is there now.
    """
    _delete_known(old, new)
    _move_back(old, new)
    with suppress(OSError):  # something is in it
        old.rmdir()
    if not old.exists():
        return
    kept = next(_free_names(new.parent / f"{new.name}.replaced"))
    try:
        old.rename(kept)
    except OSError:  # another file system, or no permission beside the output
        kept = next(_free_names(new / "replaced"))
        old.rename(kept)
    names = sorted(path.name for path in kept.iterdir())
    log.warning("%s held files that coldpress did not write; they are in %s: %s", new, kept, ", ".join(names))


def checksums(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Name of every file of a checkpoint to its SHA-256, as its manifest has them.

    Args:
        folder: of the checkpoint.
        known: of some of them, so that these need not be read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or checksum(folder / name) for name in names if name != MANIFEST}


def with_checksums(manifest: Mapping[str, object], files: Mapping[str, str]) -> dict[str, object]:
    """The content of manifest.json, by which a later run knows what it may delete."""
    return {**manifest, _FILES: dict(files)}


def files_of_user(folder: Path) -> set[str]:
    """Names of the files at the top of a folder that no run of ours wrote as they are."""
    known = _manifest_files(folder / MANIFEST)
    found = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    own = {path.name for path in found if known and (path.name == MANIFEST or _has(path, known.get(path.name)))}
    return {path.name for path in found} - own


def _delete_known(old: Path, new: Path) -> None:
    """Delete the files of a checkpoint as its manifest has them, and what is in the new one byte by byte."""
    before, now = _manifest_files(old / MANIFEST), _manifest_files(new / MANIFEST)
    for path in [path for path in old.rglob("*") if path.is_file() and not path.is_symlink()]:
        name = path.relative_to(old).as_posix()
        known = {files[name] for files in (before, now) if name in files}
        if (before and name == MANIFEST) or (known and checksum(path) in known):
            path.unlink()
            for parent in list(path.relative_to(old).parents)[:-1]:
                with suppress(OSError):  # something is in it
                    (old / parent).rmdir()


def _move_back(old: Path, new: Path) -> None:
    """Move what is in one folder into another, but for what is there, and for weights, which readers would take up."""
    for path in old.iterdir():
        place = new / path.name
        both = path.is_dir() and place.is_dir() and not path.is_symlink() and not place.is_symlink()
        if both:
            _move_back(path, place)
            with suppress(OSError):  # something is in it
                path.rmdir()
        elif not os.path.lexists(place) and (path.is_dir() or not is_of_weights(path.name)):
            with suppress(OSError):  # a mount point: it stays
                path.rename(place)


def _manifest_files(path: Path) -> dict[str, str]:
    """What a manifest of ours says of the files beside it; nothing where there is none."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))[_FILES]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _has(path: Path, digest: str | None) -> bool:
    return digest is not None and checksum(path) == digest


def _free_names(path: Path) -> Iterator[Path]:
    """This name and those after it, as far as they are free."""
    number = 1
    while True:
        found = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not os.path.lexists(found):
            yield found
        number += 1
