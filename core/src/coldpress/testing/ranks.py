"""Several ranks on one machine, for tests: processes of a fork server, which imports once, connected by gloo."""

import errno
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from coldpress.entrypoints.oneshot import oneshot
from coldpress.run.stage_run import StageRun
from coldpress.stage import Stage

_PATIENCE = 240.0  # seconds after which ranks count as hanging


class Ended(Exception):  # noqa: N818 - what became of a rank
    """A rank raised, or its process ended; the message says what."""


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function on several ranks.

    Args:
        size: how many.
        work: a function of an importable module; called with `arguments` on every rank.
        *arguments: what pickles.

    Returns:
        For each rank what it returned, or an `Ended` that says what it raised.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["coldpress.testing.ranks", "coldpress.testing.models"])
    with TemporaryDirectory() as folder:
        pipes = [server.Pipe(duplex=False) for _ in range(size)]
        started = [
            server.Process(target=_rank, args=(rank, size, folder, pipes[rank][1], work, arguments), daemon=True)
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for _, sender in pipes:
            sender.close()
        found = [_outcome(receiver) for receiver, _ in pipes]
        for process in started:
            process.join(5)
            process.kill()
        return found


def oneshot_together(size: int, *calls: Mapping[str, Any]) -> list[list[str | None]]:
    """Call `oneshot` on several ranks, once for each table of arguments, in the same processes.

    Args:
        size: how many.
        *calls: arguments; a `PerRank` is another one on each rank.  Beside those of `oneshot`, `ends` may be a number
            of stages, after which the rank is killed, or finds the disk full where that is negative.

    Returns:
        For each rank what each call raised, in words; None where it raised nothing.
    """
    found = together(size, _oneshots, calls)
    return [one if isinstance(one, list) else [str(one)] for one in found]


def _outcome(receiver: Any) -> Any:
    try:
        if not receiver.poll(_PATIENCE):
            return Ended("it hangs")
        raised, value = receiver.recv()
    except EOFError:
        return Ended("its process ended")
    return Ended(value) if raised else value


def _rank(rank: int, size: int, folder: str, sender: Any, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    try:
        meeting = (Path(folder) / "meeting").as_uri()
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        sender.send((False, work(*arguments)))
    except BaseException:
        sender.send((True, traceback.format_exc()))
    finally:
        sender.close()


def _oneshots(calls: Sequence[Mapping[str, Any]]) -> list[str | None]:
    found: list[str | None] = []
    for call in calls:
        mine = {name: _own(value) for name, value in call.items()}
        try:
            with _ending(mine.pop("ends", None)):
                oneshot(**{"quiet": True, "return_model": False, **mine})
            found.append(None)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


class PerRank(list[Any]):
    """An argument that is another one on each rank."""


def _own(value: Any) -> Any:
    return value[dist.get_rank()] if isinstance(value, PerRank) else value


@contextmanager
def _ending(stages: int | None) -> Iterator[None]:
    """Inside, the process is killed when so many stages are compressed, or finds the disk full."""
    before, count = StageRun.compress, 0

    def compress(self: StageRun, stage: Stage) -> None:
        nonlocal count
        before(self, stage)
        count += 1
        if stages is not None and count == abs(stages):
            if stages > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    StageRun.compress = compress  # type: ignore[method-assign]
    try:
        yield
    finally:
        StageRun.compress = before  # type: ignore[method-assign]
