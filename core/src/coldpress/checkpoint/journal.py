"""The journal of a run: what it works on, and one line for every stage that is finished and safe on the disk.

    {"coldpress_journal": 1, "binding": {...}}     recipe, model, data, seed, ... by text or hash (see binding.py)
    {"stage": "prologue", "files": [...], ...}     fsynced after the files of the stage are
    {"stage": "model.layers.0", ...}

A line that was cut off by a crash is dropped; what its stage had written is then not counted.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from coldpress.checkpoint.disk import as_utf8, telling, try_lock
from coldpress.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "journal.jsonl"
_SIGN = "coldpress_journal"
_VERSION = 1
_START = f'{{"{_SIGN}": {_VERSION}'


class Journal:
    """The journal of one folder, held open and locked until it is closed.

    Attributes:
        path: of the file.
        binding: what the run works on; None before `start`.
        entries: the lines of finished stages, in order.
    """

    def __init__(self, folder: Path) -> None:
        """Open the journal of a folder, or begin one; the folder must exist.

        Raises:
            CheckpointError: another run holds it, or the file is not a journal of ours.
        """
        self.path = folder / NAME
        self.binding: Mapping[str, Any] | None = None
        self.entries: list[Mapping[str, Any]] = []
        self._ends: list[int] = []  # bytes up to the end of each line
        with telling(self.path):
            self._file: IO[bytes] = self.path.open("a+b")
        if not try_lock(self._file):
            self._file.close()
            raise CheckpointError(f"another run is writing into {folder} now; name another output")
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def start(self, binding: Mapping[str, Any]) -> None:
        """Begin anew: drop every line and say what the run works on."""
        self._cut(0)
        self.binding, self.entries, self._ends = binding, [], []
        self._append({_SIGN: _VERSION, "binding": binding})

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the line of a finished stage; when this returns, it is on the disk."""
        self._append(entry)
        self.entries.append(entry)

    def keep(self, count: int) -> None:
        """Drop all but the first `count` finished stages."""
        if count < len(self.entries):
            del self.entries[count:], self._ends[count + 1 :]
            self._cut(self._ends[-1])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _append(self, value: Mapping[str, Any]) -> None:
        line = as_utf8(json.dumps(value, ensure_ascii=False) + "\n")
        with telling(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(line))

    def _cut(self, size: int) -> None:
        with telling(self.path):
            self._file.truncate(size)
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        _check_ours(self.path, content)
        lines = _whole_lines(content)
        self._ends = [end for _, end in lines]
        if lines:
            self.binding = lines[0][0].get("binding", {})
            self.entries = [value for value, _ in lines[1:]]
        sound = self._ends[-1] if self._ends else 0
        if sound < len(content):
            log.warning("%s ends in a line that was cut off; it is dropped", self.path)
            self._cut(sound)


def is_journal(path: Path) -> bool:
    """Whether a file is a journal of ours, be it empty."""
    try:
        with path.open("rb") as file:
            _check_ours(path, file.read(len(_START)))
    except (OSError, CheckpointError):
        return False
    return True


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two bindings say differently, one line each; what begins with `_` does not count."""
    keys = [key for key in dict.fromkeys((*old, *new)) if not key.startswith("_")]
    return [_difference(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
        return f"{key}: {', '.join(found)} changed"
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        before, now = _first_difference(old.splitlines(), new.splitlines())
        return f"{key}: {before!r} then, {now!r} now"
    if key in ("model", "data", "configuration"):  # hashes say nothing to a person
        return f"{key}: not the same as then"
    return f"{key}: {old!r} then, {new!r} now"


def _first_difference(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    longest = max(len(old), len(new))
    pairs = zip([*old, *[""] * (longest - len(old))], [*new, *[""] * (longest - len(new))], strict=True)
    before, now = next(pair for pair in pairs if pair[0] != pair[1])
    return before.strip(), now.strip()


def _check_ours(path: Path, content: bytes) -> None:
    start = content[: len(_START)]
    if start != _START.encode()[: len(start)]:
        raise CheckpointError(f"{path} is not a journal of this version of coldpress; move its folder, or name another")


def _whole_lines(content: bytes) -> list[tuple[dict[str, Any], int]]:
    """The lines up to the first that is not whole, each with where it ends."""
    lines, end = [], 0
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            break
        end += len(line)
        lines.append((value, end))
    return lines
