"""The rows of a data set, wherever it is, in the order in which they are used."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from attrs import frozen

from coldpress.arguments import DatasetArguments, warn_idle
from coldpress.calibration.files import FileRows
from coldpress.calibration.hub_dataset import HubDataset
from coldpress.calibration.loading import LOADING, Loaded, load_named
from coldpress.calibration.memory import as_collection, as_row
from coldpress.calibration.splits import pick
from coldpress.errors import CalibrationError
from coldpress.foreign import reading

_LENGTH = 2048  # of a sample of running text where no length is asked for
_BYTES = 8  # of text at most for a token, nearly everywhere


@frozen(eq=False)
class Rows:
    """Rows in the order in which they are used.

    Attributes:
        iterable: the place of each row, for messages, and the row; endless only where it is a stream.
        count: how many there are; None for a stream.
        origin: what to call the data set in a message.
        known: what a plugin says of them; None where they are the user's own.
        is_running_text: they are consecutive pieces of one text.
    """

    iterable: Iterable[tuple[str, Mapping[str, Any]]]
    count: int | None
    origin: str
    known: HubDataset | None = None
    is_running_text: bool = False

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows, one after the other."""
        return iter(self.iterable)


def find_rows(arguments: DatasetArguments, seed: int) -> Rows:
    """Find the data set that the arguments name, choose its split, and put its rows in order.

    Args:
        arguments: `dataset`, `dataset_path`, `splits`, `shuffle_calibration_samples` and what goes to `load_dataset`.
        seed: of the shuffle.

    Raises:
        CalibrationError: there is no such data set or split, it cannot be read, or it is empty.
    """
    source = arguments.dataset if arguments.dataset is not None else arguments.dataset_path
    split, columns = _wanted_split(arguments.splits), (arguments.text_column, *arguments.column_map)
    origin = repr(arguments.dataset_path or source) if isinstance(source, str) else _described(source)
    if isinstance(source, str):
        loaded = load_named(arguments, split)
        found = pick(loaded.data, split, origin) if isinstance(loaded.data, Mapping) else loaded.data
    else:
        warn_idle(arguments, LOADING, f"{origin} is in memory already")
        loaded = Loaded(as_collection(source, *columns))
        found = pick(loaded.data, split, origin)
    found = as_collection(found, *columns)
    if not hasattr(found, "__len__"):
        stream = _stream(found, arguments.shuffle_calibration_samples, seed)
        return Rows(_of_stream(stream, arguments.text_column, origin), None, origin, loaded.known)
    if len(found) == 0:
        raise CalibrationError(f"{origin} is empty: calibration needs at least one sample")
    order: Iterable[int] = range(len(found))
    if arguments.shuffle_calibration_samples and not _is_used_whole(found, arguments):
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    running = isinstance(found, FileRows) and found.is_running_text
    if running:
        warn_idle(arguments, ["column_map"], f"{origin} is running text, which has no columns")
    rows = _of_items(found, order, arguments.text_column, origin)
    return Rows(rows, len(found), origin, loaded.known, running)


def _described(source: Any) -> str:
    return f"the data set ({type(source).__name__})"


def _wanted_split(splits: Any) -> str | None:
    """One split, from the ways in which llm-compressor's users write it."""
    if isinstance(splits, Mapping):
        splits = splits.get("calibration", next(iter(splits.values()), None))
    if isinstance(splits, (list, tuple)):
        splits = splits[0] if splits else None
    if splits is not None and not isinstance(splits, str):
        raise CalibrationError(f"splits must name one split, such as 'train', got {splits!r}")
    return splits


def _is_used_whole(found: Any, arguments: DatasetArguments) -> bool:
    """Whether a running text is so short that its pieces stay in order, since nearly all of them are used."""
    if not (isinstance(found, FileRows) and found.is_running_text):
        return False
    samples = arguments.num_calibration_samples
    return samples is None or found.nbytes <= _BYTES * samples * (arguments.max_seq_length or _LENGTH)


def _stream(found: Any, shuffle: bool, seed: int) -> Any:
    """A stream of the hub, shuffled within a buffer as far as that is possible."""
    return found.shuffle(seed=seed) if shuffle and callable(getattr(found, "shuffle", None)) else found


def _of_stream(found: Iterable[Any], text_column: str, origin: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows as they come."""
    items, number = iter(found), 0
    while True:
        where = f"{origin}, row {number}"
        with reading(f"{where} cannot be read"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield where, as_row(item, text_column, where)
        number += 1


def _of_items(
    found: Any, order: Iterable[int], text_column: str, origin: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows by their index."""
    for index in order:
        where = found.where(index) if isinstance(found, FileRows) else f"{origin}, row {index}"
        with reading(f"{where} cannot be read"):
            item = found[index]
        yield where, as_row(item, text_column, where)
