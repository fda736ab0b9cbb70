"""The rows of a data set, wherever it is, in the order in which they are used."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from attrs import frozen

from coldpress.arguments import DatasetArguments, warn_idle
from coldpress.calibration.hub_dataset import HubDataset
from coldpress.calibration.loading import LOADING, Loaded, load_named, pick
from coldpress.errors import CalibrationError, ColdpressError


@frozen(eq=False)
class Rows:
    """Rows in the order in which they are used.

    Attributes:
        iterable: dicts from column to value; it may be endless only where it is a stream.
        count: how many there are; None for a stream.
        origin: what to call the data set in a message.
        known: what a plugin says of them; None where they are the user's own.
    """

    iterable: Iterable[Mapping[str, Any]]
    count: int | None
    origin: str
    known: HubDataset | None = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
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
    split = _wanted_split(arguments.splits)
    origin = repr(arguments.dataset_path or source) if isinstance(source, str) else _described(source)
    if isinstance(source, str):
        loaded = load_named(arguments, split)
        found = pick(loaded.data, split, origin) if isinstance(loaded.data, Mapping) else loaded.data
    else:
        warn_idle(arguments, LOADING, f"{origin} is in memory already")
        loaded = Loaded(source)
        found = pick(source, split, origin)
    if not hasattr(found, "__len__"):
        stream = _stream(found, arguments.shuffle_calibration_samples, seed)
        return Rows(_as_rows(stream, arguments.text_column, origin), None, origin, loaded.known)
    if len(found) == 0:
        raise CalibrationError(f"{origin} is empty: calibration needs at least one sample")
    count = len(found)
    order: Iterable[int] = range(count)
    if arguments.shuffle_calibration_samples:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Rows(_as_rows((found[i] for i in order), arguments.text_column, origin), count, origin, loaded.known)


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


def _stream(found: Any, shuffle: bool, seed: int) -> Any:
    """A stream of the hub, shuffled within a buffer as far as that is possible."""
    return found.shuffle(seed=seed) if shuffle and callable(getattr(found, "shuffle", None)) else found


def _as_rows(found: Iterable[Any], text_column: str, origin: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a list that may hold plain texts."""
    for item in _read(found, origin):
        if isinstance(item, str):
            yield {text_column: item}
        elif isinstance(item, Mapping):
            yield item
        else:
            raise CalibrationError(f"{origin} holds a {type(item).__name__}: an item must be text or a dict of columns")


def _read(found: Iterable[Any], origin: str) -> Iterator[Any]:
    """The items, with what a reader raises as an error of ours."""
    items = iter(found)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except ColdpressError:
            raise
        except Exception as error:  # of a file's reader, a decoder or a hub's client, row by row
            raise CalibrationError(f"{origin} cannot be read: {type(error).__name__}: {error}") from error
        yield item
