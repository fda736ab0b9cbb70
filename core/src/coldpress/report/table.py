"""Tables for a terminal of 80 columns."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

_NAME = 44  # columns that a name takes at most


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names on the left, what is known of them on the right; long names are broken, to leave room for that."""
    rows = list(pairs)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    short = all(len(name) <= _NAME for name, _ in rows)
    table.add_column(style="cyan", no_wrap=short, max_width=_NAME, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> Table:
    """A table with a head.

    Args:
        columns: the head.
        rows: one text a column.
        numbers: columns that are aligned to the right and never broken.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    numbers = set(numbers)
    for column in columns:
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
