"""Progress: what a person sees while a long job runs; nothing where there is no terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from coldpress.report.memory import peak_memory
from coldpress.report.words import in_bytes, in_count

T = TypeVar("T")


class Progress:
    """Bars with time left, tokens a second and peak memory on standard error, as soon as it is a terminal.

    Args:
        quiet: show nothing.
        console: where to draw; standard error when None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._hushed = quiet
        self._quiet = quiet or not self._console.is_terminal
        self._bars: Bars | None = None

    def track(
        self,
        iterable: Iterable[T],
        *,
        description: str,
        total: int | None = None,
        tokens: Callable[[T], int] | None = None,
    ) -> Iterator[T]:
        """Hand the items on, with a bar that counts them.

        Args:
            iterable: what is worked on.
            description: a few words, shown before the bar.
            total: how many items there are, when `iterable` cannot say.
            tokens: how many an item stands for, for tokens a second; None shows no such number.
        """
        if self._quiet:
            yield from iterable
            return
        with self._shown() as bars:
            length = total if total is not None else getattr(iterable, "__len__", lambda: None)()
            seen = 0
            task = bars.add_task(description, total=length, tokens=None if tokens is None else seen)
            try:
                for item in iterable:
                    if tokens is not None:
                        seen += tokens(item)
                        bars.update(task, tokens=seen)
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
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=10), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Bars(*columns, *times, _Notes(Column(no_wrap=True)), console=self._console, transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None


class _Notes(ProgressColumn):
    """Tokens a second since the bar began, where tokens are counted; elsewhere the most memory that was held."""

    def render(self, task: Task) -> Text:
        """A few words."""
        tokens = task.fields.get("tokens")
        if tokens is None:
            return Text(f"peak {in_bytes(peak_memory())}", style="dim")
        return Text(f"{in_count(round(tokens / task.elapsed))} tok/s" if tokens and task.elapsed else "", style="dim")


SILENT = Progress(quiet=True)
"""Shows nothing: the default of library functions."""
