"""Splits of a data set, and parts of a split: "train", "train[:512]", "test[10%:20%]"."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from coldpress.errors import CalibrationError
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

_PART = re.compile(r"(?P<name>[\w.\-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@frozen
class SplitPart:
    """Some rows of a split.

    Attributes:
        name: of the split.
        start: the first row, or a share of all, "10%"; None for the first of all.
        stop: the row after the last, or a share; None for the end.
    """

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def in_rows(self) -> bool:
        """Whether the part is counted in rows from the beginning, which needs no length."""
        return all(bound is None or bound.isdigit() for bound in (self.start, self.stop))

    def indices(self, count: int) -> range:
        """Of the rows, where the split has `count`."""
        bounds = [None if bound is None else _row(bound, count) for bound in (self.start, self.stop)]
        return range(*slice(*bounds).indices(count))

    def of(self, rows: Any) -> Any:
        """These rows, of a sequence, a `Dataset` or a stream.

        Raises:
            CalibrationError: a share of a stream, whose length nothing tells.
        """
        if self.start is None and self.stop is None:
            return rows
        if hasattr(rows, "__len__"):
            chosen = self.indices(len(rows))
            if hasattr(rows, "part"):
                return rows.part(chosen.start, chosen.stop)
            return rows.select(chosen) if hasattr(rows, "select") else [rows[index] for index in chosen]
        if not self.in_rows or not hasattr(rows, "skip"):
            raise CalibrationError(f"a part of the split {self.name!r} cannot be had of a stream: pass streaming=False")
        start = int(self.start or 0)
        rows = rows.skip(start) if start else rows
        return rows if self.stop is None else rows.take(max(0, int(self.stop) - start))


def split_part(split: str) -> SplitPart | None:
    """A split, or a part of one, by its name; None where it is something else, such as a sum of parts."""
    found = _PART.fullmatch(split)
    return None if found is None else SplitPart(found["name"], found["start"], found["stop"])


def pick(found: Any, split: str | None, origin: str) -> Any:
    """The split of a dict of splits, or a part of it; anything else as it is.

    Raises:
        CalibrationError: there is no such split, or none was chosen of several.
    """
    if not isinstance(found, Mapping):
        if split is not None:
            log.warning("splits has no effect: %s has no splits", origin)
        return found
    if not found:
        raise CalibrationError(f"{origin} is empty: it has no splits")
    if split is not None:
        part = split_part(split) if split not in found else None
        name = part.name if part else split
        if name not in found:
            raise CalibrationError(
                f"{origin} has no split {name!r}{suggest(name, found)}; it has {', '.join(map(str, found))}"
            )
        return part.of(found[name]) if part else found[name]
    for name in ("calibration", "train"):
        if name in found:
            return found[name]
    if len(found) > 1:
        raise CalibrationError(f"{origin} has the splits {', '.join(map(str, found))}: choose one with splits=")
    return next(iter(found.values()))


def _row(bound: str, count: int) -> int:
    return round(int(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
