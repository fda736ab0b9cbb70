"""The rows of a data set, wherever it is: a plugin's name, a file, a folder, a hub, or an object in memory."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from coldpress import registry
from coldpress.arguments import DatasetArguments, warn_idle
from coldpress.errors import CalibrationError, near, suggest

log = logging.getLogger(__name__)

_LOADING = ("dataset_config_name", "raw_kwargs", "streaming")  # arguments of `datasets.load_dataset`
_READERS = {"json": "json", "jsonl": "json", "csv": "csv", "txt": "text", "parquet": "parquet"}


@frozen(eq=False)
class Rows:
    """Rows in the order in which they are used.

    Attributes:
        iterable: dicts from column to value; it may be endless only where it is a stream.
        count: how many there are; None for a stream.
        origin: what to call the data set in a message.
    """

    iterable: Iterable[Mapping[str, Any]]
    count: int | None
    origin: str

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
    source = arguments.dataset_path or arguments.dataset
    split = _wanted_split(arguments.splits)
    origin = repr(source) if isinstance(source, str) else f"the data set ({type(source).__name__})"
    if isinstance(source, str):
        found = _load(source, split, arguments)
    else:
        warn_idle(arguments, _LOADING, f"{origin} is in memory already")
        found = _pick(source, split, origin)
    if isinstance(found, Mapping):
        found = _pick(found, split, origin)
    if not hasattr(found, "__len__"):
        stream = _stream(found, arguments.shuffle_calibration_samples, seed)
        return Rows(_as_rows(stream, arguments.text_column, origin), None, origin)
    if len(found) == 0:
        raise CalibrationError(f"{origin} is empty: calibration needs at least one sample")
    count = len(found)
    order: Iterable[int] = range(count)
    if arguments.shuffle_calibration_samples:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Rows(_as_rows((found[i] for i in order), arguments.text_column, origin), count, origin)


def _wanted_split(splits: Any) -> str | None:
    """One split, from the ways in which llm-compressor's users write it."""
    if isinstance(splits, Mapping):
        splits = splits.get("calibration", next(iter(splits.values()), None))
    if isinstance(splits, (list, tuple)):
        splits = splits[0] if splits else None
    if splits is not None and not isinstance(splits, str):
        raise CalibrationError(f"splits must name one split, such as 'train', got {splits!r}")
    return splits


def _pick(found: Any, split: str | None, origin: str) -> Any:
    """The split of a `DatasetDict`; anything else as it is."""
    if not isinstance(found, Mapping):
        if not hasattr(found, "__iter__"):
            raise CalibrationError(
                f"dataset must be a name, a path, a Dataset, a DataLoader or a list, got {type(found).__name__}"
            )
        if split is not None:
            log.warning("splits has no effect: %s has no splits", origin)
        return found
    if not found:
        raise CalibrationError(f"{origin} is empty: it has no splits")
    if split is not None:
        if split not in found:
            raise CalibrationError(
                f"{origin} has no split {split!r}{suggest(split, found)}; it has {', '.join(map(str, found))}"
            )
        return found[split]
    for name in ("calibration", "train"):
        if name in found:
            return found[name]
    if len(found) > 1:
        raise CalibrationError(f"{origin} has the splits {', '.join(map(str, found))}: choose one with splits=")
    return next(iter(found.values()))


def _load(name: str, split: str | None, arguments: DatasetArguments) -> Any:
    """A data set by name: plugins first, then files, then the hub."""
    known = [plugin.name for plugin in registry.available("datasets")]
    if name in known:
        warn_idle(arguments, _LOADING, f"{name!r} is the data set of a plugin")
        return registry.find("datasets", name)(split)
    path = Path(name).expanduser()
    if path.exists():
        return _load_path(path, split, arguments)
    if path.suffix.lstrip(".") in _READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CalibrationError(f"dataset {name!r}: no such file or folder{suggest(path.name, beside)}")
    return _load_hub(name, split, arguments, known)


def _load_path(path: Path, split: str | None, arguments: DatasetArguments) -> Any:
    import datasets

    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        warn_idle(arguments, _LOADING, f"{str(path)!r} is a saved Dataset")
        return _pick(datasets.load_from_disk(str(path)), split, f"{str(path)!r}")
    warn_idle(arguments, ["dataset_config_name"], f"{str(path)!r} is not on the hub")
    files = [path] if path.is_file() else [file for file in sorted(path.iterdir()) if file.suffix[1:] in _READERS]
    readers = {_READERS.get(file.suffix.lstrip(".").lower()) for file in files}
    if None in readers or not readers:
        raise CalibrationError(f"dataset {str(path)!r}: calibration reads {', '.join(_READERS)} and saved Datasets")
    if len(readers) > 1:
        raise CalibrationError(f"dataset {str(path)!r} holds files of several kinds; name one of them")
    try:
        return datasets.load_dataset(
            readers.pop(),
            data_files=[str(file) for file in files],
            split=split or "train",
            streaming=arguments.streaming,
            **arguments.raw_kwargs,
        )
    except Exception as error:  # datasets lets through what any of its readers raises
        cause = error.__cause__ or error
        raise CalibrationError(f"dataset {str(path)!r} cannot be read: {type(cause).__name__}: {cause}") from error


def _load_hub(name: str, split: str | None, arguments: DatasetArguments, known: list[str]) -> Any:
    import datasets

    from coldpress.arguments.hub import hub_is_reachable

    reachable = hub_is_reachable()
    try:
        with nullcontext() if reachable else _cache_only():
            return datasets.load_dataset(
                name,
                arguments.dataset_config_name,
                split=split,
                streaming=arguments.streaming,
                **arguments.raw_kwargs,
            )
    except Exception as error:  # the hub's client lets through what its transport raises
        where = "" if reachable else " (the hub cannot be reached, so only its cache was looked at)"
        also = near(name, known)
        hint = f"; did you mean {also[0]!r}?" if also else f"; without network use {', '.join(known)} or a file"
        raise CalibrationError(
            f"no data set {name!r}: no installed plugin offers it, no file or folder has this name, and the hub says "
            f"{type(error).__name__}{where}{hint}"
        ) from error


@contextmanager
def _cache_only() -> Iterator[None]:
    """Make the library `datasets` look at its cache only; it has no argument for it, and would retry for 20 s."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _stream(found: Any, shuffle: bool, seed: int) -> Any:
    """A stream of the hub, shuffled within a buffer as far as that is possible."""
    return found.shuffle(seed=seed) if shuffle and callable(getattr(found, "shuffle", None)) else found


def _as_rows(found: Iterable[Any], text_column: str, origin: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a list that may hold plain texts."""
    for item in found:
        if isinstance(item, str):
            yield {text_column: item}
        elif isinstance(item, Mapping):
            yield item
        else:
            raise CalibrationError(f"{origin} holds a {type(item).__name__}: an item must be text or a dict of columns")
