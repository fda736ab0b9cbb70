"""Files of text, JSON and CSV as rows, read where they lie: no copy is kept in any cache.

A file of text is running text: its pieces are what packing joins; its lines are rows only where that is asked for.
"""

import csv
import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from coldpress.calibration.conversation import CHAT_COLUMNS
from coldpress.calibration.table import rows_of_table
from coldpress.calibration.token_rows import MAIN
from coldpress.errors import CalibrationError

SUFFIXES = ("json", "jsonl", "csv", "txt")
_CHUNK = 2**20  # bytes that are searched for line ends at once
_MOST = 2**28  # bytes of a line of JSON: more is not a row of calibration data
_SEARCHED = 64  # bytes at the end of a piece in which a space is looked for
_INSIDE = range(0x80, 0xC0)  # bytes inside of a character of UTF-8

Spans = Sequence[tuple[int, int]]
"""Where parts of a file begin and end, in bytes."""


@frozen(eq=False)
class FileRows(Sequence[Any]):
    """Rows of files, each of which is read when it is asked for.

    Attributes:
        length: how many there are.
        read: the row of an index.
        where: the place of an index, for messages: "'data.jsonl', line 3".
        nbytes: of the files.
        is_running_text: they are consecutive pieces of one text.
    """

    length: int
    read: Callable[[int], Any]
    where: Callable[[int], str]
    nbytes: int
    is_running_text: bool = False

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """One row."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.read(index)

    def part(self, start: int, stop: int) -> "FileRows":
        """The rows from `start` to `stop`."""
        length = max(0, stop - start)
        share = self.nbytes * length // max(1, self.length)
        return evolve(
            self,
            length=length,
            read=lambda i: self.read(start + i),
            where=lambda i: self.where(start + i),
            nbytes=share,
        )


def read_file(path: Path) -> FileRows:
    """The rows of a file: lines of text, of JSON, or of CSV.

    Raises:
        CalibrationError: it cannot be read; names the file and the line.
    """
    check_regular(path)
    kind = path.suffix.lstrip(".").lower()
    if kind == "txt":
        return _lines(path, lambda text, _: text.rstrip("\r\n"))
    if kind == "csv":
        return _csv(path)
    return _lines(path, _parsed) if kind == "jsonl" or _is_lines(path) else _json(path)


def read_pieces(path: Path, size: int) -> FileRows:
    """A file of text in pieces of about `size` bytes, at least 128, which end where a line does if that is no longer.

    Raises:
        CalibrationError: it cannot be read.
    """
    check_regular(path)
    lines, size = _line_spans(path), max(size, 2 * _SEARCHED)
    pieces: list[tuple[int, int]] = []
    for start, stop in lines:
        for begin, end in _cut(path, start, stop, size):
            if pieces and end - pieces[-1][0] <= size:
                pieces[-1] = pieces[-1][0], end
            else:
                pieces.append((begin, end))
    return evolve(_of_spans(path, pieces, lambda text, _: text, "piece"), is_running_text=True)


def joined(parts: Sequence[FileRows]) -> FileRows:
    """The rows of several files, one file after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = list(accumulate((len(part) for part in parts), initial=0))

    def place(index: int) -> tuple[FileRows, int]:
        number = bisect_right(starts, index) - 1
        return parts[number], index - starts[number]

    def read(index: int) -> Any:
        part, inside = place(index)
        return part.read(inside)

    def where(index: int) -> str:
        part, inside = place(index)
        return part.where(inside)

    nbytes, running = sum(part.nbytes for part in parts), all(part.is_running_text for part in parts)
    return FileRows(starts[-1], read, where, nbytes, running)


