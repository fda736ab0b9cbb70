"""Files that must be there after a crash: errors in a user's words, fsync, locks, checksums."""

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from coldpress.errors import CheckpointError

_PIECE = 1 << 22  # bytes that are read at a time


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file into an error for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"the disk is full: cannot write {path}; free some space on it or name an output on another disk"
            ) from error
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def as_utf8(text: str) -> bytes:
    """Text as a file holds it; what is no character, as in names of files that are no UTF-8, in JSON's own escape."""
    return text.encode("utf-8", errors="backslashreplace")


def try_lock(file: IO[Any]) -> bool:
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


def sync_tree(folder: Path) -> None:
    """Make a folder and all that is in it durable."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Make one file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def pieces(source: IO[bytes], count: int) -> Iterator[bytes]:
    """The next `count` bytes, a piece at a time.

    Raises:
        OSError: the source ends before that.
    """
    while count:
        piece = source.read(min(count, _PIECE))
        if not piece:
            raise OSError(errno.EIO, "a file has become shorter", getattr(source, "name", None))
        yield piece
        count -= len(piece)
