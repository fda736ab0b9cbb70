"""The journal of a run: what it works on, and one line for every stage that is finished and safe on the disk.

    {"coldpress_journal": 1, "binding": {...}}     recipe, model, data, seed, ... by text or hash (see binding.py)
    {"stage": "prologue", "files": [...], ...}     fsynced after the files of the stage are
    {"stage": "model.layers.0", ...}

A line that was cut off by a crash is dropped; what its stage had written is then not counted.
A line that is whole and says what no run of ours says is refused by its number.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from coldpress.checkpoint.disk import as_utf8, disk_errors, try_lock
from coldpress.checkpoint.made_with import MADE_WITH, changes, is_entry
from coldpress.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "journal.jsonl"
_SIGN = "coldpress_journal"
_VERSION = 1
FILES = "_files"
"""In a binding: name of each file that the weights are read from to what tells that it was not touched."""

BESIDE = "beside-{}.safetensors"
"""A file of tensors that are no part of the checkpoint."""

_PART = re.compile(r"part-\d+\.safetensors")
_BESIDE = re.compile(r"beside-[a-z]+(-\d+)?\.safetensors")
_START = f'{{"{_SIGN}": {_VERSION}'


class Journal:
    """The journal of one folder, held open and locked until it is closed.

    Attributes:
        path: of the file.
        binding: what the run works on; None before `start`.
        entries: the lines of finished stages, in order, up to the first that is damaged.
        damage: what is wrong with the first damaged line; None when all are sound.
    """

    def __init__(self, folder: Path) -> None:
        """Open the journal of a folder, or begin one; the folder must exist.

        Raises:
            CheckpointError: another run holds it, or the file is not a journal of ours.
        """
        self.path = folder / NAME
        self.binding: Mapping[str, Any] | None = None
        self.entries: list[Mapping[str, Any]] = []
        self.damage: str | None = None
        self._ends: list[int] = []  # bytes up to the end of each line
        if self.path.exists() and not self.path.is_file():
            raise CheckpointError(f"{self.path} is no regular file: remove it, or name another output")
        with disk_errors(self.path):
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
        self.binding, self.entries, self.damage, self._ends = binding, [], None, []
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
        with disk_errors(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(line))

    def _cut(self, size: int) -> None:
        with disk_errors(self.path):
            self._file.truncate(size)
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        _check_ours(self.path, content)
        lines = _whole_lines(content)
        self._ends = [end for _, end in lines]
        for number, (value, _) in enumerate(lines, start=1):
            wrong = _wrong_entry(value) if number > 1 else _wrong_start(value)
            if wrong is not None:
                self.damage = f"{self.path}, line {number}: {wrong}"
                break
            if number > 1:
                self.entries.append(value)
            else:
                self.binding = value["binding"]
        sound = self._ends[-1] if self._ends else 0
        if sound < len(content):
            log.warning("%s ends in a line that was cut off; it is dropped", self.path)
            self._cut(sound)


def is_journal(path: Path) -> bool:
    """Whether a file is a journal of ours, be it empty."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            _check_ours(path, file.read(len(_START)))
    except (OSError, CheckpointError):
        return False
    return True


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two bindings say differently, one line each; what begins with `_` does not count."""
    keys = [key for key in dict.fromkeys((*old, *new)) if not key.startswith("_")]
    different = [key for key in keys if old.get(key) != new.get(key)]
    found = [_difference(key, old.get(key), new.get(key)) for key in different if key != MADE_WITH]
    return [*found, *(changes(old.get(MADE_WITH, {}), new.get(MADE_WITH, {})) if MADE_WITH in different else ())]


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


def _wrong_start(line: Mapping[str, Any]) -> str | None:
    binding = line.get("binding")
    if not isinstance(binding, dict):
        return "'binding' is no table"
    files = binding.get(FILES, {})
    if not isinstance(files, dict) or not all(_is_signature(value) for value in files.values()):
        return f"{FILES!r} of 'binding' is no table from file to size, time, inode and checksum"
    code = binding.get(MADE_WITH, {})
    if not isinstance(code, dict) or not all(is_entry(value) for value in code.values()):
        return f"{MADE_WITH!r} of 'binding' is no table from package to version, checksum and classes"
    return None


def _is_signature(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and isinstance(value[3], str)


def _wrong_entry(line: Mapping[str, Any]) -> str | None:
    """What the line of a stage says that a run cannot have written there."""
    files = line.get("files")
    if not isinstance(files, list):
        return "'files' is no list"
    beside = [line["beside"]] if "beside" in line else []
    for file, pattern in [*((file, _PART) for file in files), *((file, _BESIDE) for file in beside)]:
        name, digest = (file.get("name"), file.get("sha256")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(digest, str) or pattern.fullmatch(name) is None:
            return f"'files' names {file!r}, which is no file of a stage"
    if "report" in line and not isinstance(line.get("stage"), str):
        return "'stage' is no name"
    return None


def _whole_lines(content: bytes) -> list[tuple[dict[str, Any], int]]:
    """The lines up to the first that is not whole, each with where it ends."""
    lines, end = [], 0
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            break
        end += len(line)
        lines.append((value, end))
    return lines
