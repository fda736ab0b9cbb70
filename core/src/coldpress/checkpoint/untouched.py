"""The files that a run reads: seen again before its checkpoint is put in place, in case they were written to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen

from coldpress.checkpoint.companion import CONFIG, is_of_weights
from coldpress.errors import CheckpointError

_Signature = tuple[int, int, int]


@frozen
class Untouched:
    """Files as they were when a run began to read them.

    Attributes:
        signatures: path to size, time of change and inode.
    """

    signatures: Mapping[Path, _Signature]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Untouched":
        """Note how files are now; those that are not there are left out."""
        found = {path: _signature(path) for path in paths}
        return cls({path: signature for path, signature in found.items() if signature is not None})

    def check(self) -> None:
        """See that no file was written, replaced or removed since.

        Raises:
            CheckpointError: names the file.
        """
        for path, signature in self.signatures.items():
            if _signature(path) != signature:
                raise CheckpointError(
                    f"{path} was written while this run read it, so no checkpoint is put in place: it may mix two "
                    "versions of the model; the same command again resumes if the file holds what it held at the "
                    "beginning, and else says what changed"
                )


def read_files(model: Path) -> list[Path]:
    """The files of a model that a run depends on: weights, their indices, the configuration; a file is itself."""
    if not model.is_dir():
        return [model]
    return [path for path in sorted(model.iterdir()) if path.name == CONFIG or is_of_weights(path.name)]


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
