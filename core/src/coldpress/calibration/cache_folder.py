"""Where the library `datasets` keeps its copies, also where the home folder cannot be written."""

import logging
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


def cache_settings() -> dict[str, str]:
    """Arguments of `datasets.load_dataset`: none, or a temporary folder where its own cannot be written."""
    import datasets

    chosen = Path(datasets.config.HF_DATASETS_CACHE)
    return {} if _is_writable(chosen) else {"cache_dir": _temporary(str(chosen)).name}


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def _temporary(chosen: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder that is deleted when the program ends."""
    folder = tempfile.TemporaryDirectory(prefix="coldpress-datasets-", ignore_cleanup_errors=True)
    log.warning("%s cannot be written: data sets are cached in %s until the program ends", chosen, folder.name)
    return folder
