"""Data sets in memory, in the forms in which people have them, as rows: dicts from column to value."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from coldpress.calibration.conversation import CHAT_COLUMNS, PAIRS
from coldpress.calibration.sample import as_tensor
from coldpress.calibration.table import rows_of_table
from coldpress.calibration.token_rows import MAIN
from coldpress.errors import CalibrationError

_FORMS = (
    "a name, a path, a Dataset, a DataFrame, a DataLoader, a list of texts, of rows (dicts) or of token ids, a tensor "
    "of token ids [N, S], or something to iterate over"
)


def as_collection(dataset: Any, *columns: str) -> Any:
    """Something with a length and items, something to iterate over, or a dict of splits.

    Args:
        dataset: no text.
        *columns: names of columns that the user gives, which tell a dict of columns from one of splits.

    Raises:
        CalibrationError: no rows can be had from it.
    """
    if isinstance(dataset, Mapping):
        return _rows(dataset) if _is_table(dataset, columns) else dataset
    for method, arguments in (("to_dicts", ()), ("to_pylist", ()), ("to_dict", ("records",))):  # polars, arrow, pandas
        if callable(getattr(dataset, method, None)) and hasattr(dataset, "columns"):
            rows: list[Any] = getattr(dataset, method)(*arguments)
            return rows
    if hasattr(dataset, "iloc"):  # a column of pandas, whose index may be anything
        return list(dataset)
    tensor = as_tensor(dataset) if hasattr(dataset, "dtype") else dataset
    if isinstance(tensor, Tensor):
        if tensor.ndim not in (1, 2) or tensor.is_floating_point():
            raise CalibrationError(
                f"dataset is a tensor {tuple(tensor.shape)} of {tensor.dtype}; one of token ids is [N, S] and whole "
                "numbers; pass others as rows that name what they are, [{'inputs_embeds': ...}, ...]"
            )
        return list(tensor.view(-1, tensor.shape[-1]))
    if isinstance(dataset, (set, frozenset, bytes, io.IOBase)) or callable(dataset):
        raise CalibrationError(f"dataset must be {_FORMS}, not a {type(dataset).__name__}")
    if not hasattr(dataset, "__iter__") and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise CalibrationError(f"dataset must be {_FORMS}, got {type(dataset).__name__}")
    return dataset


def as_row(item: Any, text_column: str, where: str) -> Mapping[str, Any]:
    """An item of a data set as a row.

    Args:
        item: of any form that is known.
        text_column: the column that a plain text becomes.
        where: which item of which data set, for messages.

    Raises:
        CalibrationError: it is of no form that is known.
    """
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str) or item is None:
        return {text_column: item or ""}
    if isinstance(item, (list, tuple)) and item and all(isinstance(turn, Mapping) for turn in item):
        return {CHAT_COLUMNS[0]: item}
    if isinstance(item, (list, tuple)) and len(item) == 1 and isinstance(item[0], Tensor):  # of a TensorDataset
        return {"input_ids": item[0]}
    ids = as_tensor(item) if isinstance(item, (list, tuple)) or hasattr(item, "dtype") else None
    if isinstance(ids, Tensor) and ids.ndim in (1, 2) and not ids.is_floating_point():
        return {"input_ids": ids}
    kind = type(item).__name__
    inside = f" of {type(item[0]).__name__}" if isinstance(item, (list, tuple)) and item else ""
    raise CalibrationError(
        f"{where} is a {kind}{inside}: an item must be text, a dict of columns, a list of turns, or token ids"
    )


def _is_table(found: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether a dict holds columns, not splits."""
    known = {*columns, *MAIN, *CHAT_COLUMNS, *(name for pair in PAIRS for name in pair)}
    return any(name in known and not isinstance(found[name], Mapping) for name in found)


def _rows(table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A dict of columns as rows."""
    rows = rows_of_table(table)
    if rows is None:
        lengths = {name: len(c) if hasattr(c, "__len__") else type(c).__name__ for name, c in table.items()}
        found = ", ".join(f"{name} ({length})" for name, length in lengths.items())
        raise CalibrationError(f"dataset is a dict, and not of columns of one length: {found}")
    return rows
