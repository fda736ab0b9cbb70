"""Progress: what a person sees while a long job runs: bars on a terminal, and plain lines where there is none."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
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
from coldpress.report.words import in_bytes, in_count, in_time

T = TypeVar("T")

_PAUSE = 10.0  # seconds between two lines in a pipe


class Progress:
    """Bars with time left, tokens a second and peak memory on standard error; in a pipe or a file a line now and then.

    Args:
        quiet: show nothing.
        console: where to draw; standard error when None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._hushed = quiet
        self._plain = not self._console.is_terminal
        self._inside = False  # of what plain lines count
        self._bars: Bars | None = None

    def track(
        self,
        iterable: Iterable[T],
        *,
        description: str,
        total: int | None = None,
        tokens: Callable[[T], int] | None = None,
        each: bool = False,
    ) -> Iterator[T]:
        """Hand the items on, with a bar that counts them.

        Args:
            iterable: what is worked on.
            description: a few words, shown before the bar.
            total: how many items there are, when `iterable` cannot say.
            tokens: how many an item stands for, for tokens a second; None shows no such number.
            each: where there is no terminal, every item has a line; without it there is one every ten seconds.
        """
        if self._hushed or (self._plain and self._inside):
            yield from iterable
            return
        length = total if total is not None else getattr(iterable, "__len__", lambda: None)()
        if self._plain:
            yield from self._lines(iterable, description, length, 0.0 if each else _PAUSE)
            return
        with self._shown() as bars:
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

    def _lines(self, iterable: Iterable[T], description: str, total: int | None, pause: float) -> Iterator[T]:
        """Hand the items on, with lines that say how many are done, in what time, and the most memory that was held."""
        start = last = perf_counter()
        self._inside = True
        try:
            for number, item in enumerate(iterable, 1):
                yield item
                now = perf_counter()
                if now - last < pause:
                    continue
                last = now
                name = getattr(item, "name", "")
                count = f"{number}" if total is None else f"{number} of {total}"
                left = "" if not total else f", {in_time((now - start) / number * max(0, total - number))} left"
                spent = f"{in_time(now - start)}{left}, peak {in_bytes(peak_memory())}"
                self.say(f"{description}{f' {name}' if name else ''} ({count}): {spent}")
        finally:
            self._inside = False

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
