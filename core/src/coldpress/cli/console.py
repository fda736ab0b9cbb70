"""What reaches the terminal: results on standard output, everything else on standard error."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from coldpress.cli.schema import versioned

# Said to libraries before they are imported; what a user has set already stays.
_HUSH = {"TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TOKENIZERS_PARALLELISM": "false"}
_HUSH_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_NOISY = ("torch", "transformers", "datasets", "huggingface_hub", "accelerate")


_UNBROKEN = 1 << 16  # columns: no line is as long


class _Plain(Console):
    """For pipes and files: a line of a table is a line, whatever its length, and ends where its text does."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print without padding at the ends of lines."""
        with self.capture() as printed:
            super().print(*objects, **options)
        self.file.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def out() -> Console:
    """Standard output; colours and the width of the window only on a terminal, or by COLUMNS."""
    console = Console(highlight=False)
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return _Plain(highlight=False, width=_UNBROKEN)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def say(kind: str, message: str, *, style: str = "bold red") -> None:
    """One message on standard error, `kind: message`; long lines are the terminal's to break."""
    rank = f"rank {os.environ.get('RANK', '?')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    err().print(Text.assemble((f"{rank}{kind}: ", style), message), soft_wrap=True)


def print_json(form: str, content: Mapping[str, Any]) -> None:
    """A result for programs.

    Args:
        form: one of `schema.VERSIONS`.
        content: what it holds.
    """
    value = finite(versioned(form, content))
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # JSON has a form of its own for what the encoding lacks
        text = json.dumps(value, indent=2, allow_nan=False)
    write(f"{text}\n")


def write(text: str) -> None:
    """Write to standard output in its own encoding, for which typer takes UTF-8 where it is ASCII."""
    sys.stdout.write(text)
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """The value with null for infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def print_path(path: Path) -> None:
    """The result for scripts, on a line of its own."""
    write(f"{path}\n")


class Told(logging.Handler):
    """A context in which warnings of coldpress are told in one line each, and those of libraries are not.

    Args:
        quiet: libraries draw no progress bars either.
        words: a warning in the words of the command.
    """

    def __init__(self, *, quiet: bool = False, words: Callable[[str], str] = str) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self._bars = sys.stderr.isatty() and not quiet
        self._warnings = warnings.catch_warnings()
        self._logger = logging.getLogger("coldpress")
        self._propagates = self._logger.propagate

    def __enter__(self) -> "Told":
        for name, value in {**_HUSH, **({} if self._bars else _HUSH_BARS)}.items():
            os.environ.setdefault(name, value)
        if not self._bars and "transformers" in sys.modules:  # it has read its environment already
            sys.modules["transformers"].logging.disable_progress_bar()
        self._warnings.__enter__()
        for package in _NOISY:
            warnings.filterwarnings("ignore", module=rf"{package}\b")
        self._logger.addHandler(self)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates
        self._warnings.__exit__(None, None, None)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a warning; of several ranks the first does, for all have the same."""
        if os.environ.get("RANK", "0") == "0":
            say(record.levelname.lower(), self._words(record.getMessage()), style="bold yellow")
