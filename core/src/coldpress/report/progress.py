"""Progress: what a person sees while a long job runs; silent where nobody watches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

T = TypeVar("T")


class Progress:
    """Bars with time left on standard error, as soon as it is a terminal.

    Args:
        quiet: show nothing.
        console: where to draw; standard error when None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._hushed = quiet
        self._quiet = quiet or not self._console.is_terminal
        self._bars: Bars | None = None

    def track(self, iterable: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
        """Hand the items on, with a bar that counts them.

        Args:
            iterable: what is worked on.
            description: a few words, shown before the bar.
            total: how many items there are, when `iterable` cannot say.
        """
        if self._quiet:
            yield from iterable
            return
        with self._shown() as bars:
            length = total if total is not None else getattr(iterable, "__len__", lambda: None)()
            task = bars.add_task(description, total=length)
            try:
                for item in iterable:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

    def say(self, message: str) -> None:
        """Tell something in a line of its own, also where there is no terminal."""
        if not self._hushed:
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _shown(self) -> Iterator[Bars]:
        """The live display, shared by bars inside bars."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Bars(*columns, *times, console=self._console, transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None


SILENT = Progress(quiet=True)
"""Shows nothing: the default of library functions."""
