"""Runs that are interrupted, for tests of what a second run does with what the first one left."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from coldpress.checkpoint.output import Output
from coldpress.stage import Stage
from coldpress.state import State


class _StopError(Exception):
    """The interruption."""


@contextmanager
def kept_stages() -> Iterator[list[str]]:
    """Yields the names of the stages that runs inside put into the journal, in their order."""
    with _watched(None) as names:
        yield names


@contextmanager
def interrupted(stages: int = 2) -> Iterator[None]:
    """The run inside is stopped after so many stages were put into the journal.

    Raises:
        AssertionError: the run had no more stages and ended by itself.
    """
    with _watched(stages):
        try:
            yield
        except _StopError:
            return
    raise AssertionError(f"the run ended before {stages} stages were kept and another begun")


@contextmanager
def _watched(most: int | None) -> Iterator[list[str]]:
    keep = Output.keep
    names: list[str] = []

    def watched(self: Output, stage: Stage, state: State) -> None:
        if len(names) == most:
            raise _StopError
        keep(self, stage, state)
        names.append(stage.name)

    with mock.patch.object(Output, "keep", watched):
        yield names