def check_regular(path: Path) -> None:
    """Refuse what may never end, or is no file.

    Raises:
        CalibrationError: it is a pipe, a device or a socket, or may not be read.
    """
    if not path.is_file():
        raise CalibrationError(
            f"{str(path)!r} is no regular file (a pipe, a device or a socket): write it to one first"
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise CalibrationError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _lines(path: Path, read: Callable[[str, str], Any]) -> FileRows:
    return _of_spans(path, _line_spans(path), read, "line")


def _of_spans(path: Path, spans: Spans, read: Callable[[str, str], Any], unit: str) -> FileRows:
    def where(index: int) -> str:
        return f"{str(path)!r}, {unit} {index + 1}"

    return FileRows(
        len(spans), lambda i: read(_text(path, *spans[i], where(i)), where(i)), where, spans[-1][1] if spans else 0
    )


def _line_spans(path: Path) -> Spans:
    """Every line of a file, its end included."""
    ends, position = [0], 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends += [position + found.end() for found in re.finditer(b"\n", chunk)]
            position += len(chunk)
    if position > ends[-1]:
        ends.append(position)
    return list(pairwise(ends))


def _cut(path: Path, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """A line in parts of `size` bytes at most, which end before a space, or at least not inside of a character."""
    with path.open("rb") as file:
        while stop - start > size:
            file.seek(start + size - _SEARCHED)
            last = file.read(_SEARCHED)
            space = last.rfind(b" ")
            back = len(last) - space if space > 0 else next((n for n in range(1, 4) if last[-n] not in _INSIDE), 0)
            yield start, start + size - back
            start += size - back
    yield start, stop


def _text(path: Path, start: int, stop: int, where: str) -> str:
    if stop - start > _MOST:
        raise CalibrationError(f"{where} is {stop - start} bytes long: that is no row of text")
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    try:
        return content.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{where} is not UTF-8 text (byte {start + error.start} of the file)") from error


def _parsed(text: str, where: str) -> Any:
    """A value of JSON; nothing for a line that is blank."""
    if not text.strip():
        return ""
    try:
        return json.loads(text)
    except ValueError as error:
        raise CalibrationError(f"{where} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise CalibrationError(f"{where} cannot be read as JSON: it is nested too deeply") from error


def _is_lines(path: Path) -> bool:
    """Whether a file of JSON has one object a line, and more than one line."""
    with path.open("rb") as file:
        first = file.readline(_MOST).removeprefix(b"\xef\xbb\xbf").strip()
        more = file.readline(_MOST).strip()
    return first.startswith(b"{") and first.endswith(b"}") and more.startswith(b"{")


def _json(path: Path) -> FileRows:
    """A file that is one value of JSON: a list of rows, an object around one, a table of columns, or one row."""
    size = path.stat().st_size
    rows = _rows(_parsed(_text(path, 0, size, repr(str(path))), repr(str(path))))
    if rows is None:
        raise CalibrationError(f"{str(path)!r} must hold a list of rows, a table of columns, or one row a line")
    return FileRows(len(rows), rows.__getitem__, lambda i: f"{str(path)!r}, row {i}", size)


def _rows(found: Any) -> list[Any] | None:
    if not isinstance(found, Mapping):
        return found if isinstance(found, list) else None
    parts = list(found.values())
    if any(name in CHAT_COLUMNS for name in found) or not all(isinstance(part, list) for part in parts):
        return [found]
    if len(parts) == 1 and all(isinstance(row, Mapping) for row in parts[0]):
        return [*parts[0]]
    if any(name in MAIN and part and not isinstance(part[0], list) for name, part in found.items()):
        return [found]
    rows = rows_of_table(found)
    return [found] if rows is None else [*rows]


def _csv(path: Path) -> FileRows:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{str(path)!r} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise CalibrationError(f"{str(path)!r} cannot be read as CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for line, row in rows:
        if None in row:
            raise CalibrationError(f"{str(path)!r}, line {line}: more fields than the header has columns")

    def read(index: int) -> Mapping[str, str]:
        return {name: value for name, value in rows[index][1].items() if value is not None}

    return FileRows(len(rows), read, lambda i: f"{str(path)!r}, line {rows[i][0]}", path.stat().st_size)
