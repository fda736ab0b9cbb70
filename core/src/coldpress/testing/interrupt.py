"""Runs that are interrupted, for tests of what a second run does with what the first one left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch import Tensor

from coldpress.checkpoint.output import Output
from coldpress.checkpoint.parts import StageParts
from coldpress.stage import Stage
from coldpress.state import State


class _StopError(Exception):
    """The interruption."""


class _Kill(BaseException):
    """The end of the process, as far as everything inside can tell."""


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
def killed_publishing(after: int) -> Iterator[None]:
    """The run inside is killed while its format publishes, when so many tensors have been read.

    Raises:
        AssertionError: the run was not killed.
    """
    read, consolidate = StageParts.read, StageParts.consolidate
    seen: list[str] = []

    def counted(self: StageParts, name: str) -> Tensor:
        seen.append(name)
        if len(seen) > after:
            raise _Kill
        return read(self, name)

    def killed(self: StageParts, folder: Path) -> None:
        consolidate(self, folder)
        raise _Kill

    with mock.patch.object(StageParts, "read", counted), mock.patch.object(StageParts, "consolidate", killed):
        try:
            yield
        except _Kill:
            return
    raise AssertionError(f"the format read no more than {after} tensors")


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
