"""A dict of columns as a list of rows."""

from collections.abc import Mapping
from typing import Any


def rows_of_table(table: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows; None where the values are no columns of one length."""
    columns = list(table.values())
    if not columns or not all(hasattr(column, "__len__") and hasattr(column, "__getitem__") for column in columns):
        return None
    if any(isinstance(column, (str, Mapping)) for column in columns) or len({len(column) for column in columns}) > 1:
        return None
    return [{name: column[i] for name, column in table.items()} for i in range(len(columns[0]))]
