"""Data sets by name: those of plugins, then files and folders, then the hub."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress import registry
from coldpress.arguments import DatasetArguments, warn_idle
from coldpress.arguments.hub import hub_is_reachable
from coldpress.calibration.cache_folder import cache_settings
from coldpress.calibration.files import SUFFIXES, FileRows, check_regular, joined, read_file, read_pieces
from coldpress.calibration.hub_dataset import HubDataset
from coldpress.calibration.splits import pick, split_part
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.foreign import reading
from coldpress.spelling import near, suggest

log = logging.getLogger(__name__)

LOADING = ("dataset_config_name", "raw_kwargs", "streaming")  # arguments of `datasets.load_dataset`
_READERS = {"json": "json", "jsonl": "json", "csv": "csv", "txt": "text", "parquet": "parquet"}
_LENGTH = 2048  # tokens of a sample of running text where no length is asked for
_BYTES = 8  # of a piece of running text, for each token of a sample
_FINE = 512  # bytes of a piece, where a part of a text is asked for
_PEER_READERS = ("custom", *_READERS, "text")  # names that llm-compressor gives to data sets of files


@frozen(eq=False)
class Loaded:
    """What was found under a name.

    Attributes:
        data: rows, or splits of rows.
        known: what a plugin says of them; None where no plugin has to do with it, or it gives rows that are ready.
    """

    data: Any
    known: HubDataset | None = None


def load_named(arguments: DatasetArguments, split: str | None) -> Loaded:
    """The data set that the arguments name, and where it is on disk if they say so.

    Args:
        arguments: `dataset` and `dataset_path`, at least one of which is text, and what goes to `load_dataset`.
        split: the one to read, with a part of it, "train[:512]"; None where the user names none.

    Raises:
        CalibrationError: there is no such data set or split, or it cannot be read.
    """
    name, path = arguments.dataset, arguments.dataset_path
    if path is not None and name in (None, *_PEER_READERS):
        name, path = path, None
    offered = [plugin.name for plugin in registry.available("datasets")]
    plugin = {_plain(one): one for one in offered}.get(_plain(name))
    found = registry.find("datasets", plugin) if plugin else None
    if path is not None and not isinstance(found, HubDataset):
        raise CalibrationError(f"dataset={name!r} and dataset_path={path!r} name two data sets: pass one of them")
    if plugin and path is None and Path(name).exists():
        log.warning("%r is the data set of a plugin; what has this name on disk is './%s'", name, name)
    if isinstance(found, HubDataset):
        return Loaded(_known(found, name, split, arguments), found)
    if found is not None:
        warn_idle(arguments, LOADING, f"{name!r} is the data set of a plugin")
        return Loaded(_called(found, plugin or name, split))
    return Loaded(_unknown(name, split, arguments, offered))


def _called(function: Any, name: str, split: str | None) -> Any:
    """The rows that a plugin's function gives.

    Raises:
        BrokenPluginError: it raises, or gives nothing.
    """
    owner = registry.owner_of(getattr(function, "__module__", "") or "")
    who = f"the data set {name!r}" + ("" if owner is None else f" ({owner})")
    with reading(f"{who} cannot be read", BrokenPluginError):
        rows = function(split)
    if rows is None:
        raise BrokenPluginError(f"{who} gives None: its function must return rows, such as [{{'text': '...'}}]")
    return rows


def _plain(name: str) -> str:
    """Names that differ in case, or in - and _, are one: llm-compressor's users write either."""
    return name.lower().replace("-", "_")


def _unknown(name: str, split: str | None, arguments: DatasetArguments, offered: list[str]) -> Any:
    """A data set that no plugin knows: files, then the hub."""
    with reading(f"dataset {name!r}"):  # of a name that is too long, or of a user that there is not
        path = Path(name).expanduser()
        there = path.exists()
    if there:
        return _from_path(path, split, arguments)
    if path.suffix.lstrip(".") in _READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _no_path(path)
    reachable = hub_is_reachable()
    try:
        return _from_hub(name, arguments.dataset_config_name, split, arguments.streaming, arguments)
    except Exception as error:  # the hub's client lets through what its transport raises
        also = near(name, offered)
        hint = f"; did you mean {also[0]!r}?" if also else f"; without network use {', '.join(offered)} or a file"
        raise CalibrationError(
            f"no data set {name!r}: no installed plugin offers it, no file or folder has this name, and the hub says "
            f"{type(error).__name__}{_cached(reachable)}{hint}"
        ) from error


def _known(known: HubDataset, name: str, split: str | None, arguments: DatasetArguments) -> Any:
    """The rows of a data set that a plugin knows; of the hub or of a folder, one after the other as they are read."""
    if arguments.preprocessing_func is None:
        warn_idle(arguments, ["text_column", "column_map"], f"the plugin of {name!r} says what its text is")
    part = split_part(split or known.split)
    if arguments.dataset_path is not None:
        return _copy(known, Path(arguments.dataset_path).expanduser(), split, arguments)
    reachable = hub_is_reachable()
    config = arguments.dataset_config_name or known.config_name
    try:
        if part is None or not part.in_rows or not reachable:  # shares need whole splits, and the cache holds such
            return _from_hub(known.repo_id, config, _renamed(known, split), False, arguments)
        whole = _from_hub(known.repo_id, config, _renamed(known, part.name), True, arguments)
    except Exception as error:  # the hub's client lets through what its transport raises
        raise CalibrationError(
            f"{name!r} is {known.repo_id} on the hub, which says {type(error).__name__}: {error}{_cached(reachable)}; "
            "a copy in a folder is read with dataset_path="
        ) from error
    return part.of(whole)


def _renamed(known: HubDataset, split: str | None) -> str:
    """A split, or a part of one, under the name that it has on the hub."""
    name, bracket, rest = (split or known.split).partition("[")
    return known.split_names.get(name, name) + bracket + rest


def _copy(known: HubDataset, path: Path, split: str | None, arguments: DatasetArguments) -> Any:
    """The rows of a copy on disk: one file, a saved `Dataset`, or a folder that is laid out as on the hub."""
    if not path.exists():
        raise _no_path(path)
    part = split_part(_renamed(known, split))
    if path.is_file():
        return _from_path(path, split and re.sub(r"^[\w.\-]+", "train", split), arguments)
    if part is None or not part.in_rows:
        raise CalibrationError(f"splits={split!r}: of a folder, a part is named by rows, such as 'train[:512]'")
    splits = _from_path(path, None, arguments) if _is_saved(path) else _from_folder(known, path, arguments)
    if not isinstance(splits, Mapping):
        return part.of(splits)
    if len(splits) == 1 and split is None:
        return part.of(next(iter(splits.values())))
    given = (split or "").partition("[")[0]  # a copy may call its splits as users do
    return part.of(pick(splits, given if given in splits else part.name, repr(str(path))))


def _from_folder(known: HubDataset, path: Path, arguments: DatasetArguments) -> Any:
    """The splits of a folder, with the configuration that it has."""
    import datasets

    config = arguments.dataset_config_name or known.config_name
    with reading(f"dataset {str(path)!r} cannot be read"):  # datasets lets through what any of its readers raises
        named = config in datasets.get_dataset_config_names(str(path))
        below = config is not None and (path / config).is_dir()
        if arguments.dataset_config_name and not named and not below:
            raise CalibrationError(f"dataset {str(path)!r} has no configuration {config!r}")
        where: dict[str, Any] = {"name": config} if named else {"data_dir": config} if below else {}
        where |= {**cache_settings(), **arguments.raw_kwargs}
        return datasets.load_dataset(str(path), streaming=True, **where)


def _is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` of a data set writes."""
    return path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_path(path: Path, split: str | None, arguments: DatasetArguments) -> Any:
    if _is_saved(path):
        import datasets

        warn_idle(arguments, LOADING, f"{str(path)!r} is a saved Dataset")
        saved = datasets.load_from_disk(str(path))
        return saved if split is None else pick(saved, split, f"{str(path)!r}")
    warn_idle(arguments, ["dataset_config_name"], f"{str(path)!r} is not on the hub")
    files = _files(path)
    kinds = {_kind(file) for file in files}
    if kinds <= {*SUFFIXES} and not arguments.raw_kwargs:
        warn_idle(arguments, ["streaming"], f"{str(path)!r} is read row by row")
        return _part(_read(files, kinds, arguments, whole=split is None), split, path)
    import datasets

    with reading(f"dataset {str(path)!r} cannot be read"):  # datasets lets through what any of its readers raises
        return datasets.load_dataset(
            _READERS[kinds.pop()],
            data_files=[str(file) for file in files],
            split=split or "train",
            streaming=arguments.streaming,
            **cache_settings(),
            **arguments.raw_kwargs,
        )


def _files(path: Path) -> list[Path]:
    """The files of a data set on disk, all of one kind.

    Raises:
        CalibrationError: there are none that are read, or they are of several kinds.
    """
    if not path.is_dir():
        check_regular(path)
    files = [file for file in sorted(path.iterdir()) if _kind(file) in _READERS] if path.is_dir() else [path]
    readers = {_READERS.get(_kind(file)) for file in files}
    if None in readers or not readers:
        raise CalibrationError(f"dataset {str(path)!r}: calibration reads {', '.join(_READERS)} and saved Datasets")
    if len(readers) > 1:
        raise CalibrationError(f"dataset {str(path)!r} holds files of several kinds; name one of them")
    return files


def _kind(path: Path) -> str:
    return path.suffix.lstrip(".").lower()


def _read(files: Sequence[Path], kinds: set[str], arguments: DatasetArguments, *, whole: bool) -> FileRows:
    """Rows of files of text, JSON or CSV; running text in pieces, unless its lines are asked for."""
    if kinds != {"txt"} or arguments.concatenate_data is False or arguments.preprocessing_func is not None:
        return joined([read_file(file) for file in files])
    size = _BYTES * (arguments.max_seq_length or _LENGTH)
    return joined([read_pieces(file, size if whole else min(size, _FINE)) for file in files])


def _part(rows: FileRows, split: str | None, path: Path) -> FileRows:
    """The part of a file that is asked for."""
    part = split_part(split or "train")
    if part is None or part.name != "train":
        raise CalibrationError(
            f"{str(path)!r} is one split, 'train', of which a part may be named, 'train[:10%]'; got {split!r}"
        )
    found: FileRows = part.of(rows)
    return found


def _from_hub(repo_id: str, config: str | None, split: str | None, streaming: bool, arguments: DatasetArguments) -> Any:
    import datasets

    with nullcontext() if hub_is_reachable() else _cache_only():
        more = {**cache_settings(), **arguments.raw_kwargs}
        return datasets.load_dataset(repo_id, config, split=split, streaming=streaming, **more)


def _no_path(path: Path) -> CalibrationError:
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return CalibrationError(f"dataset {str(path)!r}: no such file or folder{suggest(path.name, beside)}")


def _cached(reachable: bool) -> str:
    return "" if reachable else " (the hub cannot be reached, so only its cache was looked at)"


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
